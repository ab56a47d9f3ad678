"""Releases that are killed, interrupted or cannot be undone, and the run after them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.release.world import (
    BROKEN,
    FIRST,
    OVERLAY,
    SECOND,
    SPACE,
    Captured,
    World,
    sentence,
)
from whetstone.main import main

# The call of kubectl at which the process is killed, before or after the call did its work.
KILLS: list[dict[str, list[str | None]]] = [
    {"get": ["kill before"]},
    {"get": [None] * 3 + ["kill before"]},
    {"get": [None] * 4 + ["kill before"]},
    {"diff": ["kill before"]},
    {"diff": ["kill after"]},
    {"apply": ["kill before"]},
    {"apply": ["kill after"]},
    {"apply": [None, "kill before"]},
    {"apply": [None, "kill after"]},
    {"delete": ["kill before"]},
    {"delete": ["kill after"]},
    {"apply": ["half"], "get": [None] * 9 + ["kill before"]},
    {"get": [None] * 8 + ["kill after"]},
    {"get": [None] * 10 + ["kill after"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("faults", KILLS, ids=json.dumps)
def test_after_a_kill_at_any_call_the_next_run_releases(
    deployed: World, faults: dict[str, list[str | None]], capsys: Captured
) -> None:
    deployed.faults(**faults)
    deployed.killed(deployed.words("second", SECOND))
    deployed.faults()
    assert deployed.release("second", SECOND) == 0
    assert "stopped at" in capsys.readouterr().out
    assert deployed.image == SECOND
    assert '"second"' in deployed.overlay
    assert not [name for name in deployed.state["objects"] if "-first" in name]
    outcomes = [record.outcome for record in deployed.records.values()]
    assert "unfinished" not in outcomes and outcomes.count("released") == 2


@pytest.mark.slow
def test_after_a_kill_while_it_is_undone_the_next_run_undoes(
    deployed: World, capsys: Captured
) -> None:
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    deployed.faults(apply=[None, "kill before"])
    deployed.killed(deployed.words("second", BROKEN))
    deployed.faults()
    assert main(["rollback", "--overlay", OVERLAY]) == 0
    assert "stopped at undo: undoing it" in capsys.readouterr().out
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    assert set(deployed.state["objects"]) == objects
    assert deployed.records[deployed.version("second")].outcome == "undone"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["verify", "compare", "register"])
def test_after_a_kill_at_an_early_step_the_next_run_continues(
    deployed: World, step: str, capsys: Captured
) -> None:
    process = deployed.start(deployed.words("second", SECOND))
    deployed.wait_for(process, step)
    process.kill()
    process.communicate()
    assert deployed.release("second", SECOND) == 0
    out = capsys.readouterr().out
    # It may have gone further between the look and the kill.
    assert "continuing it" in out or "undoing it" in out
    assert deployed.image == SECOND


@pytest.mark.slow
def test_a_killed_release_is_undone_before_another_package_is_released(
    deployed: World, capsys: Captured
) -> None:
    deployed.faults(apply=["kill after"])
    deployed.killed(deployed.words("second", SECOND))
    deployed.faults()
    assert deployed.release("first", FIRST) == 0
    assert "undoing it" in capsys.readouterr().out
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "undone"


def test_a_release_of_another_cluster_is_not_undone_here(deployed: World, capsys: Captured) -> None:
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


@pytest.mark.slow
def test_an_overlay_that_somebody_has_edited_gets_its_image_back_only(
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
    assert "# a note of somebody" in deployed.overlay and 'newTag: "first"' in deployed.overlay


def test_only_one_release_runs_and_the_lock_ends_with_its_process(
    deployed: World, capsys: Captured
) -> None:
    code = (
        "import sys, time\nfrom release.records import Records\n"
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
def test_a_release_that_is_interrupted_while_it_watches_is_undone(
    deployed: World, number: int
) -> None:
    words = [*deployed.words("second", SECOND), "--watch", "60"]
    process = deployed.start(words)
    deployed.wait_for(process, "watch")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "undone"


@pytest.mark.slow
@pytest.mark.parametrize("screen", ["pipe", "terminal"])
def test_a_closed_pipe_or_terminal_does_not_stop_the_undoing(deployed: World, screen: str) -> None:
    words = [sys.executable, "-m", "whetstone", *deployed.words("second", BROKEN)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe() if screen == "pipe" else os.openpty()
    process = subprocess.Popen(
        words, env=environment, stdout=writing, stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(writing)
    deployed.wait_for(process, "first pod")
    os.close(reading)
    assert process.wait(timeout=60) != 0
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "undone"


def test_a_failed_undo_is_reported_with_what_to_do(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.cluster.kubectl.PATIENCE_SECONDS", 0.2)
    deployed.faults(apply=[None, "forbidden"])
    assert deployed.release("second", BROKEN) == 1
    line = sentence(capsys)
    assert "COULD NOT BE RESTORED" in line and "whetstone rollback --overlay" in line
    assert "--context stand-in" in line and "VERSION" in line and "--abandon" in line
    assert main(["rollback", "--overlay", OVERLAY]) == 0
    assert deployed.image == FIRST


def test_a_release_that_cannot_be_undone_can_be_abandoned_from_any_context(
    stuck: World, capsys: Captured
) -> None:
    """Its cluster may not exist any more."""
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
