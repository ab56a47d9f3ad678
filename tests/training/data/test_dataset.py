"""Labelled text: every format reads alike, and what cannot be used is named or dropped."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_csv
from training.common.errors import DataError
from training.data.dataset import LabeledData, load_data, read_labeled, usable_rows
from training.data.findings import Rows, find_errors
from training.data.rows import read_dataset, read_files
from training.data.splits import Split, stratified_split
from training.recipe.arguments import DataArguments

Table = list[dict[str, Any]]

# Two labels, two rows of each: the least that can be trained on.
ROWS: Table = [
    {"text": "where is my parcel, please?", "label": "delivery"},
    {"text": 'it says "delivered"\nbut it is not', "label": "delivery"},
    {"text": "Grüße, tolle Arbeit 👍", "label": "praise"},
    {"text": "wonderful", "label": "praise"},
]
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]


def write_jsonl(path: Path, rows: Table) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


def write_json(path: Path, rows: Table) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Table) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "json": write_json, "parquet": write_parquet}


def read(path: Path, **keys: Any) -> Split:
    """The rows of a file, none of which may be invalid."""
    return keep(read_sound_or_not(path, **keys))


def read_sound_or_not(path: Path, **keys: Any) -> Rows:
    """The rows of a file."""
    return read_files([str(path)], DataArguments(**keys))[0]


def keep(rows: Any, drop_invalid: bool = False) -> Split:
    """The usable rows of a split, whatever its labels."""
    known = sorted({label for labels in rows.labels for label in labels})
    errors = find_errors({"test": rows}, known=known)
    errors.refuse(drop_invalid)
    return usable_rows(rows, errors.kept["test"])


def names(split: Split) -> list[str]:
    """The label of each row, of which there is one."""
    assert all(len(labels) == 1 for labels in split.labels)
    return [labels[0] for labels in split.labels]


def single(texts: list[str], labels: list[str]) -> Split:
    """Rows of one label each."""
    return Split(list(texts), [(label,) for label in labels])


def read_text(folder: Path, content: str | bytes, name: str = "rows.csv") -> Split:
    """The rows of a file with this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path)


def read_text_of(folder: Path, content: str, **keys: Any) -> Split:
    """The rows of a CSV file with this content, read with these keys."""
    path = folder / "rows.csv"
    path.write_text(content, encoding="utf-8")
    return read(path, **keys)


def refusal(function: Callable[..., object], *arguments: Any) -> str:
    """What is said of data that must be refused: one line."""
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def load(folder: Path, train: Table, **keys: Any) -> LabeledData:
    """The data of a recipe with these rows; `validation=` and `test=` are rows, too."""
    files: dict[str, list[str]] = {}
    for name, rows in (("train", train), *keys.items()):
        if name in ("train", "validation", "test"):
            files[f"{name}_file"] = [str(write_jsonl(folder / f"{name}.jsonl", rows))]
    rest = {key: value for key, value in keys.items() if f"{key}_file" not in files}
    return load_data(DataArguments(**files, **rest), seed=0)


# Reading


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    split = read(WRITERS[ending](tmp_path / f"rows.{ending}", ROWS))
    assert (split.texts, names(split)) == (TEXTS, LABELS)


def test_the_ending_of_a_name_may_be_in_capitals(tmp_path: Path) -> None:
    assert read(write_csv(tmp_path / "ROWS.CSV", ROWS)).texts == TEXTS


def test_a_name_with_brackets_is_only_a_name(tmp_path: Path) -> None:
    assert read(write_csv(tmp_path / "rows[1]*.csv", ROWS)).texts == TEXTS


@pytest.mark.parametrize(
    "word", ["NA", "N/A", "null", "None", "nan", "007", "1.0", "true", "2024-01-31", "-"]
)
def test_a_word_that_looks_like_something_else_stays_text_in_csv(tmp_path: Path, word: str) -> None:
    split = read_text(tmp_path, f"text,label\n{word},{word}\n")
    assert (split.texts, names(split)) == ([word], [word])


