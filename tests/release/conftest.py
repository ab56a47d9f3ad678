"""Real packages, servers and overlays; the cluster is a stand-in, tests/kubectl.py."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.package.manifest import read_manifest
from service.package.package import seal_package
from tests.conftest import ROOT
from tests.release.world import (
    BROKEN,
    CRASHING,
    FIRST,
    OVERLAY,
    SECOND,
    WRONG,
    World,
    program,
    rename_first_label,
)
from tests.servers import serving
from tests.service.test_bento import empty_the_store
from training.registry.register import register
from whetstone.main import main

CRASH_LOG = [
    *(f"line {number}" for number in range(50)),
    "WHETSTONE_TOKEN=hunter2 was ignored",
    "golden text 3 is answered differently",
]


@pytest.fixture(scope="package")
def packages(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A champion, an equal challenger of another version, and a package with another label."""
    folder = tmp_path_factory.mktemp("packages")
    first = shutil.copytree(tiny_package, folder / "first")
    second = shutil.copytree(tiny_package, folder / "second")
    manifest = read_manifest(second)
    seal_package(second, manifest.model_copy(update={"temperature": manifest.temperature * 1.001}))
    labels = shutil.copytree(tiny_package, folder / "labels")
    rename_first_label(labels)
    return {"first": first, "second": second, "labels": labels}


@pytest.fixture(scope="package")
def images(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The port of a real server for each image; WRONG serves the first package."""

    def settings(name: str) -> dict[str, str]:
        # Each has a home of its own, because the metrics are there.
        home = tmp_path_factory.mktemp("home")
        return {"WHETSTONE_PACKAGE": str(packages[name]), "BENTOML_HOME": str(home)}

    with (
        serving("service.service:TextClassifier", settings("first")) as a,
        serving("service.service:TextClassifier", settings("second")) as b,
    ):
        first, second = (int(address.rpartition(":")[2]) for address in (a, b))
        yield {
            FIRST: {"port": first},
            SECOND: {"port": second},
            WRONG: {"port": first},
            BROKEN: {"waiting": "ImagePullBackOff"},
            CRASHING: {"crashes": 1, "log": CRASH_LOG},
        }


def make_world(
    folder: Path,
    packages: dict[str, Path],
    images: dict[str, Any],
    recipe: Path,
    patches: pytest.MonkeyPatch,
) -> World:
    """A working folder, which becomes the current one, and a cluster in which nothing runs."""
    empty_the_store()
    register(packages["first"])
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    # test.csv has enough rows for a verdict; few.csv has too few.
    header, *rows = (recipe.parent / "test.csv").read_text("utf-8").splitlines()
    (folder / "test.csv").write_text("\n".join([header, *rows * 6]) + "\n", "utf-8")
    (folder / "few.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
    programs = folder / "bin"
    programs.mkdir()
    program(programs, "kubectl", f'exec {sys.executable} {ROOT}/tests/kubectl.py "$@"')
    patches.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    patches.setenv("STAND_IN", str(programs / "cluster.json"))
    patches.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    patches.chdir(folder)
    patches.setattr("release.cluster.pods.POLL_SECONDS", 0.05)
    patches.setattr("release.cluster.pods.ATTEMPT_SECONDS", 1.0)
    patches.setattr("release.cluster.rollout.SETTLE_SECONDS", 2.0)
    patches.setattr("release.cluster.rollout.DEADLINE_HOLDS_SECONDS", 0.2)
    patches.setattr("release.cluster.kubectl.PAUSE_SECONDS", 0.05)
    return World(folder, packages, images)


@pytest.fixture
def world(
    packages: dict[str, Path],
    images: dict[str, Any],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """Nothing is deployed, and the champion's package is registered."""
    return make_world(tmp_path, packages, images, tiny_recipe, monkeypatch)


@pytest.fixture(scope="package")
def first_release(
    packages: dict[str, Path],
    images: dict[str, Any],
    tiny_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The working folder and the cluster after the first release, to be copied: it takes long."""
    folder = tmp_path_factory.mktemp("first-release")
    with pytest.MonkeyPatch.context() as patches:
        made = make_world(folder, packages, images, tiny_recipe, patches)
        assert made.release("first", FIRST, champion="none") == 0
    return folder


@pytest.fixture
def deployed(first_release: Path, world: World) -> World:
    """The first version was released and runs."""
    shutil.copytree(first_release, world.folder, dirs_exist_ok=True)
    return world


@pytest.fixture
def unfinished(deployed: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The second version was released; the release after it is broken and could not be undone."""
    assert deployed.release("second", SECOND) == 0
    monkeypatch.setattr("release.cluster.kubectl.PATIENCE_SECONDS", 0.2)
    # Its first pod is fine, and the others never start.
    state = deployed.state
    state["images"][BROKEN]["by_name"] = {"-first": state["images"][FIRST]}
    deployed.write(state)
    deployed.faults(apply=[None, None, "forbidden"])
    assert deployed.release("first", BROKEN) == 1
    return deployed


@pytest.fixture
def stuck(unfinished: World) -> World:
    """As `unfinished`, and the second version cannot be restored any more."""
    state = unfinished.state
    state["images"][SECOND] = {"waiting": "ImagePullBackOff"}
    unfinished.write(state)
    assert main(["rollback", "--overlay", OVERLAY]) == 1
    assert unfinished.records[f"{unfinished.version('first')}-2"].outcome == "unfinished"
    return unfinished
