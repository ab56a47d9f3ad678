"""Exports of the tools that people label with: read as what was labeled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from training.common.errors import DataError
from training.data.dataset import load_data, read_rows
from training.data.findings import Rows, find_errors
from training.data.preflight import preflight
from training.data.rows import read_files
from training.data.text_warnings import WholeTextTokenizer
from training.recipe.arguments import DataArguments


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows, one on each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: str, **keys: Any) -> Rows:
    """Every row of a file."""
    return read_files([path], DataArguments(**keys))[0]


def codes(rows: Rows) -> list[str]:
    """What the reader has to say."""
    return [remark.code for remark in rows.remarks]


PRODIGY_BINARY = [
    {"text": "a", "label": "x", "answer": "accept"},
    {"text": "b", "label": "y", "answer": "reject"},
    {"text": "c", "label": "y", "answer": "accept"},
    {"text": "d", "label": "x", "answer": "ignore"},
]
PRODIGY_CHOICE = [
    {"text": "a", "options": [{"id": "x"}, {"id": "y"}], "accept": ["x"], "answer": "accept"},
    {"text": "b", "options": [{"id": "x"}, {"id": "y"}], "accept": [], "answer": "ignore"},
    {"text": "c", "options": [{"id": "x"}, {"id": "y"}], "accept": ["y"], "answer": "accept"},
]
SPACY = [
    {"text": "a", "cats": {"x": 1.0, "y": 0.0}},
    {"text": "c", "cats": {"x": 0.0, "y": 1.0}},
]


def label_studio(*choices: str, cancelled: bool = False) -> dict[str, Any]:
    """An annotation of these choices."""
    result = {"from_name": "label", "type": "choices", "value": {"choices": list(choices)}}
    return {"was_cancelled": cancelled, "result": [result]}


LABEL_STUDIO = [
    {"id": 1, "data": {"text": "a"}, "annotations": [label_studio("x")]},
    {"id": 2, "data": {"text": "b"}, "annotations": [label_studio(cancelled=True)]},
    {"id": 3, "data": {"text": "c"}, "annotations": [label_studio("y")]},
]
ARGILLA = [
    {
        "fields": {"text": text},
        "responses": {"label": [{"value": label, "status": status}]},
    }
    for text, label, status in (
        ("a", "x", "submitted"),
        ("b", "x", "discarded"),
        ("c", "y", "submitted"),
    )
]
ARGILLA_FLAT = [
    {"text": "a", "label.responses": ["x", "x"], "label.responses.status": ["submitted"] * 2},
    {"text": "b", "label.responses": ["x"], "label.responses.status": ["discarded"]},
    {"text": "c", "label.responses": ["y"], "label.responses.status": ["submitted"]},
]


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        (PRODIGY_BINARY, {1, 3}),
        (PRODIGY_CHOICE, {1}),
        (SPACY, set()),
        (LABEL_STUDIO, {1}),
        (ARGILLA, {1}),
        (ARGILLA_FLAT, {1}),
    ],
    ids=["prodigy", "prodigy choice", "spacy", "label studio", "argilla", "argilla flat"],
)
def test_exports_are_read_as_what_was_labelled(
    tmp_path: Path, rows: list[dict[str, Any]], left_out: set[int]
) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", rows))
    errors = find_errors({"test": found}, known=["x", "y"])
    assert errors.findings == []
    kept = errors.kept["test"]
    assert [found.texts[row] for row in kept] == ["a", "c"]
    assert [found.labels[row] for row in kept] == [("x",), ("y",)]
    assert not found.multi_label
    assert found.left_out == left_out
    assert codes(found) == (["left_out"] if left_out else [])


def test_a_list_of_label_studio_tasks_and_its_minimal_form_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(LABEL_STUDIO, indent=1), encoding="utf-8")
    assert read(str(path)).labels == [("x",), (), ("y",)]
    minimal = [{"text": "a", "sentiment": {"choices": ["x", "y"]}}, {"text": "b", "sentiment": "x"}]
    path.write_text(json.dumps(minimal), encoding="utf-8")
    found = read(str(path), label_column="sentiment")
    assert (found.labels, found.multi_label) == ([("x", "y"), ("x",)], True)


def test_rows_with_several_choices_make_a_task_of_several_labels(tmp_path: Path) -> None:
    rows = [*SPACY, {"text": "d", "cats": {"x": 1.0, "y": 1.0}}, {"text": "e", "cats": {"x": 0.0}}]
    found = read(jsonl(tmp_path / "a.jsonl", rows))
    assert found.multi_label
    assert found.labels == [("x",), ("y",), ("x", "y"), ()]


def test_annotators_who_disagree_are_an_error_of_their_row(tmp_path: Path) -> None:
    rows = [*ARGILLA_FLAT, {"text": "d", "label.responses": ["x", "y"]}]
    found = read(jsonl(tmp_path / "a.jsonl", rows))
    assert found.problems[3].message == "its annotators disagree: 'x' and 'y'"


@pytest.mark.parametrize("write", [json.dumps, str], ids=["json", "python"])
def test_lists_in_a_cell_are_several_labels(tmp_path: Path, write: Any) -> None:
    labels = [["x", "y"], ["x"], [], ["y"]]
    text = "text,label\n" + "".join(
        f'{n},"{write(names).replace(chr(34), chr(34) * 2)}"\n' for n, names in enumerate(labels)
    )
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    found = read(str(path))
    assert found.multi_label and codes(found) == ["label_lists"]
    assert found.labels == [("x", "y"), ("x",), (), ("y",)]


def test_a_label_that_is_no_list_makes_all_of_them_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,\"['x']\"\nb,y\n", encoding="utf-8")
    found = read(str(path))
    assert not found.multi_label
    assert found.labels == [("['x']",), ("y",)]


def test_a_column_for_each_label_gives_several_labels_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,x,y\na,1,0\nb,0,0.0\nc,True,1\nd,-1,0\n", encoding="utf-8")
    found = read(str(path), label_columns=["x", "y"])
    assert found.multi_label
    assert found.labels == [("x",), (), ("x", "y"), ()]
    assert found.problems[3].message == "column 'x' holds '-1' where 0 or 1 should stand"
    with pytest.raises(DataError, match="name the right one with label_column, or with label_col"):
        read(str(path))


def test_fields_of_objects_are_named_with_dots(tmp_path: Path) -> None:
    rows = [
        {"data": {"body": text}, "label": {"name": label, "id": 1}} for text, label in ("ax", "by")
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = read(path, text_column="data.body", label_column="label.name")
    assert (found.texts, found.labels) == (["a", "b"], [("x",), ("y",)])
    said = read(path, text_column="data.body").problems[0].message
    assert (
        "its label is an object with the fields 'name', 'id': set label_column: label.name" in said
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"), text_column="data.body", label_column="label.name")
    assert (found.texts, found.labels) == (["a", "b"], [("x",), ("y",)])


@pytest.mark.parametrize("rows", [SPACY, PRODIGY_CHOICE, ARGILLA, ARGILLA_FLAT])
def test_exports_in_parquet_are_read_alike(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    lines = read(jsonl(tmp_path / "a.jsonl", rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = read(str(tmp_path / "a.parquet"))
    assert (table.texts, table.labels) == (lines.texts, lines.labels)
    assert table.left_out == lines.left_out


def test_annotations_of_label_studio_that_count(tmp_path: Path) -> None:
    def task(*annotations: dict[str, Any]) -> dict[str, Any]:
        return {"data": {"text": "a"}, "annotations": list(annotations)}

    other = {"result": [{"from_name": "urgency", "value": {"choices": ["now"]}}]}
    rows = [
        task(label_studio("x"), label_studio("y")),
        task(label_studio("x") | {"ground_truth": True}, label_studio("y")),
        task(label_studio("x"), {"result": []}),
        task(other),
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = read(path)
    assert "annotators disagree" in found.problems[0].message
    assert found.labels[1:] == [("x",), ("x",), ("now",)]
    # What another control says is no label of this one.
    for row in rows:
        for annotation in row["annotations"]:
            for result in annotation["result"]:
                result["from_name"] = result["from_name"].replace("label", "sentiment")
    assert read(jsonl(tmp_path / "a.jsonl", rows), label_column="sentiment").labels[3] == ()


def test_a_column_called_answer_may_be_the_label(tmp_path: Path) -> None:
    rows = [{"text": "a", "answer": "accept"}, {"text": "b", "answer": "reject"}]
    found = read(jsonl(tmp_path / "a.jsonl", rows), label_column="answer")
    assert (found.labels, found.left_out) == ([("accept",), ("reject",)], frozenset())


def test_a_list_as_numpy_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,['x' 'y z']\nb,['x']\n", encoding="utf-8")
    assert read(str(path)).labels == [("x", "y z"), ("x",)]


def test_lists_of_one_label_are_said_and_can_be_single_labels(tmp_path: Path) -> None:
    rows = [{"id": n, "text": f"{n}", "label": ["xy"[n % 2]], "Comments": []} for n in range(8)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = read(path)
    assert found.multi_label and codes(found) == ["lists_of_one"]
    assert "label_column: label.0" in found.remarks[0].message
    data = load_data(DataArguments(train_file=[path], label_column="label.0"), seed=0)
    assert (data.task, data.labels) == ("single_label", ["x", "y"])


def test_white_space_around_labels_is_taken_away_and_said(tmp_path: Path) -> None:
    found = read(
        jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": " x"}, {"text": "b", "label": "x"}])
    )
    assert found.labels == [("x",), ("x",)]
    assert codes(found) == ["label_spaces"] and found.remarks[0].rows == [0]


@pytest.mark.parametrize(
    ("usual", "other"),
    [("1", "1.0"), ("café", "cafe\u0301"), ("x", "x\u200b"), ("A b", "a  B"), ("10", "1e1")],
)
def test_labels_that_look_alike_are_found(tmp_path: Path, usual: str, other: str) -> None:
    from tokenizers import Tokenizer, models

    rows = [{"text": f"{n}", "label": usual if n else other} for n in range(4)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "5", "label": "other"}] * 2)
    splits = read_rows(DataArguments(train_file=[path]))
    found = preflight(
        splits,
        find_errors(splits),
        tokenizer=WholeTextTokenizer(Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")), 0),
        cut_after=8,
    )
    variants = [finding for finding in found.findings if finding.code == "label_variants"]
    # 1e1 is a number to a program, and a name to a person.
    assert bool(variants) == (other != "1e1")