def test_labels_that_are_numbers_become_their_digits(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 10}]
    assert names(read(write_jsonl(tmp_path / "rows.jsonl", rows))) == ["0", "10"]


@pytest.mark.parametrize(
    "content",
    [
        "text,label\na,x\nb,y\n",
        "\ufefftext,label\na,x\nb,y\n",
        "text,label\r\na,x\r\nb,y\r\n",
        'label,"text"\n"x",a\ny,"b"',
        "text,label\na,x\n\nb,y\n\n",
        ",text,label\n0,a,x\n1,b,y\n",  # pandas writes its index so
    ],
    ids=["plain", "bom", "crlf", "quotes", "blank lines", "nameless column"],
)
def test_csv_dialects_give_the_same_rows(tmp_path: Path, content: str) -> None:
    split = read_text(tmp_path, content)
    assert list(zip(split.texts, names(split), strict=True)) == [("a", "x"), ("b", "y")]


def test_a_quoted_cell_keeps_comma_and_line_break(tmp_path: Path) -> None:
    split = read_text(tmp_path, 'text,label\n"a, ""b""\nc",x\n')
    assert split.texts == ['a, "b"\nc']


def test_a_very_long_cell_is_read_whole(tmp_path: Path) -> None:
    text = "long " * 50_000
    assert read_text(tmp_path, f"text,label\n{text},x\n").texts == [text]


def test_columns_may_have_other_names_and_stand_beside_others(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"id": "1", "body": "a", "kind": "x"}])
    assert read(path, text_column="body", label_column="kind") == single(["a"], ["x"])


# Refusing files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.csv"
    assert refusal(read, path) == f"there is no file {path}"


@pytest.mark.parametrize("name", ["rows.log", "rows.xlsx", "rows"])
def test_an_unknown_ending_names_the_known_ones(tmp_path: Path, name: str) -> None:
    said = refusal(read_text, tmp_path, "text,label\na,x\n", name)
    assert name in said
    assert ".csv, .tsv, .jsonl, .ndjson, .json, .parquet" in said


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    said = refusal(read_text, tmp_path, "", name)
    assert name in said
    assert "is empty" in said


