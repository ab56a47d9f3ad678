"""Labeled rows come back into the training file: where from, and what they contradict."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from monitoring.merging import merge, read_labeled
from service.capture.records import Feedback
from service.package.manifest import Manifest
from tests.monitoring.made import LABELS, manifest
from training.common.errors import DataError

ONE = manifest(provenance={})
SEVERAL = manifest(provenance={}).model_copy(update={"task": "multi_label"})
HEADER = "text,label,suggestion,score,reason,rate,id,index,time,version\n"
PICKED = HEADER + (
    "where is it?,delivery,refund,0.5,uncertain,0.1,r1,0,2026-11-01T00:00:00+00:00,v1\n"
    '"my money, please",refund,refund,0.5,uniform,0.1,r2,1,2026-11-01T00:00:00+00:00,v1\n'
    "not yet labeled,,refund,0.5,uniform,0.1,r3,0,2026-11-01T00:00:00+00:00,v1\n"
)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def known(identity: str, *labels: str, index: int = 0) -> dict[tuple[str, int], Feedback]:
    moment = datetime(2026, 11, 2, tzinfo=UTC)
    fields: dict[str, Any] = {"time": moment, "version": "v1", "labels": labels}
    return {(identity, index): Feedback(id=identity, index=index, **fields)}


def written(tmp_path: Path, content: str, name: str = "picked.csv") -> list[str]:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    return [str(path)]


def test_labeled_rows_make_a_training_file_with_where_they_come_from(tmp_path: Path) -> None:
    returned = read_labeled(written(tmp_path, PICKED), ONE)
    assert (len(returned.rows), returned.unlabeled) == (2, 1)
    into = tmp_path / "made" / "train.csv"
    merged = merge(returned.rows, into, ONE, {})
    assert (merged.added, merged.present, merged.conflicts) == (2, 0, [])
    first, second = rows_of(into)
    assert (first["text"], first["label"]) == ("where is it?", "delivery")
    assert second["text"] == "my money, please"
    assert {name: second[name] for name in ("id", "index", "version", "reason")} == {
        "id": "r2",
        "index": "1",
        "version": "v1",
        "reason": "uniform",
    }
    # It holds callers' texts.
    assert into.stat().st_mode & 0o777 == 0o600


def test_rows_of_the_training_file_stay_as_they_are(tmp_path: Path) -> None:
    into = tmp_path / "train.csv"
    into.write_text('\ufefftext,label,more\n"a, b",billing,7\nwhere is it?,delivery,\n', "utf-8")
    into.chmod(0o640)
    returned = read_labeled(written(tmp_path, PICKED), ONE)
    merged = merge(returned.rows, into, ONE, {})
    assert (merged.added, merged.present) == (1, 1)
    assert [(row["text"], row["label"], row["more"], row["id"]) for row in rows_of(into)] == [
        ("a, b", "billing", "7", ""),
        ("where is it?", "delivery", "", ""),
        ("my money, please", "refund", "", "r2"),
    ]
    assert into.stat().st_mode & 0o777 == 0o640
    # Once more: nothing is added, and the file is not touched.
    before = into.stat().st_mtime_ns
    again = merge(returned.rows, into, ONE, {})
    assert (again.added, again.present) == (0, 2)
    assert into.stat().st_mtime_ns == before


def test_conflicts_with_the_file_and_with_feedback_are_told(tmp_path: Path) -> None:
    into = tmp_path / "train.csv"
    into.write_text("text,label\nwhere is it?,refund\n", "utf-8")
    returned = read_labeled(written(tmp_path, PICKED), ONE)
    merged = merge(returned.rows, into, ONE, known("r2", "billing", index=1))
    first, second = merged.conflicts
    assert "row 1" in first and "is labeled 'delivery'" in first
    assert f"{into} has the text as 'refund', and was left as it is" in first
    assert second.endswith("is labeled 'refund'; feedback to r2 says 'billing'")
    # What a person labels now counts. Feedback to another text of the request says nothing.
    assert [row["label"] for row in rows_of(into)] == ["refund", "refund"]
    assert not merge(returned.rows, tmp_path / "new.csv", ONE, known("r2", "billing")).conflicts


def test_a_new_label_is_a_label(tmp_path: Path) -> None:
    returned = read_labeled(written(tmp_path, PICKED.replace("delivery", "complaint")), ONE)
    into = tmp_path / "train.csv"
    assert "complaint" not in LABELS
    assert merge(returned.rows, into, ONE, {}).added == 2
    assert rows_of(into)[0]["label"] == "complaint"


def task(text: str, choices: list[str] | None, **more: Any) -> dict[str, Any]:
    result = {"from_name": "label", "type": "choices", "value": {"choices": choices}}
    annotations = [{"result": [result], **more}] if choices is not None else []
    data = {"text": text, "id": "r7", "index": 2, "version": "v1", "reason": "uncertain"}
    return {"data": data, "annotations": annotations}


def test_an_export_of_label_studio_comes_back(tmp_path: Path) -> None:
    tasks = [task("a", ["refund"]), task("b", None), task("c", ["billing"], was_cancelled=True)]
    returned = read_labeled(written(tmp_path, json.dumps(tasks), "export.json"), ONE)
    assert (returned.unlabeled, returned.left_out) == (1, 1)
    (row,) = returned.rows
    assert (row.text, row.labels) == ("a", ("refund",))
    assert row.facts == {"id": "r7", "index": "2", "version": "v1", "reason": "uncertain"}
    assert merge([row], tmp_path / "t.csv", ONE, known("r7", "billing", index=2)).conflicts


def test_an_export_of_argilla_comes_back(tmp_path: Path) -> None:
    record = {
        "fields": {"text": "a"},
        "metadata": {"id": "r8", "index": 0},
        "responses": {"label": [{"value": "refund", "status": "submitted"}]},
    }
    (row,) = read_labeled(written(tmp_path, json.dumps([record]), "export.json"), ONE).rows
    assert (row.labels, row.facts) == (("refund",), {"id": "r8", "index": "0"})


PAIRS = manifest(provenance={}).model_copy(update={"text_columns": ("text", "text_pair")})


@pytest.mark.parametrize("tool", ["csv", "label-studio", "argilla"])
def test_pairs_come_back(tmp_path: Path, tool: str) -> None:
    argilla = {
        "fields": {"text": "a", "text_pair": "b"},
        "responses": {"label": [{"value": "refund", "status": "submitted"}]},
    }
    studio = task("a", ["refund"])
    studio["data"]["text_pair"] = "b"
    content = {
        "csv": "text,text_pair,label\na,b,refund\n",
        "label-studio": json.dumps([studio]),
        "argilla": json.dumps([argilla]),
    }[tool]
    name = "e.csv" if tool == "csv" else "e.json"
    (row,) = read_labeled(written(tmp_path, content, name), PAIRS).rows
    assert (row.text, row.labels) == (("a", "b"), ("refund",))
    into = tmp_path / "train.csv"
    assert merge([row, row], into, PAIRS, {}).present == 1
    assert [(r["text"], r["text_pair"], r["label"]) for r in rows_of(into)] == [
        ("a", "b", "refund")
    ]


def test_several_labels_are_joined_as_the_recipe_splits_them(tmp_path: Path) -> None:
    content = "text,label\na,refund|billing\nb,billing\n"
    returned = read_labeled(written(tmp_path, content), SEVERAL)
    own = SEVERAL.model_copy(
        update={"provenance": {"recipe": {"label_column": "topics", "label_separator": ";"}}}
    )
    into = tmp_path / "train.csv"
    into.write_text("text,topics\na,billing; refund\n", "utf-8")
    merged = merge(returned.rows, into, own, {})
    assert (merged.added, merged.present) == (1, 1)
    assert rows_of(into)[1]["topics"] == "billing"


def test_rows_that_cannot_be_used_are_told_and_the_others_come(tmp_path: Path) -> None:
    tasks = [task("a", ["refund"]), task("", ["refund"])]
    tasks[0]["annotations"] += task("a", ["billing"])["annotations"]
    returned = read_labeled(
        written(tmp_path, json.dumps([*tasks, task("b", ["x"])]), "e.json"), ONE
    )
    assert [row.text for row in returned.rows] == ["b"]
    first, second = returned.problems
    assert "its annotators disagree" in first
    assert "row 2" in second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;label\na;b\n", "has no column 'text'"),
        ("text\na\n", "has no column 'label'"),
        ("text,label\na,b,c\n", "row 1 of .* has more cells than the header"),
        ('text,label\n"a,b\n', "is no CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_training_data_is_one_sentence_and_stays(
    tmp_path: Path, content: str, message: str
) -> None:
    into = tmp_path / "train.csv"
    into.write_text(content, "utf-8")
    rows = read_labeled(written(tmp_path, PICKED), ONE).rows
    with pytest.raises(DataError, match=message):
        merge(rows, into, ONE, {})
    assert into.read_text("utf-8") == content


def test_a_column_for_each_label_is_refused(tmp_path: Path) -> None:
    own: Manifest = SEVERAL.model_copy(
        update={"provenance": {"recipe": {"label_columns": ["refund", "billing"]}}}
    )
    with pytest.raises(DataError, match="has a column for each label"):
        merge([], tmp_path / "train.csv", own, {})


def test_a_carriage_return_in_a_text_does_not_end_its_row(tmp_path: Path) -> None:
    content = json.dumps([task("one\rtwo\nthree", ["refund"])])
    into = tmp_path / "train.csv"
    merge(read_labeled(written(tmp_path, content, "e.json"), ONE).rows, into, ONE, {})
    (row,) = rows_of(into)
    assert row["text"] == "one\rtwo\nthree"
