"""Releases: real packages, servers, overlays, processes; the cluster is a stand-in, kubectl.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
import yaml

from service.model_package import (
    GOLDEN_FILE,
    file_record,
    package_version,
    read_golden,
    read_manifest,
    seal_package,
    write_golden,
    write_manifest,
)
from tests.conftest import ROOT
from tests.servers import classify, get, serving
from tests.test_bento import empty_the_store
from training.cli import main
from training.register import register
from training.release.images import state_label_change
from training.release.records import Record

Captured = pytest.CaptureFixture[str]
OVERLAY = "k8s/overlays/staging"
SPACE = "whetstone-staging"
REPOSITORY = "registry.example.com/text-classifier"
FIRST, SECOND = f"{REPOSITORY}:first", f"{REPOSITORY}:second"
BROKEN, WRONG, LABELS = f"{REPOSITORY}:broken", f"{REPOSITORY}:wrong", f"{REPOSITORY}:labels"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
DEPLOYMENT = f"deployment/{SPACE}/text-classifier"


def sentence(capsys: Captured) -> str:
    """What the command ended with; a progress bar leaves a line without its end before it."""
    return capsys.readouterr().err.rpartition("whetstone: ")[2].strip()


class World:
    """A working folder with an overlay, data and packages, and the stand-in's cluster."""

    def __init__(self, folder: Path, packages: dict[str, Path], images: dict[str, Any]) -> None:
        self.folder = folder
        self.packages = packages
        self.state_file = folder / "bin" / "cluster.json"
        self.write(
            {"objects": {}, "images": images, "polls": 2, "calls": [], "faults": {}, "looked": 0}
        )

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state_file.read_text("utf-8"))
        return found

    def write(self, state: dict[str, Any]) -> None:
        self.state_file.write_text(json.dumps(state), "utf-8")

    def faults(self, **by_verb: list[str | None]) -> None:
        changed = {name.replace("_", "-"): told for name, told in by_verb.items()}
        self.write(self.state | {"faults": changed})

    @property
    def image(self) -> str | None:
        """What the cluster's Deployment runs."""
        one = self.state["objects"].get(DEPLOYMENT)
        return one and one["spec"]["template"]["spec"]["containers"][0]["image"]

    def words(self, package: str, image: str, *more: str, champion: str = "current") -> list[str]:
        """A release of one of the packages."""
        words = ["release", str(self.packages[package]), "--overlay", OVERLAY]
        words += ["--champion", champion, "--data", "test.csv", "--image", image]
        return [*words, "--watch", "0", "--apply", *more]

    def release(self, package: str, image: str, *more: str, champion: str = "current") -> int:
        return main(self.words(package, image, *more, champion=champion))

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """The command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "training", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def killed(self, words: list[str]) -> str:
        """Run it until somebody kills it; what it said."""
        process = self.start(words)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, said
        return said

    def wait_for(self, process: subprocess.Popen[Any], step: str) -> None:
        """Return as soon as the release of the second package is at a step."""
        path = Path("releases", f"{self.version('second')}.json")
        end = time.monotonic() + 60
        while not (path.exists() and f'"step": "{step}"' in path.read_text("utf-8")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.001)

    @property
    def records(self) -> dict[str, Record]:
        return {
            path.stem: Record.model_validate_json(path.read_bytes())
            for path in Path("releases").glob("*.json")
        }

    def version(self, package: str) -> str:
        return read_manifest(self.packages[package]).version

    def tree(self) -> dict[str, bytes]:
        """Every file, but the stand-in's."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.parent.name != "bin"
        }

    @property
    def overlay(self) -> str:
        return Path(OVERLAY, "kustomization.yaml").read_text("utf-8")


def rename_first_label(package: Path) -> None:
    """Turn a package into another sound one, with one label for another."""
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