@pytest.mark.parametrize(
    ("content", "name"),
    [("text,label\n", "rows.csv"), ("text,label", "rows.csv"), ("[]", "rows.json")],
)
def test_a_file_without_rows_says_so(tmp_path: Path, content: str, name: str) -> None:
    said = refusal(read_text, tmp_path, content, name)
    assert name in said
    assert "no rows" in said


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_a_missing_column_names_the_columns_there_are(tmp_path: Path, ending: str) -> None:
    path = WRITERS[ending](tmp_path / f"rows.{ending}", [{"body": "a", "label": "x"}])
    said = refusal(read, path)
    assert f"rows.{ending} has no column 'text', it has body, label" in said


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"text,label\na,x\ncaf\xe9,y\n", "rows.csv"),
        (b'text,label\n"a\nb",x\nb,caf\xe9\xe8\n', "rows.csv"),
        (
            b'{"text":"a","label":"x"}\n\n{"text":"caf\xe9","label":"y"}\n',
            "rows.jsonl",
        ),
        (b'[{"text":"a","label":"x"},\n{"text":"caf\xe9","label":"y"}]', "rows.json"),
    ],
)
def test_a_row_that_is_not_utf8_is_named_or_dropped(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said = refusal(read, path)
    assert re.search(
        rf"{name}, row 2( \(line \d\))?: the \w+ holds bytes that cannot be decoded", said
    )
    assert "(and" not in said
    assert len(keep(read_sound_or_not(path), drop_invalid=True)) == 1


def test_a_replacement_character_of_the_text_itself_is_text(tmp_path: Path) -> None:
    content = "text,label\na \ufffd b,x\n".encode() + b"caf\xe9,y\n"
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert keep(read_sound_or_not(path), drop_invalid=True) == single(["a \ufffd b"], ["x"])


@pytest.mark.parametrize(
    "content",
    ["text,label\na,x\nb,y,z\nc,x\n", "text,label\na,x\nb,y,\nc,x\n"],
)
def test_a_csv_row_with_too_many_cells_names_its_line(tmp_path: Path, content: str) -> None:
    said = refusal(read_text, tmp_path, content)
    assert "rows.csv, row 2 (line 3): it has 3 cells, and there are 2 columns (a text" in said


@pytest.mark.parametrize("content", ["text,label\na,x,\nb,y,\n", "text,label\n0,a,x\n1,b,y\n"])
def test_csv_rows_that_are_all_longer_than_the_header_are_refused(
    tmp_path: Path, content: str
) -> None:
    # pandas would take the first column for an index, and the label for the text.
    assert "line 2" in refusal(read_text, tmp_path, content)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('text,label\n"a,x\nb,y\n', "rows.csv"),
        ('{"text":"a","label":"x"}\n{"text":"b",\n', "rows.jsonl"),
        ('{"text":"a","label":"x"}\nb\n', "rows.jsonl"),
        ('[{"text":"a","label":"x"}', "rows.json"),
        ("PAR1 and no more", "rows.parquet"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(tmp_path: Path, content: str, name: str) -> None:
    assert name in refusal(read_text, tmp_path, content, name)


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    said = refusal(read_text, tmp_path, "text,label,text\na,x,b\n")
    assert "rows.csv has two columns named 'text'" in said


# Refusing rows


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"text": "", "label": "x"}, "the text is empty"),
        ({"text": " \t", "label": "x"}, "the text is empty"),
        ({"text": None, "label": "x"}, "the text is missing"),
        ({"text": "c", "label": None}, "the label is missing"),
        ({"text": "c", "label": " "}, "the label is missing"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_unusable_row_is_named_or_dropped(
    tmp_path: Path, split: str, bad: dict[str, Any], problem: str
) -> None:
    keys = {"validation": ROWS, "test": ROWS, split: [*ROWS[:2], bad, *ROWS[2:]]}
    train = keys.pop("train", ROWS)
    said = refusal(lambda: load(tmp_path, train, **keys))
    assert f"{split}.jsonl, row 3: {problem}" in said
    data = load(tmp_path, train, **keys, drop_invalid=True)
    assert data.dropped == 1
    assert getattr(data, split).texts == TEXTS


def test_a_csv_row_without_its_label_cell_is_named(tmp_path: Path) -> None:
    said = refusal(read_text, tmp_path, "text,label\na,x\nb\n")
    assert "rows.csv, row 2 (line 3): the label is missing" in said


def test_several_unusable_rows_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, *[{"text": "", "label": "praise"}] * 3]
    said = refusal(lambda: load(tmp_path, rows))
    assert "row 5: the text is empty (and 2 more rows)" in said
    assert load(tmp_path, rows, drop_invalid=True).dropped == 3


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_named_or_dropped(tmp_path: Path, split: str) -> None:
    rows = [*ROWS, {"text": "refund?", "label": "returns"}]
    said = refusal(lambda: load(tmp_path, ROWS, **{split: rows}))
    assert f"{split}.jsonl, row 5: label 'returns' does not occur in the training data" in said
    data = load(tmp_path, ROWS, **{split: rows}, drop_invalid=True)
    assert data.dropped == 1
    assert data.labels == ["delivery", "praise"]
    assert getattr(data, split).texts == TEXTS


def test_a_label_with_a_single_row_is_named_or_dropped(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "refund?", "label": "returns"}]
    said = refusal(lambda: load(tmp_path, rows))
    assert "train.jsonl, row 5: label 'returns' has fewer than 2 rows" in said
    # Without the label in training, its rows of the test file go, too.
    data = load(tmp_path, rows, test=rows, drop_invalid=True)
    assert data.dropped == 2
    assert data.labels == ["delivery", "praise"]
    assert data.test is not None
    assert data.test.texts == TEXTS


