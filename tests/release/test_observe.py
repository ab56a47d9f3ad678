"""A release that a GitOps tool applies: prepared, applied by the test, and observed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.release.world import (
    BROKEN,
    DEPLOYMENT,
    FIRST,
    OVERLAY,
    REPOSITORY,
    SECOND,
    SPACE,
    WRONG,
    Captured,
    World,
    sentence,
)
from tests.service.test_bento import empty_the_store
from whetstone.main import main

DIGEST = f"@sha256:{'5' * 64}"
NOWHERE = f"{REPOSITORY}:nowhere"


def prepare(world: World, package: str, image: str, *more: str, champion: str = "current") -> int:
    """Prepare one of the packages; the exit status."""
    words = [
        word for word in world.words(package, image, *more, champion=champion) if word != "--apply"
    ]
    return main([*words, "--prepare"])


def observe(*more: str) -> int:
    """Observe what is prepared; the exit status."""
    return main(["release", "--observe", "--overlay", OVERLAY, "--watch", "0", *more])


def apply_overlay() -> None:
    """What a GitOps tool does: apply what the overlay renders to."""
    render = subprocess.run(["kubectl", "kustomize", OVERLAY], capture_output=True, check=True)
    subprocess.run(["kubectl", "apply", "--filename=-"], input=render.stdout, check=True)


def let_roll_out() -> None:
    """Look at the Deployment until the stand-in has ended its rollout."""
    words = ["kubectl", "get", "deployment", "text-classifier", f"--namespace={SPACE}"]
    for _ in range(4):
        subprocess.run([*words, "--output=json"], capture_output=True, check=True)


@contextmanager
def gitops_tool(seconds: float) -> Iterator[None]:
    """A GitOps tool that applies the overlay after a while."""

    def work() -> None:
        time.sleep(seconds)
        apply_overlay()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def changes(world: World, since: int) -> set[str]:
    """The verbs that changed the cluster since a call."""
    return {call[0] for call in world.state["calls"][since:]} & {"apply", "delete"}


def calls(world: World) -> int:
    return len(world.state["calls"])


def test_what_is_prepared_is_applied_by_the_gitops_tool_and_observed(
    deployed: World, images: dict[str, Any], capsys: Captured
) -> None:
    state = deployed.state
    state["images"][f"{SECOND.partition(':')[0]}{DIGEST}"] = images[SECOND]
    deployed.write(state)
    before, since = deployed.overlay, calls(deployed)
    assert prepare(deployed, "second", f"{SECOND}{DIGEST}") == 0
    out = capsys.readouterr().out
    assert f"then:     whetstone release --observe --overlay {OVERLAY}" in out
    assert f"+++ deployment.{SPACE}.text-classifier" in out
    assert not changes(deployed, since) and deployed.image == FIRST
    edited = set(deployed.overlay.splitlines()) ^ set(before.splitlines())
    assert edited == {'    newTag: "first"', f"    digest: {DIGEST[1:]} # tag second"}
    record = deployed.records[deployed.version("second")]
    assert (record.outcome, record.image) == ("prepared", f"{SECOND}{DIGEST}")
    assert record.previous and record.previous.image == FIRST
    assert record.render and Path("releases", record.render.file).is_file()
    assert main(["history"]) == 0
    assert "prepared" in capsys.readouterr().out

    since = calls(deployed)
    with gitops_tool(1.0):
        assert observe() == 0
    assert [call[0] for call in deployed.state["calls"][since:]].count("apply") == 1
    assert deployed.image == f"{SECOND.partition(':')[0]}{DIGEST}"
    record = deployed.records[deployed.version("second")]
    assert record.outcome == "released" and len(record.pods) == 2
    assert record.watched and {"wait", "check", "watch"} <= set(record.durations)
    # The old pods were counted while this waited.
    assert record.watched.before_since == "the pods started"
    assert observe() == 1
    assert "is prepared and waits to be observed" in sentence(capsys)
    # A rollback knows both forms.
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert deployed.image == FIRST
    assert main(["rollback", record.id, "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert deployed.image == f"{SECOND.partition(':')[0]}{DIGEST}"
    assert f"digest: {DIGEST[1:]} # tag second" in deployed.overlay
    # So does a release that is undone: what ran is found among the records.
    assert deployed.release("first", BROKEN) == 1
    failed = deployed.records[f"{deployed.version('first')}-3"]
    assert failed.previous and failed.previous.release == f"{record.id}-2"
    assert deployed.image == f"{SECOND.partition(':')[0]}{DIGEST}"


@pytest.mark.parametrize(
    ("image", "reason"),
    [(BROKEN, "ImagePullBackOff"), (WRONG, "serves version")],
)
def test_what_fails_is_written_back_and_not_applied(
    deployed: World, image: str, reason: str, capsys: Captured
) -> None:
    before = deployed.overlay
    assert prepare(deployed, "second", image) == 0
    apply_overlay()
    since = calls(deployed)
    assert observe() == 1
    line = sentence(capsys)
    assert reason in line
    assert f"{OVERLAY}/kustomization.yaml is as before: commit it" in line
    assert deployed.overlay == before
    assert not changes(deployed, since) and deployed.image == image
    record = deployed.records[deployed.version("second")]
    assert record.outcome == "undone" and record.reason and reason in record.reason
    assert record.evidence and record.evidence.pod
    # What is committed now is applied by the tool, and the next release begins from there.
    apply_overlay()
    let_roll_out()
    assert prepare(deployed, "second", SECOND) == 0
    apply_overlay()
    assert observe() == 0


def test_an_overlay_that_was_edited_since_gets_the_image_of_before_only(
    deployed: World, capsys: Captured
) -> None:
    assert prepare(deployed, "second", BROKEN) == 0
    file = Path(OVERLAY, "kustomization.yaml")
    file.write_text(deployed.overlay + "# a note of somebody\n", "utf-8")
    apply_overlay()
    assert observe() == 1
    assert "is as before: commit it" in sentence(capsys)
    assert 'newTag: "first"' in deployed.overlay and "# a note of somebody" in deployed.overlay


@pytest.mark.parametrize(("package", "image"), [("second", BROKEN), ("first", NOWHERE)])
def test_what_was_prepared_twice_over_an_edited_overlay_goes_back_to_what_ran(
    deployed: World, package: str, image: str, capsys: Captured
) -> None:
    """Once with the record of before, and once after it was given up."""
    assert prepare(deployed, "second", BROKEN) == 0
    file = Path(OVERLAY, "kustomization.yaml")
    file.write_text(deployed.overlay + "# a note of somebody\n", "utf-8")
    edited = deployed.overlay.replace('newTag: "broken"', 'newTag: "first"')
    assert prepare(deployed, package, image) == 0
    assert "its image is that of before" in capsys.readouterr().out
    apply_overlay()
    assert observe() == 1
    assert "is as before: commit it" in sentence(capsys)
    assert deployed.overlay == edited


def test_without_the_package_nothing_is_decided(deployed: World, capsys: Captured) -> None:
    assert prepare(deployed, "second", SECOND) == 0
    empty_the_store()
    path = Path("releases", f"{deployed.version('second')}.json")
    content = json.loads(path.read_text("utf-8"))
    for package, reason in (
        ("gone", "neither in BentoML's model store nor at gone"),
        ("file:///nowhere/second/1", "/nowhere/second/1"),
    ):
        path.write_text(json.dumps(content | {"package": package}), "utf-8")
        since = calls(deployed)
        assert observe() == 1
        assert reason in sentence(capsys)
        assert deployed.records[deployed.version("second")].outcome == "prepared"
        # It did not even wait for the cluster.
        assert "get" not in {call[0] for call in deployed.state["calls"][since:]}


def test_the_wait_has_a_limit_and_can_be_taken_up_again(deployed: World, capsys: Captured) -> None:
    before = deployed.overlay
    assert prepare(deployed, "second", SECOND) == 0
    assert observe("--wait", "0.3") == 1
    line = sentence(capsys)
    assert line.startswith(f"after 0.3 seconds the cluster still shows {FIRST}, not {SECOND}")
    assert deployed.records[deployed.version("second")].outcome == "prepared"
    # An observation that is interrupted decides nothing.
    deployed.faults(get=[None, None, None, "kill before"])
    deployed.killed(["release", "--observe", "--overlay", OVERLAY])
    deployed.faults()
    assert deployed.records[deployed.version("second")].outcome == "prepared"
    apply_overlay()
    assert observe() == 0
    assert deployed.records[deployed.version("second")].outcome == "released"
    assert deployed.overlay != before


def test_a_killed_observation_is_given_up_without_touching_the_cluster(
    deployed: World, capsys: Captured
) -> None:
    before = deployed.overlay
    assert prepare(deployed, "second", SECOND) == 0
    apply_overlay()
    # The cluster shows the image at once: the third look is of the check.
    deployed.faults(get=[None, None, "kill before"])
    deployed.killed(["release", "--observe", "--overlay", OVERLAY])
    deployed.faults()
    record = deployed.records[deployed.version("second")]
    assert (record.outcome, record.step) == ("prepared", "check")
    file = Path(OVERLAY, "kustomization.yaml")
    file.write_text(deployed.overlay + "# a note of somebody\n", "utf-8")
    since = calls(deployed)
    # Nor by a rollback: it would go further back than to what ran before.
    assert main(["rollback", "--overlay", OVERLAY]) == 1
    assert "the cluster shows its image: take it back with" in sentence(capsys)
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished"]) == 0
    assert not changes(deployed, since)
    assert (deployed.image, deployed.overlay) == (SECOND, before + "# a note of somebody\n")
    assert deployed.records[deployed.version("second")].outcome == "failed"


def test_a_third_version_and_an_overlay_of_another_commit_decide_nothing(
    deployed: World, capsys: Captured
) -> None:
    overlay = deployed.overlay
    assert observe() == 1
    assert f"no release of {OVERLAY} in releases is prepared" in sentence(capsys)
    assert prepare(deployed, "second", SECOND) == 0
    prepared = deployed.overlay
    state = deployed.state
    container = state["objects"][DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    container["image"] = BROKEN
    deployed.write(state)
    assert observe("--wait", "5") == 1
    line = sentence(capsys)
    assert f"shows {BROKEN}, which is neither the prepared {SECOND} nor {FIRST} before" in line
    Path(OVERLAY, "kustomization.yaml").write_text(overlay, "utf-8")
    assert observe() == 1
    assert f"names {FIRST}, and release {deployed.version('second')} prepared" in sentence(capsys)
    Path(OVERLAY, "kustomization.yaml").write_text(prepared, "utf-8")
    assert observe("--context", "elsewhere") == 1
    line = sentence(capsys)
    assert "kubectl points to elsewhere: observe with --context stand-in" in line
    assert "--abandon" not in line
    assert deployed.records[deployed.version("second")].outcome == "prepared"


def test_a_cluster_that_cannot_be_asked_or_a_wrong_key_decides_nothing(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.common.errors import KeyRefusedError

    assert prepare(deployed, "second", SECOND) == 0
    apply_overlay()
    monkeypatch.setattr("release.cluster.kubectl.PATIENCE_SECONDS", 0.1)
    deployed.faults(get=["refused"] * 50)
    overlay = deployed.overlay
    assert observe() == 1
    assert "refused" in sentence(capsys)
    # Without the right to pods/portforward, the pods may be as healthy as they are.
    deployed.faults(port_forward=["forbidden"] * 50)
    assert observe() == 1
    assert "Forbidden" in sentence(capsys)
    deployed.faults()

    def refuse(*_: object) -> None:
        raise KeyRefusedError("/info answered 401: give it with --api_key_file")

    with monkeypatch.context() as patches:
        patches.setattr("release.cluster.rollout.verify_service", refuse)
        assert observe() == 1
    assert "give it with --api_key_file" in sentence(capsys)
    assert deployed.overlay == overlay
    assert deployed.records[deployed.version("second")].outcome == "prepared"
    assert observe() == 0


def test_the_next_release_gives_up_what_was_prepared_unless_it_runs(
    deployed: World, capsys: Captured
) -> None:
    before = deployed.overlay
    assert prepare(deployed, "second", SECOND) == 0
    assert deployed.release("first", FIRST) == 0
    assert "was prepared and not observed: it is given up" in capsys.readouterr().out
    assert deployed.records[deployed.version("second")].outcome == "failed"
    # The same package goes on with its record.
    assert prepare(deployed, "second", SECOND) == 0
    assert prepare(deployed, "second", SECOND) == 0
    ids = [record for record in deployed.records if record.startswith(deployed.version("second"))]
    assert len(ids) == 2
    apply_overlay()
    assert deployed.release("first", FIRST) == 1
    assert "is prepared and runs, and was not observed" in sentence(capsys)
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished"]) == 0
    assert deployed.overlay == before


def test_a_first_release_is_prepared_without_a_cluster(world: World, capsys: Captured) -> None:
    world.faults(get=["forbidden"] * 50, diff=["forbidden"])
    assert prepare(world, "first", FIRST, champion="none") == 0
    assert "it is not known what would change in the cluster" in capsys.readouterr().out
    record = world.records[world.version("first")]
    assert (record.outcome, record.previous, record.context) == ("prepared", None, None)
    world.faults()
    # Who observes may have another name for the cluster.
    with gitops_tool(0.5):
        assert observe("--context", "elsewhere") == 0
    assert world.image == FIRST
    assert world.records[record.id].context == "elsewhere"


def test_who_may_only_read_prepares_and_hears_what_is_missing(
    deployed: World, capsys: Captured
) -> None:
    """`kubectl diff` asks for a dry run, which is the right to patch."""
    deployed.faults(diff=["forbidden"])
    deployed.write(deployed.state | {"others": {}})
    before = deployed.overlay
    assert prepare(deployed, "second", SECOND) == 1
    assert "the pods need what whetstone-staging does not have" in sentence(capsys)
    assert deployed.overlay == before
    assert deployed.records[deployed.version("second")].outcome == "failed"


def test_what_does_not_go_together_is_refused(deployed: World, capsys: Captured) -> None:
    assert prepare(deployed, "second", SECOND, "--canary", "5%") == 1
    assert "leave --canary out" in sentence(capsys)
    assert main(["release", "x", "--observe", "--overlay", OVERLAY]) == 1
    assert "--observe takes no PACKAGE" in sentence(capsys)
    assert main(["release", "--prepare", "--overlay", OVERLAY]) == 1
    assert "a release needs PACKAGE, --champion, --data" in sentence(capsys)
    assert not json.loads(deployed.state_file.read_text("utf-8"))["faults"]
