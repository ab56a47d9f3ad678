"""Records: what is on disk, records of older versions, and the sentence for a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from release.history import describe_outcome
from release.records import ChangedLabels, Record, Records
from training.common.errors import ReleaseError


def record(**fields: Any) -> Record:
    """The record of a release, with some fields of its own."""
    common = {"id": "a", "name": "n", "version": "a", "overlay": "o", "package": "p"}
    return Record(**{**common, "started_at": "2026-01-01T00:00:00", **fields})


def test_a_damaged_record_or_render_is_one_sentence(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.save(record())
    assert records.all() == [record()]
    saved = records.save_render("a.yaml", "kind: A\n")
    assert records.read_render(saved) == "kind: A\n"
    (tmp_path / "a.yaml").write_text("kind: B\n", "utf-8")
    with pytest.raises(ReleaseError, match=r"a\.yaml was altered"):
        records.read_render(saved)
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(ReleaseError, match=r"a\.yaml is missing"):
        records.read_render(saved)
    (tmp_path / "b.json").write_text('{"format": 2}', "utf-8")
    with pytest.raises(ReleaseError, match=r"b\.json is not a record of a release \(at format\)"):
        records.all()


def test_changed_labels_keep_their_keys_on_disk(tmp_path: Path) -> None:
    records = Records(tmp_path)
    change = ChangedLabels(from_version="0a1b", removed=["old"], added=["new"])
    records.save(record(label_change=change))
    saved = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert saved["label_change"] == {"from": "0a1b", "gone": ["old"], "come": ["new"]}
    assert records.all()[0].label_change == change


def test_records_of_older_versions_are_read(tmp_path: Path) -> None:
    """They have other words for what was undone, and do not say since when pods were counted."""
    content = record(outcome="unfinished").model_dump(mode="json", by_alias=True)
    content["step"] = "put back"
    content["watched"] = {
        **{"seconds": 60.0, "requests": 9, "errors": 0, "refused": 0.0},
        **{"p99_ms": None, "p99_ms_before": 12.5},
    }
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    (old,) = Records(tmp_path).all()
    assert (old.step, old.touched_cluster) == ("undo", True)
    assert old.watched and old.watched.before_since is None
    content |= {"step": "end", "outcome": "rolled back"}
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    assert Records(tmp_path).all()[0].outcome == "undone"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"outcome": "unfinished", "step": "apply"}, "unfinished at apply"),
        ({"outcome": "released"}, "released"),
        ({"outcome": "undone"}, "undone"),
        ({"outcome": "released", "kind": "rollback"}, "rolled back"),
        ({"outcome": "undone", "kind": "rollback"}, "undone"),
    ],
)
def test_the_history_says_who_rolled_back(fields: dict[str, Any], expected: str) -> None:
    assert describe_outcome(record(**fields)) == expected