def test_a_label_that_the_package_does_not_know_names_the_row_in_the_file(tmp_path: Path) -> None:
    texts = ["late", "", "lovely"]
    labels = ["delivery", "delivery", "weather"]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    path = write_csv(tmp_path / "mine.csv", rows)
    known = ["delivery", "praise"]

    def read_known(drop_invalid: bool) -> Any:
        arguments = DataArguments(drop_invalid=drop_invalid)
        found = read_labeled(path, arguments, known, "single_label")
        return found.split, found.rows.tolist(), found.dropped

    assert "mine.csv, row 2 (line 3): the text is empty" in refusal(read_known, False)
    assert read_known(True) == (single(["late"], ["delivery"]), [0], 2)
    path = write_csv(tmp_path / "mine.csv", [rows[0], rows[2]])
    said = refusal(read_known, False)
    assert (
        "mine.csv, row 2 (line 3): label 'weather' is not one of the package's: delivery, praise"
        in said
    )


def test_a_single_label_is_refused_even_when_dropping(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    said = refusal(lambda: load(tmp_path, ROWS[:2]))
    assert "at least two labels are needed, found only 'delivery'" in said
    said = refusal(lambda: load(tmp_path, rows, drop_invalid=True))
    assert "found only 'delivery'" in said


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path, split: str) -> None:
    keys = {"validation": ROWS, "test": ROWS, split: [{"text": "", "label": "praise"}] * 3}
    train = keys.pop("train", ROWS)
    assert f"{split}.jsonl" in refusal(lambda: load(tmp_path, train, **keys, drop_invalid=True))


# Several labels a row


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_a_row_may_have_any_number_of_labels(tmp_path: Path, ending: str) -> None:
    labels = [["x"], ["y", "x"], [], ["y"]]
    cells: list[Any] = ["|".join(found) for found in labels] if ending == "csv" else list(labels)
    rows = [{"text": f"{n}", "label": cell} for n, cell in enumerate(cells)]
    file = WRITERS[ending](tmp_path / f"rows.{ending}", rows)
    separator = "|" if ending == "csv" else None
    keys = {"train_file": [str(file)], "label_separator": separator}
    data = load_data(DataArguments(**keys, validation_file=[str(file)]), seed=0)
    assert (data.task, data.labels, data.dropped) == ("multi_label", ["x", "y"], 0)
    assert data.train.labels == [("x",), ("y", "x"), (), ("y",)]


def test_separated_labels_are_stripped_and_said_once(tmp_path: Path) -> None:
    split = read_text_of(tmp_path, "text,label\na, x | y|x |\nb,|\n", label_separator="|")
    assert split.labels == [("x", "y"), ()]


def test_a_file_of_several_labels_is_refused_for_a_package_of_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": ["x", "y"]}])
    said = refusal(read_labeled, path, DataArguments(), ["x", "y"], "single_label")
    assert "several labels a row" in said
    split, *_ = read_labeled(path, DataArguments(), ["x", "y"], "multi_label")
    assert split.labels == [("x", "y")]


def test_columns_to_slice_by_come_with_the_rows_that_are_used(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": "x", "channel": "mail"},
        {"text": "", "label": "x", "channel": "phone"},
        {"text": "c", "label": "y", "channel": None},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    arguments = DataArguments(drop_invalid=True)
    found = read_labeled(path, arguments, ["x", "y"], "single_label", ["channel"])
    assert (found.rows.tolist(), found.dropped) == ([0, 2], 1)
    assert found.columns == {"channel": ["mail", ""]}
    said = refusal(read_labeled, path, arguments, ["x", "y"], "single_label", ["chanel"])
    assert "has no column 'chanel', it has text, label, channel: slice by one of these" in said


def test_numbered_labels_in_lists_get_their_names() -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["no", "yes"]))})
    columns = {"text": ["a", "b", "c"], "labels": [[1], [], [0, 1]]}
    table = Dataset.from_dict(columns, features=features)
    rows = read_dataset(table, "hub", DataArguments(label_column="labels"))
    assert rows.multi_label
    assert keep(rows) == Split(["a", "b", "c"], [("yes",), (), ("no", "yes")])


