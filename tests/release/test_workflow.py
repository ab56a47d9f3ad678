"""The release workflows: their scripts and commands."""

from __future__ import annotations

import re
import shlex
import subprocess
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
    assert content["concurrency"] == read_workflow("release.yaml")["concurrency"]
    assert all(job["if"].startswith("vars.GITOPS != ''") for job in content["jobs"].values())
    scripts = [step.get("run", "") for step in steps_of("gitops.yaml")]
    assert not [script for script in scripts if "--apply" in script or "kubectl" in script]
    keeping = content["jobs"]["observe"]["steps"][-1]
    assert keeping["if"] == "always()" and "git push" in keeping["run"]
