"""A release that fails says why, and nobody waits for what cannot come."""

from __future__ import annotations

import pytest

from tests.release.world import (
    BROKEN,
    CRASHING,
    DEPLOYMENT,
    FIRST,
    KEYS,
    SECOND,
    Captured,
    World,
    sentence,
)
from whetstone.main import main


def test_a_crash_loop_ends_the_wait_and_its_log_is_shown_and_recorded(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stand-in's controller never reports that the deadline of a crash loop has passed.
    monkeypatch.setattr("release.cluster.rollout.ROLLOUT_SECONDS", 20.0)
    assert deployed.release("second", CRASHING) == 1
    out, err = capsys.readouterr()
    assert "crashed 3 times for the same reason: Error, exit status 1" in err
    assert "golden text 3 is answered differently" in out and "Back-off restarting" in out
    record = deployed.records[deployed.version("second")]
    assert record.outcome == "undone" and record.evidence
    assert record.evidence.previous and record.evidence.log[-1].startswith("golden text 3")
    assert record.evidence.state and "CrashLoopBackOff" in record.evidence.state
    assert any("BackOff" in event for event in record.evidence.events)
    assert "hunter2" not in out + err + record.model_dump_json()
    # The step that failed has its duration, and so has the undoing.
    failed = next(step for step in ("first pod", "apply") if step in record.durations)
    assert record.durations[failed] > 0 and "undo" in record.durations
    assert deployed.image == FIRST


def test_an_image_that_cannot_be_pulled_has_its_warning_in_the_record(deployed: World) -> None:
    assert deployed.release("second", BROKEN) == 1
    evidence = deployed.records[deployed.version("second")].evidence
    assert evidence and evidence.log == []
    assert evidence.events and "ImagePullBackOff" in evidence.events[-1]
    assert evidence.state and evidence.state.startswith("waits: ImagePullBackOff")


def test_evidence_that_cannot_be_read_does_not_keep_a_release_from_being_undone(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("involvedObject")

    monkeypatch.setattr("release.transaction.collect_evidence", fail)
    assert deployed.release("second", BROKEN) == 1
    assert "why it failed cannot be read: KeyError" in capsys.readouterr().out
    assert deployed.image == FIRST
    assert deployed.records[deployed.version("second")].outcome == "undone"


def test_a_missing_secret_is_named_before_anything_is_applied(
    deployed: World, capsys: Captured
) -> None:
    deployed.write(deployed.state | {"others": {}})
    overlay, calls = deployed.overlay, len(deployed.state["calls"])
    assert deployed.release("second", SECOND) == 1
    assert "key api-keys of Secret text-classifier-api-keys" in sentence(capsys)
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    verbs = {call[0] for call in deployed.state["calls"][calls:]}
    assert not verbs & {"apply", "delete"}
    assert deployed.records[deployed.version("second")].outcome == "failed"
    # The plan says so, too.
    assert main([word for word in deployed.words("second", SECOND) if word != "--apply"]) == 0
    assert "--apply would be refused: " in capsys.readouterr().out
    deployed.write(deployed.state | {"others": {KEYS: ["api-keys"]}})
    assert deployed.release("second", SECOND) == 0


def test_a_paused_rollout_is_refused_before_anything_is_applied(
    deployed: World, capsys: Captured
) -> None:
    state = deployed.state
    state["objects"][DEPLOYMENT]["spec"]["paused"] = True
    deployed.write(state)
    calls = len(deployed.state["calls"])
    assert deployed.release("second", SECOND) == 1
    assert "kubectl rollout resume" in sentence(capsys)
    assert "apply" not in {call[0] for call in deployed.state["calls"][calls:]}