def test_a_row_with_a_rare_label_beside_a_common_one_goes_to_validation_like_its_kind() -> None:
    labels = [("common",)] * 180 + [("common", "rare")] * 20
    split = Split([str(row) for row in range(200)], labels)
    train, validation = stratified_split(split, 0.1, seed=0)
    assert Counter(train.labels) == {("common",): 162, ("common", "rare"): 18}
    assert len(validation) == 20


# Pairs


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_pairs_are_read_from_two_columns(tmp_path: Path, ending: str) -> None:
    rows = [{"text": "a", "other": "b", "label": "x"}, {"text": "c", "other": "d", "label": "y"}]
    path = WRITERS[ending](tmp_path / f"rows.{ending}", rows)
    split = read(path, text_pair_column="other")
    assert split.texts == [("a", "b"), ("c", "d")]
    assert "name the right one with text_pair_column" in refusal(
        lambda: read(path, text_pair_column="second")
    )


def test_a_pair_without_its_second_text_is_named(tmp_path: Path) -> None:
    content = "text,other,label\na,b,x\nc,,y\n"
    said = refusal(lambda: read_text_of(tmp_path, content, text_pair_column="other"))
    assert "rows.csv, row 2 (line 3): the text is empty" in said


@pytest.mark.parametrize(
    ("ending", "text", "kind"),
    [
        ("jsonl", ["a", "b"], "a list"),
        ("jsonl", {"a": "b"}, "an object with the fields 'a': name one, as text_column: text.a"),
        ("parquet", datetime(2024, 1, 31), "a datetime"),
    ],
)
def test_a_text_of_another_type_is_refused_by_name(
    tmp_path: Path, ending: str, text: object, kind: str
) -> None:
    path = WRITERS[ending](tmp_path / f"rows.{ending}", [{"text": text, "label": "x"}])
    assert f"row 1: the text is {kind}" in refusal(read, path)


def test_bytes_in_parquet_are_read_as_text(tmp_path: Path) -> None:
    rows = [{"text": "café".encode(), "label": b"x"}, {"text": b"caf\xe9", "label": b"y"}]
    path = write_parquet(tmp_path / "rows.parquet", rows[:1])
    assert read(path) == single(["café"], ["x"])
    said = refusal(read, write_parquet(path, rows))
    assert "row 2: the text holds bytes that cannot be decoded" in said


def test_not_a_number_is_neither_text_nor_label(tmp_path: Path) -> None:
    nothing = float("nan")
    path = write_parquet(tmp_path / "rows.parquet", [{"text": "a", "label": nothing}])
    assert "row 1: the label is missing" in refusal(read, path)
    path = write_parquet(path, [{"text": nothing, "label": "x"}])
    assert "row 1: the text is missing" in refusal(read, path)


def test_labels_that_are_equal_numbers_are_not_the_same(tmp_path: Path) -> None:
    lines = [f'{{"text": "a", "label": {label}}}\n' for label in ("1", "true", '"y"')]
    assert names(read_text(tmp_path, "".join(lines), "rows.jsonl")) == ["1", "True", "y"]


def test_labels_that_look_like_dates_stay_text_and_dates_are_refused(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "2024-01-31"}]
    assert names(read(write_jsonl(tmp_path / "rows.jsonl", rows))) == ["2024-01-31"]
    rows[0]["label"] = datetime(2024, 1, 31)
    path = write_parquet(tmp_path / "rows.parquet", rows)
    assert "column 'label' was read as dates, not as text" in refusal(read, path)


