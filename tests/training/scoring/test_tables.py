"""Results of every type: a value that a file cannot hold is refused before the work, or written."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, parquet

from service.inference.classifier import Classifier
from training.common.errors import DataError
from training.recipe.arguments import DataArguments
from training.scoring.predict import predict


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(autouse=True)
def _in_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows in a part."""
    for module in ("arrow_files", "csv_files", "json_files"):
        monkeypatch.setattr(f"training.data.{module}.BLOCK_ROWS", 2)
    monkeypatch.setattr("training.data.arrow_files.READ_ROWS", 2)


def with_texts(column: list[Any]) -> list[dict[str, Any]]:
    """Rows of a text and of `value`."""
    return [{"text": f"parcel {n}", "value": value} for n, value in enumerate(column)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows, one on each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table_at(path: Path) -> pyarrow.Table:
    """A written table."""
    return parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)


def refused(classifier: Classifier, source: Path, target: Path) -> str:
    """What is said of rows that a result cannot hold; no text was classified."""

    def no_work(*_: Any) -> Any:
        raise AssertionError("it was begun")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError) as caught:
        patch.setattr(classifier, "encode", no_work)
        predict(classifier, source, target, DataArguments())
    assert not target.exists()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([{}, {}, {}], [None] * 3),
        ([{}, None, {"k": 1}], [None, None, {"k": 1}]),
        ([{"a": {}}, {"a": {}}, {"b": "x"}], None),
        ([[{}], [], [{"k": {}}]], None),
        ([{"a": 1}, {"a": 1}, {"b": "x"}], [{"a": 1, "b": None}] * 2 + [{"a": None, "b": "x"}]),
        ([1, 2, 0.5], [1.0, 2.0, 0.5]),
        ([[], [], ["x"]], [[], [], ["x"]]),
    ],
    ids=["empty", "later filled", "empty within", "in lists", "fields change", "ints", "lists"],
)
def test_values_of_json_come_into_one_table(
    classifier: Classifier, tmp_path: Path, ending: str, column: Any, expected: Any
) -> None:
    source = jsonl(tmp_path / "in.jsonl", with_texts(column))
    target = tmp_path / f"out{ending}"
    assert predict(classifier, source, target, DataArguments()) == (3, 0)
    found = table_at(target).column("value").to_pylist()
    assert len(found) == 3
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_dictionaries_that_change_between_blocks_come_through(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, words in enumerate((["a", "b", "a"], ["z", "y", "z"])):
        codes = pyarrow.array(words).dictionary_encode()
        inner = pyarrow.ListArray.from_arrays([0, 1, 2, 3], codes)
        numbers = pyarrow.array([number, 7, 9]).dictionary_encode()
        columns = {"text": ["parcel"] * 3, "word": codes, "words": inner, "number": numbers}
        feather.write_feather(pyarrow.table(columns), folder / f"{number}.arrow")
    target = tmp_path / f"out{ending}"
    assert predict(classifier, folder, target, DataArguments()) == (6, 0)
    table = table_at(target)
    assert table.column("word").to_pylist() == ["a", "b", "a", "z", "y", "z"]
    assert table.column("words").to_pylist() == [["a"], ["b"], ["a"], ["z"], ["y"], ["z"]]
    assert table.column("number").to_pylist() == [0, 7, 9, 1, 7, 9]
    assert pyarrow.types.is_dictionary(table.schema.field("word").type) == (ending == ".parquet")


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_number_that_does_not_fit_the_common_type_is_refused_before_the_work(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    # As a fraction the first number would be another one.
    rows = with_texts([2**60 + 1, 1, 0.5])
    said = refused(classifier, jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{ending}")
    assert "in.jsonl: rows differ too much for one table" in said and "write .jsonl" in said
    folder = tmp_path / "in"
    folder.mkdir()
    for number, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"{number}.parquet")
    said = refused(classifier, folder, tmp_path / f"out{ending}")
    assert "0.parquet: rows differ too much for one table" in said


def test_a_type_that_parquet_cannot_hold_is_refused_before_the_work(
    classifier: Classifier, tmp_path: Path
) -> None:
    months = pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval())
    table = pyarrow.table({"text": ["parcel"], "wait": months})
    feather.write_feather(table, tmp_path / "in.arrow", compression="uncompressed")
    said = refused(classifier, tmp_path / "in.arrow", tmp_path / "out.parquet")
    assert said.startswith("Parquet cannot hold column 'wait'") and said.endswith("write .jsonl")
    assert predict(classifier, tmp_path / "in.arrow", tmp_path / "out.arrow") == (1, 0)


def strictly(text: str) -> Any:
    """JSON as its standard has it."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_results_in_json_hold_no_nan(classifier: Classifier, tmp_path: Path, ending: str) -> None:
    rows = with_texts([{"x": float("nan"), "y": [float("inf"), 1.5]}])
    rows[0]["plain"] = float("-inf")
    sources = [jsonl(tmp_path / "in.jsonl", rows), tmp_path / "in.parquet", tmp_path / "in.json"]
    parquet.write_table(pyarrow.Table.from_pylist(rows), sources[1])
    sources[2].write_text(json.dumps(rows).replace("1.5", "1e999"), encoding="utf-8")
    for source in sources:
        target = tmp_path / f"out{ending}"
        predict(classifier, source, target, DataArguments())
        text = target.read_text("utf-8")
        if ending == ".csv":
            assert "NaN" not in text and "Infinity" not in text
            continue
        (row,) = strictly(text) if ending == ".json" else map(strictly, text.splitlines())
        last = None if source.suffix == ".json" else 1.5
        assert row["value"] == {"x": None, "y": [None, last]}
        assert row["plain"] is None


def test_a_text_that_is_nan_is_missing(classifier: Classifier, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": NaN}\n{"text": "late"}\n', encoding="utf-8")
    assert predict(classifier, source, tmp_path / "out.jsonl", DataArguments()) == (2, 1)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_times_that_python_cannot_hold_come_through(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    seconds = 253_402_300_800
    moments = pyarrow.array([seconds * 1000, 0, None], pyarrow.timestamp("ms"))
    days = pyarrow.array([5_000_000, 0, None], pyarrow.date32())
    within = pyarrow.StructArray.from_arrays([moments], ["at"])
    table = pyarrow.table({"text": ["a", "b", "c"], "at": moments, "day": days, "in": within})
    parquet.write_table(table, tmp_path / "in.parquet")
    target = tmp_path / f"out{ending}"
    assert predict(classifier, tmp_path / "in.parquet", target, DataArguments()) == (3, 0)
    if ending == ".parquet":
        assert parquet.read_table(target).column("at").equals(pyarrow.chunked_array([moments]))
    else:
        text = target.read_text("utf-8")
        assert text.count("10000-01-01") == 2 and "15659-07-15" in text
        assert str(date(1970, 1, 1)) in text
