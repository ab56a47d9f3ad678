"""The world of a release: a working folder, packages, images, and the stand-in's cluster."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from release.records import Record
from service.package.files import file_record
from service.package.golden import read_golden, write_golden
from service.package.manifest import GOLDEN_FILE, package_version, read_manifest, write_manifest
from tests.conftest import ROOT
from whetstone.main import main

Captured = pytest.CaptureFixture[str]
OVERLAY = "k8s/overlays/staging"
SPACE = "whetstone-staging"
REPOSITORY = "registry.example.com/text-classifier"
FIRST, SECOND = f"{REPOSITORY}:first", f"{REPOSITORY}:second"
CRASHING = f"{REPOSITORY}:crashing"
BROKEN, WRONG, LABELS = f"{REPOSITORY}:broken", f"{REPOSITORY}:wrong", f"{REPOSITORY}:labels"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# The Secret that the component `api-keys` needs.
KEYS = f"secret/{SPACE}/text-classifier-api-keys"
DEPLOYMENT = f"deployment/{SPACE}/text-classifier"


def sentence(capsys: Captured) -> str:
    """The error message of the command, without what a progress bar left on its line."""
    return capsys.readouterr().err.rpartition("whetstone: ")[2].strip()


class World:
    """A working folder with an overlay, data and packages, and the stand-in's cluster."""

    def __init__(self, folder: Path, packages: dict[str, Path], images: dict[str, Any]) -> None:
        self.folder = folder
        self.packages = packages
        self.state_file = folder / "bin" / "cluster.json"
        empty: dict[str, Any] = {"objects": {}, "calls": [], "faults": {}, "looked": {}}
        self.write(empty | {"images": images, "polls": 2, "others": {KEYS: ["api-keys"]}})

    @property
    def state(self) -> dict[str, Any]:
        """Everything that the stand-in knows."""
        content: dict[str, Any] = json.loads(self.state_file.read_text("utf-8"))
        return content

    def write(self, state: dict[str, Any]) -> None:
        """Change what the stand-in knows."""
        self.state_file.write_text(json.dumps(state), "utf-8")

    def faults(self, **by_verb: list[str | None]) -> None:
        """Let the next calls of kubectl fail, by verb; without arguments, none fails."""
        faults = {verb.replace("_", "-"): kinds for verb, kinds in by_verb.items()}
        self.write(self.state | {"faults": faults})

    @property
    def image(self) -> str | None:
        """The image that the cluster's Deployment runs."""
        deployment = self.state["objects"].get(DEPLOYMENT)
        return deployment and deployment["spec"]["template"]["spec"]["containers"][0]["image"]

    def words(self, package: str, image: str, *more: str, champion: str = "current") -> list[str]:
        """The command line of a release of one of the packages."""
        words = ["release", str(self.packages[package]), "--overlay", OVERLAY]
        words += ["--champion", champion, "--data", "test.csv", "--image", image]
        return [*words, "--watch", "0", "--apply", *more]

    def release(self, package: str, image: str, *more: str, champion: str = "current") -> int:
        """Release one of the packages; the exit status."""
        return main(self.words(package, image, *more, champion=champion))

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "whetstone", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def killed(self, words: list[str]) -> str:
        """Run a command until the stand-in kills it; its output."""
        process = self.start(words)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, output
        return output

    def wait_for(self, process: subprocess.Popen[Any], step: str) -> None:
        """Return as soon as the release of the second package is at a step."""
        path = Path("releases", f"{self.version('second')}.json")
        end = time.monotonic() + 60
        while not (path.exists() and f'"step": "{step}"' in path.read_text("utf-8")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.001)

    @property
    def records(self) -> dict[str, Record]:
        """The records by id."""
        return {
            path.stem: Record.model_validate_json(path.read_bytes())
            for path in Path("releases").glob("*.json")
        }

    def version(self, package: str) -> str:
        """The version of one of the packages."""
        return read_manifest(self.packages[package]).version

    def tree(self) -> dict[str, bytes]:
        """Every file of the working folder, without the stand-in's."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.parent.name != "bin"
        }

    @property
    def overlay(self) -> str:
        """The kustomization of the overlay."""
        return Path(OVERLAY, "kustomization.yaml").read_text("utf-8")


def rename_first_label(package: Path) -> None:
    """Give the first label of a package another name; the package stays sound."""
    manifest = read_manifest(package)
    old, *others = manifest.labels
    golden = [
        answer.model_copy(update={"label": "renamed"} if answer.label == old else {})
        for answer in read_golden(package)
    ]
    write_golden(package, golden)
    files = {**manifest.files, GOLDEN_FILE: file_record(package / GOLDEN_FILE)}
    changed = manifest.model_copy(update={"labels": ("renamed", *others), "files": files})
    version = package_version(files, changed)
    write_manifest(package, changed.model_copy(update={"version": version}))


def program(folder: Path, name: str, script: str) -> Path:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