@pytest.mark.parametrize("before", ["\ufeff", "\n  ", "\ufeff\r\n"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_white_space_before_the_first_row_is_skipped(
    tmp_path: Path, before: str, name: str
) -> None:
    content = json.dumps(ROWS if name == "rows.json" else ROWS[0])
    assert read_text(tmp_path, before + content, name).texts[0] == TEXTS[0]


@pytest.mark.parametrize("content", ["null", "3", '"text"', "  \n"])
def test_json_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    said = refusal(read_text, tmp_path, content, "rows.json")
    assert "rows.json holds no rows: JSON rows begin with {" in said


def test_a_file_that_took_the_place_and_the_time_of_another_is_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", ROWS)
    assert read(path).texts == TEXTS
    # As tar, rsync and `cp -p` leave it.
    before = path.stat()
    write_csv(path, [{"text": row["label"], "label": row["label"]} for row in ROWS])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path).texts == LABELS


# The hub


def hub(monkeypatch: pytest.MonkeyPatch, **splits: list[int]) -> None:
    """Put a data set of these labels on the hub: text "<split> <row>", labels no/yes as 0/1."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"sms": Value("string"), "kind": ClassLabel(names=["no", "yes"])})
    found = DatasetDict(
        {
            name: Dataset.from_dict(
                {"sms": [f"{name} {row}" for row in range(len(labels))], "kind": labels},
                features=features,
            )
            for name, labels in splits.items()
        }
    )

    def load_dataset(name: str, config: str | None, revision: str | None) -> DatasetDict:
        assert (name, config, revision) == ("owner/messages", "plain", "abc")
        return found

    monkeypatch.setattr("datasets.load_dataset", load_dataset)


def load_hub(**keys: Any) -> LabeledData:
    arguments = DataArguments(
        dataset_name="owner/messages",
        dataset_config_name="plain",
        dataset_revision="abc",
        text_column="sms",
        label_column="kind",
        **keys,
    )
    return load_data(arguments, seed=0)


def test_numbered_labels_of_the_hub_get_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[0, 1, 1, 0], validation=[1], test=[0, 1], unsupervised=[-1])
    data = load_hub()
    assert data.labels == ["no", "yes"]
    assert data.train == single([f"train {n}" for n in range(4)], ["no", "yes", "yes", "no"])
    assert data.validation == single(["validation 0"], ["yes"])
    assert data.test == single(["test 0", "test 1"], ["no", "yes"])


def test_the_hubs_columns_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[0, 1] * 20)
    # As if all rows of a label were one customer's.
    assert "no validation rows can be set aside" in refusal(lambda: load_hub(group_column="kind"))
    assert "has no column 'day', it has sms, kind" in refusal(lambda: load_hub(time_column="day"))
    hub(monkeypatch, train=[0, 1] * 20, validation=[0, 1])
    said = refusal(lambda: load_hub(time_column="kind"))
    assert "owner/messages (validation) is given, so that no rows are split by time_column" in said


def test_a_hidden_label_of_the_hub_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[0, 1, 1, 0], test=[0, -1])
    assert "owner/messages (test), row 2: the label is missing" in refusal(load_hub)
    data = load_hub(drop_invalid=True)
    assert (data.dropped, data.test) == (1, single(["test 0"], ["no"]))


def test_a_test_split_of_the_hub_whose_labels_are_all_hidden_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub(monkeypatch, train=[0, 1, 1, 0], validation=[0, 1], test=[-1, -1])
    assert load_hub().test is None
    assert "owner/messages (test) has no labels: it is left out" in caplog.text


def test_a_hub_data_set_without_training_rows_names_its_splits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub(monkeypatch, validation=[0], test=[1])
    assert "'owner/messages' has no split 'train', it has validation, test" in refusal(load_hub)


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto the hub"), FileNotFoundError("no such set"), OSError()]
)
def test_a_hub_that_does_not_answer_names_the_data_set(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    said = refusal(load_hub)
    assert "data set 'owner/messages' could not be loaded from the hub" in said
    assert type(error).__name__ in said
    assert "train_file" in said


# Splitting


def numbered(labels: list[str]) -> Split:
    """A row of its own text for each label."""
    return single([str(row) for row in range(len(labels))], labels)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 40), st.sets(st.sampled_from("abcd"))), min_size=4, max_size=60
    ),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_a_partition_that_leaves_every_label_a_training_row(
    rows: list[tuple[int, set[str]]], share: float, seed: int
) -> None:
    split = Split([str(text) for text, _ in rows], [tuple(sorted(found)) for _, found in rows])
    try:
        train, validation = stratified_split(split, share, seed)
    except DataError:
        # No label has a second text, or what is set aside would take the last row of another.
        return
    pairs = list(zip(split.texts, split.labels, strict=True))
    parts = [list(zip(part.texts, part.labels, strict=True)) for part in (train, validation)]
    assert sorted(parts[0] + parts[1]) == sorted(pairs)
    assert not set(train.texts) & set(validation.texts)
    assert {x for found in train.labels for x in found} == {x for _, found in rows for x in found}
    assert len(train) and len(validation)
    assert stratified_split(split, share, seed) == (train, validation)


@given(
    labels=st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_every_label_with_two_texts_is_on_both_sides(
    labels: list[str], share: float, seed: int
) -> None:
    several = {label for label, count in Counter(labels).items() if count > 1}
    if not several:
        assert "a single text" in refusal(stratified_split, numbered(labels), share, seed)
        return
    train, validation = stratified_split(numbered(labels), share, seed)
    assert set(names(train)) == set(labels)
    assert set(names(validation)) == several


def test_a_split_takes_the_share_of_every_label() -> None:
    train, validation = stratified_split(numbered(["a"] * 200 + ["b"] * 40), 0.1, seed=0)
    assert Counter(names(train)) == {"a": 180, "b": 36}
    assert Counter(names(validation)) == {"a": 20, "b": 4}


def test_another_seed_gives_another_split() -> None:
    split = numbered(["a", "b"] * 50)
    assert stratified_split(split, 0.1, seed=1) != stratified_split(split, 0.1, seed=2)


def test_a_validation_split_is_made_only_when_none_is_given(tmp_path: Path) -> None:
    # Short texts: longer ones that only a number tells apart would stay together.
    many = [row | {"text": f"{row['text'][:9]} {n}"} for n in range(10) for row in ROWS]
    made = load(tmp_path, many, validation_share=0.25)
    assert (len(made.train), len(made.validation), made.test) == (30, 10, None)
    given_one = load(tmp_path, many, validation=ROWS)
    assert (len(given_one.train), given_one.validation.texts) == (40, TEXTS)


# The fingerprint


def test_equal_data_of_another_format_has_the_same_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for ending, write in WRITERS.items():
        file = write(tmp_path / f"rows.{ending}", ROWS)
        prints.add(load_data(DataArguments(train_file=[str(file)]), seed=0).fingerprint())
    assert len(prints) == 1


def test_any_changed_row_changes_the_fingerprint() -> None:
    def fingerprint(train: Split, validation: Split, test: Split | None) -> str:
        return LabeledData(
            train, validation, test, ["a", "b"], "single_label", has_pairs=False, dropped=0
        ).fingerprint()

    one, two = single(["1", "2"], ["a", "b"]), single(["3"], ["a"])
    prints = [
        fingerprint(one, two, None),
        fingerprint(one, two, two),
        fingerprint(two, one, None),
        fingerprint(single(["1", "2!"], ["a", "b"]), two, None),
        fingerprint(single(["1", "2"], ["a", "a"]), two, None),
        fingerprint(single(["2", "1"], ["b", "a"]), two, None),
        fingerprint(one, single(["3"], ["b"]), None),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(one, two, None) == prints[0]
