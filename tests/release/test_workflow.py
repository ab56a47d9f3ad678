"""The release workflow: its scripts and commands."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import yaml

from tests.conftest import ROOT
from whetstone.main import build_parser

WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"


def steps_of_the_workflow() -> list[dict[str, Any]]:
    """The steps of every job."""
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_workflows_scripts_parse_and_its_commands_exist() -> None:
    """The scripts are parsed, not run."""
    verbs = []
    for step in steps_of_the_workflow():
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
            verbs.append(words[1])
            # Files and packages need not exist.
            build_parser().parse_args(words[1:])
            used = set(re.findall(r"\$(\w+)", line))
            assert used <= {*environment, "OVERLAY", "RUNNER_TEMP"}
    assert verbs == ["check", "run", "release", "rollback"]


def test_the_workflow_never_releases_twice_at_once_and_keeps_its_records() -> None:
    content = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert content["concurrency"]["cancel-in-progress"] is False
    assert content["jobs"]["retrain"]["if"] == "vars.MODELS != ''"
    keeping = next(step for step in steps_of_the_workflow() if "git push" in step.get("run", ""))
    assert keeping["if"] == "always()"