@pytest.fixture(scope="module")
def packages(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Champion, an equal challenger of another version, and one with other labels."""
    folder = tmp_path_factory.mktemp("packages")
    first = shutil.copytree(tiny_package, folder / "first")
    second = shutil.copytree(tiny_package, folder / "second")
    manifest = read_manifest(second)
    seal_package(second, manifest.model_copy(update={"temperature": manifest.temperature * 1.001}))
    labels = shutil.copytree(tiny_package, folder / "labels")
    rename_first_label(labels)
    return {"first": first, "second": second, "labels": labels}


@pytest.fixture(scope="module")
def images(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """By image the port of a real server of its package; one serves another than its name says."""

    def settings(name: str) -> dict[str, str]:
        # A home each: the metrics are there.
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
        }


@pytest.fixture
def world(
    packages: dict[str, Path],
    images: dict[str, Any],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """Nothing is deployed, and the champion's package is registered."""
    empty_the_store()
    register(packages["first"])
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    # So many rows decide; of so few as the recipe has, nothing does.
    header, *rows = (tiny_recipe.parent / "test.csv").read_text("utf-8").splitlines()
    (tmp_path / "test.csv").write_text("\n".join([header, *rows * 6]) + "\n", "utf-8")
    (tmp_path / "few.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/kubectl.py "$@"\n', "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder / "cluster.json"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.release.rollout.POLL_SECONDS", 0.05)
    monkeypatch.setattr("training.release.rollout.ATTEMPT_SECONDS", 1.0)
    monkeypatch.setattr("training.release.rollout.SETTLE_SECONDS", 2.0)
    monkeypatch.setattr("training.release.rollout.DEADLINE_HOLDS_SECONDS", 0.2)
    monkeypatch.setattr("training.cluster.PAUSE_SECONDS", 0.05)
    return World(tmp_path, packages, images)


@pytest.fixture(scope="module")
def after_first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs it leaves the folder of a release."""
    return tmp_path_factory.mktemp("deployed") / "world"


@pytest.fixture
def deployed(world: World, after_first_release: Path) -> World:
    """The first version runs, released: once, and each test gets a copy of what that left."""
    if after_first_release.exists():
        shutil.copytree(after_first_release, world.folder, dirs_exist_ok=True)
    else:
        assert world.release("first", FIRST, champion="none") == 0
        shutil.copytree(world.folder, after_first_release)
    return world


def test_a_plan_shows_everything_and_writes_nothing(deployed: World, capsys: Captured) -> None:
    before, objects = deployed.tree(), deployed.state["objects"]
    words = [one for one in deployed.words("second", SECOND) if one != "--apply"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"image: {SECOND}" in out
    assert '+    newTag: "second"' in out
    assert f"+++ deployment.{SPACE}.text-classifier" in out
    assert "promote:" in out and "--apply releases it" in out
    assert deployed.tree() == before
    assert deployed.state["objects"] == objects
    assert not {call[0] for call in deployed.state["calls"][-6:]} & {"apply", "delete"}


def test_first_release_then_another_then_back(world: World, capsys: Captured) -> None:
    before = world.overlay
    assert world.release("first", FIRST, champion="none") == 0
    assert world.image == FIRST
    # Two lines differ: comments, order and quotes are as they were.
    changed = set(world.overlay.splitlines()) ^ set(before.splitlines())
    assert changed == {'    newTag: "first"', '    newTag: "unreleased"'}
    first = world.records[world.version("first")]
    assert first.outcome == "released"
    assert first.previous and first.previous.kind == "nothing"

    assert world.release("second", SECOND) == 0
    assert world.image == SECOND
    second = world.records[world.version("second")]
    assert second.verdict and second.verdict["outcome"] == "promote"
    assert second.champion_version == world.version("first")
    assert second.previous and second.previous.kind == "release"
    assert len(second.pods) == 2
    assert second.render and yaml.safe_load_all(Path("releases", second.render.file).read_text())

    capsys.readouterr()
    # However the overlay is named, it is the same one.
    there = str(world.folder / OVERLAY)
    assert main(["rollback", "--overlay", there, "--watch", "0"]) == 0
    assert world.image == FIRST
    assert '"first"' in world.overlay
    assert "the golden texts are answered as recorded" in capsys.readouterr().out
    # Once more there is nothing earlier, and by its version the second is found.
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 1
    assert "nothing was released" in sentence(capsys)
    version = world.version("second")
    assert main(["rollback", version, "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert world.image == SECOND
    assert main(["history", "--overlay", str(world.folder / OVERLAY)]) == 0
    out = capsys.readouterr().out
    assert out.count("rolled back to") == 2 and "promote" in out


def test_a_broken_image_leaves_everything_as_it_was(deployed: World, capsys: Captured) -> None:
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    assert deployed.release("second", BROKEN) == 1
    line = sentence(capsys)
    assert "ImagePullBackOff" in line and "what ran before runs again" in line
    assert deployed.image == FIRST
    assert deployed.overlay == overlay
    assert set(deployed.state["objects"]) == objects
    assert deployed.records[deployed.version("second")].outcome == "rolled back"


def test_a_first_release_that_fails_leaves_nothing(world: World, capsys: Captured) -> None:
    overlay = world.overlay
    assert world.release("first", BROKEN, champion="none") == 1
    assert "ImagePullBackOff" in sentence(capsys)
    assert world.state["objects"] == {}
    assert world.overlay == overlay


def test_pods_that_serve_something_else_are_undone(deployed: World, capsys: Captured) -> None:
    assert deployed.release("second", WRONG) == 1
    assert f"serves version {deployed.version('first')}" in sentence(capsys)
    assert deployed.image == FIRST


def test_golden_texts_are_asked_of_every_pod(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def verify(url: str, _package: str, _key: Path | None) -> str:
        from service.classifier import GoldenMismatchError

        asked.append(url)
        raise GoldenMismatchError(f"{url} answers golden text 3 otherwise")

    monkeypatch.setattr("training.release.rollout.verify_service", verify)
    assert deployed.release("second", SECOND) == 1
    assert "answers golden text 3 otherwise" in sentence(capsys)
    assert len(asked) == 1
    assert deployed.image == FIRST


def test_an_apply_that_is_refused_half_way_is_undone(deployed: World, capsys: Captured) -> None:
    deployed.faults(apply=["half"])
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    assert deployed.release("second", SECOND) == 1
    assert "Forbidden" in sentence(capsys)
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    assert set(deployed.state["objects"]) == objects


def test_a_cluster_that_is_away_for_a_moment_is_waited_for(deployed: World) -> None:
    deployed.faults(get=[None] * 8 + ["refused"] * 6)
    assert deployed.release("second", SECOND) == 0
    assert deployed.image == SECOND


@pytest.mark.parametrize(("looks", "asked"), [(3, 2), (4, 2), (5, 1)])
def test_pods_that_an_autoscaler_starts_meanwhile_are_waited_for_and_asked(
    world: World, looks: int, asked: int
) -> None:
    """Before they are checked and while they are; while they are watched they may come, too."""
    world.write(world.state | {"scales": looks})
    assert world.release("first", FIRST, champion="none") == 0
    pods = world.records[world.version("first")].pods
    assert len(pods) == asked
    forwarded = [call[2] for call in world.state["calls"] if call[0] == "port-forward"]
    # By /info and by the golden texts; once or twice more for the metrics.
    assert all(forwarded.count(f"pod/{name}") >= 3 for name in pods)
    assert world.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 2


def test_a_pod_of_the_autoscaler_that_no_node_takes_does_not_end_a_good_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.release.rollout.ROLLOUT_SECONDS", 5.0)
    world.write(world.state | {"scales": 4, "full": True})
    assert world.release("first", FIRST, champion="none") == 0
    assert world.state["objects"][DEPLOYMENT]["status"]["unavailableReplicas"] == 1
    assert len(world.records[world.version("first")].pods) == 1
    # What runs can be said, too.
    assert main([one for one in world.words("second", SECOND) if one != "--apply"]) == 0


def test_replicas_that_were_applied_once_do_not_become_one(deployed: World) -> None:
    """As `kubectl apply` has it: what was in the last manifest and is in this one no more goes."""
    state = deployed.state
    one = state["objects"][DEPLOYMENT]
    one["spec"]["replicas"] = 3
    applied = json.loads(one["metadata"]["annotations"][LAST_APPLIED])
    applied["spec"]["replicas"] = 3
    one["metadata"]["annotations"][LAST_APPLIED] = json.dumps(applied)
    deployed.write(state)
    assert deployed.release("second", BROKEN) == 1
    assert deployed.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 3
    assert deployed.release("second", SECOND) == 0
    assert deployed.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 3


def test_the_old_pods_are_looked_at_when_the_release_begins(
    deployed: World, images: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_meanwhile(*_: object) -> None:
        for _number in range(100):
            classify(f"http://127.0.0.1:{images[FIRST]['port']}", {"input": "where is my order"})

    monkeypatch.setattr("training.release.images.state_label_change", asked_meanwhile)
    assert deployed.release("second", SECOND) == 0
    first, second = (deployed.records[deployed.version(one)].watched for one in ("first", "second"))
    assert first and first["before_since"] == "the pods started"
    assert second and second["before_since"] == "the release began"


def test_what_was_changed_by_hand_since_the_last_release_comes_back(deployed: World) -> None:
    state = deployed.state
    container = state["objects"][DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "WHETSTONE_UI", "value": "1e5"}]
    deployed.write(state)
    assert deployed.release("second", BROKEN) == 1
    previous = deployed.records[deployed.version("second")].previous
    assert previous and previous.kind == "live" and previous.render
    # kubectl would read 1e5 without quotes as a number.
    assert '"1e5"' in Path("releases", previous.render.file).read_text("utf-8")
    found = deployed.state["objects"][DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    assert found["env"] == container["env"]


def test_what_another_cluster_is_in_the_middle_of_is_not_undone_here(
    deployed: World, capsys: Captured
) -> None:
    deployed.faults(apply=["kill after"])
    deployed.killed(deployed.words("second", SECOND))
    deployed.faults()
    calls = len(deployed.state["calls"])
    for words in (["rollback", "--overlay", OVERLAY], deployed.words("second", SECOND)):
        assert main([*words, "--context", "elsewhere"]) == 1
        assert "is unfinished in stand-in, and kubectl points to elsewhere" in sentence(capsys)
    verbs = {call[0] for call in deployed.state["calls"][calls:]}
    assert not verbs & {"apply", "delete"}
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished", "--watch", "0"]) == 0
    assert deployed.image == FIRST


def test_the_context_is_the_one_that_was_current_at_the_beginning(deployed: World) -> None:
    """Whichever somebody points kubectl to while an image is built."""
    assert deployed.release("second", BROKEN) == 1
    assert main(["rollback", deployed.version("first"), "--overlay", OVERLAY, "--watch", "0"]) == 0
    asked = [call for call in deployed.state["calls"] if call[0] != "config"]
    assert {"apply", "diff", "get", "port-forward"} <= {call[0] for call in asked}
    assert all("--context=stand-in" in call for call in asked)
    assert {one.context for one in deployed.records.values()} == {"stand-in"}


def test_inside_of_a_cluster_there_is_no_context(world: World) -> None:
    world.faults(config=["no context"])
    assert world.release("first", FIRST, champion="none") == 0
    assert not [call for call in world.state["calls"] if "--context" in " ".join(call)]
    assert world.records[world.version("first")].context is None


@pytest.mark.slow
def test_a_rollback_after_a_release_that_had_changed_nothing_changes_nothing(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND) == 0
    deployed.faults(diff=["kill before"])
    deployed.killed(deployed.words("first", FIRST))
    deployed.faults()
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert "given up" in capsys.readouterr().out
    assert deployed.image == SECOND
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished", "--watch", "0"]) == 0
    assert "no release of k8s/overlays/staging is unfinished" in capsys.readouterr().out
    assert deployed.image == SECOND


def test_a_rollback_goes_on_without_golden_texts_where_its_package_is_gone(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND) == 0
    empty_the_store()
    path = Path("releases", f"{deployed.version('first')}.json")
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | {"package": "file:///nowhere/first/1"}), "utf-8")
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    out = capsys.readouterr().out
    assert "warning: no golden text will be asked" in out
    assert deployed.image == FIRST


def test_what_never_worked_may_be_replaced(world: World, capsys: Captured) -> None:
    """Such as an overlay that was applied before it had an image."""
    assert world.release("first", FIRST, champion="none") == 0
    state = world.state
    one = state["objects"][DEPLOYMENT]
    one["spec"]["template"]["spec"]["containers"][0]["image"] = BROKEN
    state.pop("was", None)
    shutil.rmtree("releases")
    world.write(state)
    assert world.release("second", BROKEN, champion="none") == 1
    assert "the cluster is as it was" in sentence(capsys)
    assert world.image == BROKEN
    assert world.release("second", SECOND, champion="none") == 0
    assert world.image == SECOND


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["pipe", "terminal"])
def test_whoever_watches_may_go_the_release_is_still_undone(deployed: World, gone: str) -> None:
    words = [sys.executable, "-m", "training", *deployed.words("second", BROKEN)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe() if gone == "pipe" else os.openpty()
    process = subprocess.Popen(
        words, env=environment, stdout=writing, stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(writing)
    deployed.wait_for(process, "apply")
    os.close(reading)
    assert process.wait(timeout=60) != 0
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "rolled back"


def test_what_was_deployed_by_hand_comes_back(deployed: World, capsys: Captured) -> None:
    shutil.rmtree("releases")
    before = deployed.state["objects"][DEPLOYMENT]["spec"]
    assert deployed.release("second", BROKEN) == 1
    record = deployed.records[deployed.version("second")]
    assert record.previous and record.previous.kind == "live" and record.previous.render
    saved = Path("releases", record.previous.render.file).read_text("utf-8")
    for word in ("resourceVersion", "uid", "last-applied", '"status":', "clusterIP", '"replicas":'):
        assert word not in saved
    assert deployed.image == FIRST
    assert deployed.state["objects"][DEPLOYMENT]["spec"] == before


def test_a_worse_one_and_other_labels_are_refused(deployed: World, capsys: Captured) -> None:
    overlay, calls = deployed.overlay, len(deployed.state["calls"])
    assert deployed.release("second", SECOND, "--min_macro_f1", "1.0") == 3
    assert "min_macro_f1" in capsys.readouterr().out or deployed.records
    assert deployed.records[deployed.version("second")].outcome == "refused"
    verbs = {call[0] for call in deployed.state["calls"][calls:]}
    assert not verbs & {"apply", "delete"}
    assert (deployed.overlay, deployed.image) == (overlay, FIRST)


def test_few_rows_decide_nothing_unless_that_is_accepted(deployed: World, capsys: Captured) -> None:
    few = ["--data", "few.csv"]
    assert deployed.release("second", SECOND, *few) == 4
    assert "nothing was released" in capsys.readouterr().out
    assert deployed.image == FIRST
    refused = deployed.records[deployed.version("second")]
    assert (refused.outcome, refused.accepted_inconclusive) == ("refused", False)
    assert deployed.release("second", SECOND, *few, "--accept_inconclusive") == 0
    assert deployed.image == SECOND
    assert deployed.records[f"{deployed.version('second')}-2"].accepted_inconclusive


def test_other_labels_are_named_recorded_and_shown_at_info(
    deployed: World, capsys: Captured
) -> None:
    old = set(read_manifest(deployed.packages["first"]).labels)
    new = set(read_manifest(deployed.packages["labels"]).labels)
    (gone,), (come,) = old - new, new - old
    assert deployed.release("labels", LABELS) == 3
    out = capsys.readouterr().out
    assert repr(gone) in out and repr(come) in out
    assert deployed.image == FIRST
    # Its image cannot be pulled here: what is asked is what was compared and registered.
    assert deployed.release("labels", LABELS, "--allow_label_change") == 1
    record = deployed.records[f"{deployed.version('labels')}-2"]
    change = {"from": deployed.version("first"), "gone": [gone], "come": [come]}
    assert record.label_change == change
    stored = bentoml.models.get(f"text-classifier:{deployed.version('labels')}").path
    with serving("service.service:TextClassifier", {"WHETSTONE_PACKAGE": stored}) as address:
        assert json.loads(get(address, "/info")[1])["provenance"]["label_change"] == change
    # The same package as one that changes nothing: nobody is told of a change any more.
    state_label_change(f"text-classifier:{deployed.version('labels')}", None)
    assert not read_manifest(Path(stored)).provenance["label_change"]


# Docker as far as a release needs it: a built image answers by the server of its version.
ENGINE = """#!{python}
import json, os, signal, sys
from pathlib import Path
here = Path(__file__).parent
file = here / "engine.json"
state = json.loads(file.read_text()) if file.exists() else {{"images": [], "asked": []}}
words = sys.argv[1:]
state["asked"].append(words)
verb = words[0]
if verb == "build":
    state["images"].append(words[words.index("--tag") + 1])
status = 0
if verb == "image":
    status = 0 if words[2] in state["images"] else 1
file.write_text(json.dumps(state))
faults = here / "engine-faults"
if faults.exists() and faults.read_text() == verb:
    faults.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
if verb == "info":
    print("28.0")
elif verb == "history":
    print(json.dumps({{"CreatedBy": "CMD bash", "Size": "1"}}))
elif verb == "run":
    print("0123456789ab")
elif verb == "port":
    print("127.0.0.1:{port}")
elif verb == "inspect":
    print("running")
sys.exit(status)
"""


@pytest.fixture
def with_engine(deployed: World, images: dict[str, Any]) -> World:
    """docker is there, what it runs serves the second package, and the cluster knows the image."""
    engine = deployed.state_file.with_name("docker")
    engine.write_text(
        ENGINE.format(python=sys.executable, port=images[SECOND]["port"]), encoding="utf-8"
    )
    engine.chmod(0o755)
    return deployed


def engine_asked(world: World) -> list[list[str]]:
    found: list[list[str]] = json.loads(
        world.state_file.with_name("engine.json").read_text("utf-8")
    )["asked"]
    return found


def from_a_bento(world: World, *more: str) -> list[str]:
    """A release that makes bento and image itself."""
    words = world.words("second", SECOND, "--engine", "docker", *more)
    place = words.index("--image")
    return words[:place] + words[place + 2 :]


def cluster_knows(world: World, images: dict[str, Any]) -> None:
    """Every built image is one that the second server answers for."""
    state = world.state
    for name in json.loads(world.state_file.with_name("engine.json").read_text("utf-8"))["images"]:
        state["images"][name] = images[SECOND]
    world.write(state)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["build", "run", "push"])
def test_from_bento_to_pods_also_when_killed_on_the_way(
    with_engine: World, images: dict[str, Any], at: str, capsys: Captured
) -> None:
    words = from_a_bento(with_engine, "--push")
    fault = with_engine.state_file.with_name("engine-faults")
    fault.write_text(at, "utf-8")
    with_engine.killed(words)
    killed = with_engine.records[with_engine.version("second")]
    assert (killed.outcome, killed.step) == ("unfinished", "image")
    bento = killed.bento
    assert bento and with_engine.image == FIRST
    if at == "build":
        # The engine had built it, and nobody was there to be told: it is built again, quickly.
        assert killed.image is None
    cluster_knows(with_engine, images)
    assert main(words) == 0
    assert "was broken off at image: going on with it" in capsys.readouterr().out
    record = with_engine.records[with_engine.version("second")]
    # No second bento, and no second build of an image that was there.
    assert record.bento == bento
    name = f"{REPOSITORY}:{bento.partition(':')[2]}"
    assert (with_engine.image, record.image, record.pushed) == (name, name, f"docker push {name}")
    verbs = [call[0] for call in engine_asked(with_engine)]
    assert verbs.count("build") == (2 if at == "build" else 1)
    # Every container that was started and lived to be known was removed again.
    assert verbs.count("rm") >= verbs.count("run") - (at == "run")
    run = next(call for call in engine_asked(with_engine) if call[0] == "run")
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"} <= set(run)
    pinned = bentoml.bentos.get(bento).info.all_models
    version = with_engine.version("second")
    assert [str(model.tag) for model in pinned] == [f"text-classifier:{version}"]


@pytest.mark.slow
def test_an_image_that_answers_otherwise_goes_nowhere(
    with_engine: World, images: dict[str, Any], capsys: Captured
) -> None:
    engine = with_engine.state_file.with_name("docker")
    told = engine.read_text("utf-8")
    engine.write_text(
        told.replace(str(images[SECOND]["port"]), str(images[FIRST]["port"])), encoding="utf-8"
    )
    before = with_engine.overlay
    assert main(from_a_bento(with_engine, "--push")) == 1
    assert "tried here, is not what it should be" in sentence(capsys)
    assert (with_engine.image, with_engine.overlay) == (FIRST, before)
    verbs = [call[0] for call in engine_asked(with_engine)]
    assert "push" not in verbs and verbs[-1] == "rm"
    assert with_engine.records[with_engine.version("second")].outcome == "failed"


def test_a_key_that_is_not_there_stops_before_anything(deployed: World, capsys: Captured) -> None:
    assert deployed.release("second", SECOND, "--api_key_file", "nothing") == 1
    assert "nothing" in sentence(capsys)
    assert deployed.image == FIRST


@pytest.mark.slow
def test_an_overlay_that_somebody_edits_meanwhile_is_left_alone(
    deployed: World, capsys: Captured
) -> None:
    deployed.faults(apply=["kill after"])
    deployed.killed(deployed.words("second", SECOND))
    file = Path(OVERLAY, "kustomization.yaml")
    file.write_text(deployed.overlay + "# a note of somebody\n", "utf-8")
    deployed.faults()
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert "was edited meanwhile" in capsys.readouterr().out
    assert deployed.image == FIRST
    assert "# a note of somebody" in deployed.overlay


def test_nothing_runs_and_unknown_champions(world: World, capsys: Captured) -> None:
    assert world.release("first", FIRST) == 1
    assert "--champion none" in sentence(capsys)
    assert world.release("first", FIRST, champion="text-classifier:000000000000") == 1
    assert "000000000000" in sentence(capsys)
    assert world.state["objects"] == {}


# Where the process is killed: at a call of kubectl (before or after it did its work).
KILLS: list[dict[str, list[str | None]]] = [
    {"get": ["kill before"]},
    {"get": [None] * 3 + ["kill before"]},
    {"get": [None] * 4 + ["kill before"]},
    {"diff": ["kill before"]},
    {"diff": ["kill after"]},
    {"apply": ["kill before"]},
    {"apply": ["kill after"]},
    {"apply": ["half"], "get": [None] * 9 + ["kill before"]},
    {"get": [None] * 8 + ["kill after"]},
    {"get": [None] * 10 + ["kill after"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("faults", KILLS, ids=json.dumps)
def test_killed_at_any_call_the_next_run_releases(
    deployed: World, faults: dict[str, list[str | None]], capsys: Captured
) -> None:
    deployed.faults(**faults)
    deployed.killed(deployed.words("second", SECOND))
    deployed.faults()
    assert deployed.release("second", SECOND) == 0
    assert "was broken off at" in capsys.readouterr().out
    assert deployed.image == SECOND
    assert '"second"' in deployed.overlay
    outcomes = [one.outcome for one in deployed.records.values()]
    assert "unfinished" not in outcomes and outcomes.count("released") == 2


@pytest.mark.slow
def test_killed_while_it_is_undone_the_next_run_undoes(deployed: World, capsys: Captured) -> None:
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    deployed.faults(apply=[None, "kill before"])
    deployed.killed(deployed.words("second", BROKEN))
    deployed.faults()
    assert main(["rollback", "--overlay", OVERLAY]) == 0
    assert "was broken off at put back: undoing it" in capsys.readouterr().out
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    assert set(deployed.state["objects"]) == objects
    assert deployed.records[deployed.version("second")].outcome == "rolled back"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["verify", "compare", "register"])
def test_killed_at_an_early_step_the_next_run_goes_on(
    deployed: World, step: str, capsys: Captured
) -> None:
    process = deployed.start(deployed.words("second", SECOND))
    deployed.wait_for(process, step)
    process.kill()
    process.communicate()
    assert deployed.release("second", SECOND) == 0
    out = capsys.readouterr().out
    # Between looking and killing it may have come further.
    assert "going on with it" in out or "undoing it" in out
    assert deployed.image == SECOND


@pytest.mark.slow
def test_another_package_after_a_killed_one(deployed: World, capsys: Captured) -> None:
    deployed.faults(apply=["kill after"])
    deployed.killed(deployed.words("second", SECOND))
    deployed.faults()
    assert deployed.release("first", FIRST) == 0
    assert "undoing it" in capsys.readouterr().out
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "rolled back"


def test_two_at_once_and_a_lock_that_dies_with_its_owner(deployed: World, capsys: Captured) -> None:
    code = (
        "import sys, time\nfrom training.release.records import Records\n"
        "with Records().locked():\n    print('locked', flush=True)\n    time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout and owner.stdout.readline() == "locked\n"
    try:
        assert deployed.release("second", SECOND) == 1
        assert "another release or rollback runs" in sentence(capsys)
        assert deployed.image == FIRST
    finally:
        owner.kill()
        owner.communicate()
    assert deployed.release("second", SECOND) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_while_it_watches_it_is_undone(deployed: World, number: int) -> None:
    words = [*deployed.words("second", SECOND), "--watch", "60"]
    process = deployed.start(words)
    deployed.wait_for(process, "watch")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "rolled back"


def test_when_nothing_can_be_put_back_it_says_so_loudly(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.release.rollout.PATIENCE_SECONDS", 0.2)
    deployed.faults(apply=[None, "forbidden"])
    assert deployed.release("second", BROKEN) == 1
    line = sentence(capsys)
    assert "COULD NOT BE PUT BACK" in line and "whetstone rollback --overlay" in line
    assert "--context stand-in" in line and "VERSION" in line and "--abandon" in line
    assert main(["rollback", "--overlay", OVERLAY]) == 0
    assert deployed.image == FIRST


@pytest.fixture
def unfinished(deployed: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A release after the second is in the cluster, broken, and could not be put back."""
    assert deployed.release("second", SECOND) == 0
    monkeypatch.setattr("training.release.rollout.PATIENCE_SECONDS", 0.2)
    deployed.faults(apply=[None, "forbidden"])
    assert deployed.release("first", BROKEN) == 1
    return deployed


@pytest.fixture
def stuck(unfinished: World) -> World:
    """And the second comes back no more."""
    state = unfinished.state
    state["images"][SECOND] = {"waiting": "ImagePullBackOff"}
    unfinished.write(state)
    assert main(["rollback", "--overlay", OVERLAY]) == 1
    assert unfinished.records[f"{unfinished.version('first')}-2"].outcome == "unfinished"
    return unfinished


def test_after_one_that_was_abandoned_the_last_that_was_released_comes_back(
    unfinished: World, capsys: Captured
) -> None:
    assert main(["rollback", "--overlay", OVERLAY, "--abandon"]) == 0
    assert unfinished.image == BROKEN
    assert unfinished.release("first", FIRST) == 1
    assert "(whetstone rollback where a release was abandoned" in sentence(capsys)
    for image in (SECOND, FIRST):
        assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
        assert unfinished.image == image


def test_what_cannot_be_undone_does_not_bar_the_way_to_another_version(
    stuck: World, capsys: Captured
) -> None:
    broken = f"{stuck.version('first')}-2"
    assert main(["rollback", "000000000000", "--overlay", OVERLAY]) == 1
    assert "is no release of" in sentence(capsys)
    assert stuck.records[broken].outcome == "unfinished"
    version, calls = stuck.version("first"), len(stuck.state["calls"])
    assert main(["rollback", version, "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert "is not undone" in capsys.readouterr().out
    assert [call[0] for call in stuck.state["calls"][calls:]].count("apply") == 1
    assert stuck.image == FIRST
    failed = stuck.records[broken]
    assert failed.outcome == "failed" and failed.reason
    assert failed.reason.endswith(f"not undone: a rollback to {version} came instead")


def test_a_rollback_that_cannot_begin_gives_nothing_up(
    stuck: World, images: dict[str, Any], capsys: Captured
) -> None:
    version = stuck.version("first")
    words = ["rollback", version, "--overlay", OVERLAY, "--watch", "0"]
    assert main([*words, "--api_key_file", "nothing"]) == 1
    assert "nothing" in sentence(capsys)
    render = Path("releases", f"{version}.yaml")
    content = render.read_text("utf-8")
    render.write_text(content + "# altered\n", "utf-8")
    assert main(words) == 1
    assert "was altered" in sentence(capsys)
    render.write_text(content, "utf-8")
    # What runs can be neither told nor saved.
    stuck.faults(get=["forbidden"] * 2)
    assert main(words) == 1
    assert "Forbidden" in sentence(capsys)
    assert stuck.records[f"{version}-2"].outcome == "unfinished"
    # So it can still be undone.
    state = stuck.state
    state["images"][SECOND] = images[SECOND]
    stuck.write(state)
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished"]) == 0
    assert stuck.records[f"{version}-2"].outcome == "rolled back"
    assert stuck.image == SECOND


def test_what_cannot_be_undone_can_be_abandoned(stuck: World, capsys: Captured) -> None:
    """From wherever kubectl points to: its cluster may be no more."""
    broken = f"{stuck.version('first')}-2"
    objects, calls = stuck.state["objects"], len(stuck.state["calls"])
    words = ["rollback", "--overlay", OVERLAY, "--abandon", "--context", "elsewhere"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"{SPACE} in stand-in may hold {BROKEN}" in out
    assert (stuck.state["objects"], len(stuck.state["calls"])) == (objects, calls)
    failed = stuck.records[broken]
    assert failed.outcome == "failed" and failed.reason
    assert "ImagePullBackOff" in failed.reason and "it was abandoned" in failed.reason
    assert main(words) == 0
    assert "is unfinished" in capsys.readouterr().out
