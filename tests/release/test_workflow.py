"""The release workflows: their scripts and commands, and the way back of a GitOps tool."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from whetstone.main import build_parser

WORKFLOWS = ROOT / ".github" / "workflows"


def read_workflow(name: str) -> dict[str, Any]:
    """A workflow."""
    content: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text("utf-8"))
    return content


def steps_of(name: str) -> list[dict[str, Any]]:
    """The steps of every job of a workflow."""
    jobs = read_workflow(name)["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("release.yaml", ["check", "run", "release", "rollback"]),
        ("gitops.yaml", ["release --prepare", "release --observe"]),
    ],
)
def test_the_workflows_scripts_parse_and_its_commands_exist(name: str, expected: list[str]) -> None:
    """The scripts are parsed, not run."""
    verbs = []
    for step in steps_of(name):
        script = step.get("run", "")
        # A value inside the text of a script would be run. Values come by the environment.
        assert "${{" not in script
        subprocess.run(["bash", "-n", "-c", script], check=True)
        environment = step.get("env", {})
        for line in script.replace("\\\n", " ").splitlines():
            words = [word.replace("$APPLY", "--apply") for word in shlex.split(line)]
            words = [word for word in words if word != "${key[@]}"]
            words = words[words[:1] == ["exec"] :]
            if words[:1] != ["whetstone"]:
                continue
            modes = [word for word in words if word in ("--prepare", "--observe")]
            verbs.append(" ".join([words[1], *modes]))
            # Files and packages need not exist.
            build_parser().parse_args(words[1:])
            used = set(re.findall(r"\$(\w+)", line))
            assert used <= {*environment, "OVERLAY", "RUNNER_TEMP"}
    assert verbs == expected


def test_the_workflow_never_releases_twice_at_once_and_keeps_its_records() -> None:
    content = read_workflow("release.yaml")
    assert content["concurrency"]["cancel-in-progress"] is False
    assert content["jobs"]["retrain"]["if"] == "vars.MODELS != ''"
    keeping = next(step for step in steps_of("release.yaml") if "git push" in step.get("run", ""))
    assert keeping["if"] == "always()"


def test_the_gitops_workflow_applies_nothing_and_keeps_what_an_observation_found() -> None:
    content = read_workflow("gitops.yaml")
    # A group holds one run that waits: a prepare must not cancel an observation, nor the reverse.
    group = read_workflow("release.yaml")["concurrency"]["group"]
    assert content["concurrency"]["group"] == f"{group}-${{{{ github.event_name }}}}"
    assert content["concurrency"]["cancel-in-progress"] is False
    # A run that has waited works on what was merged meanwhile.
    checkouts = [step for step in steps_of("gitops.yaml") if "checkout" in step.get("uses", "")]
    assert [step["with"]["ref"] for step in checkouts] == ["${{ github.ref_name }}"] * 2
    assert all(job["if"].startswith("vars.GITOPS != ''") for job in content["jobs"].values())
    scripts = [step.get("run", "") for step in steps_of("gitops.yaml")]
    assert not [script for script in scripts if "--apply" in script or "kubectl" in script]
    keeping = content["jobs"]["observe"]["steps"][-1]
    assert keeping["if"] == "always()" and "git push" in keeping["run"]


def test_the_command_of_the_guide_takes_the_overlay_back_and_keeps_the_records(
    tmp_path: Path,
) -> None:
    guide = (ROOT / "docs" / "guides" / "releasing.md").read_text("utf-8")
    (command,) = re.findall(r"`(git checkout <merge>[^`]*)`", guide)
    overlay = tmp_path / "k8s" / "overlays" / "production" / "kustomization.yaml"
    record = tmp_path / "releases" / "b.json"
    for file in (overlay, record):
        file.parent.mkdir(parents=True)

    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(image: str, outcome: str | None) -> None:
        overlay.write_text(f"newTag: {image}\n", "utf-8")
        if outcome is not None:
            record.write_text(f"{outcome}\n" * 20, "utf-8")
        git("add", "--all")
        git("commit", "--message", image)

    git("init", "--initial-branch=main")
    commit("first", None)
    git("switch", "--create", "release")
    commit("second", "prepared")
    git("switch", "main")
    git("merge", "--no-ff", "--message", "merge", "release")
    merge = git("rev-parse", "HEAD")
    record.write_text("released\n" * 20, "utf-8")
    git("add", "--all")
    git("commit", "--message", "What became of the release")
    git(*shlex.split(command.replace("<merge>", merge))[1:])
    git("commit", "--message", "back")
    assert overlay.read_text("utf-8") == "newTag: first\n"
    assert record.read_text("utf-8").startswith("released\n")
    assert git("status", "--porcelain") == ""
