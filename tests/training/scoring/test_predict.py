"""Scoring a file: its rows and columns kept, an answer for each, and never half a file."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.inference.classifier import Classifier
from tests.conftest import example_rows, write_csv
from training.common.errors import DataError
from training.data.readers import read_blocks
from training.recipe.arguments import DataArguments
from training.scoring.columns import added_columns
from training.scoring.predict import predict

Rows = list[dict[str, Any]]

TEXTS = [row["text"] for row in example_rows("test")[:7]]
ROWS: Rows = [
    {"id": f"{number:03}", "text": text, "note": 'a, "b"\nÄ'} for number, text in enumerate(TEXTS)
]
# Rows of these are scored a few at a time, so batches and with them the last digits may differ.
SAME_SCORE = 1e-5


def write_jsonl(path: Path, rows: Rows) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> Rows:
    """The rows of a written file; CSV as text, its empty cells as null."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows: Rows = parquet.read_table(path).to_pylist()
        return rows
    with path.open(newline="", encoding="utf-8") as lines:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines]
        return [{k: v or None for k, v in row.items()} for row in csv.DictReader(lines)]


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture
def in_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows in a part."""
    for module in ("arrow_files", "csv_files", "json_files"):
        monkeypatch.setattr(f"training.data.{module}.BLOCK_ROWS", 2)


def refused(classifier: Classifier, source: Path, target: Path, **options: Any) -> str:
    """What is said of a file that must be refused: one line; `target` stays as it is."""
    target.write_bytes(b"old")
    before = set(target.parent.iterdir())
    with pytest.raises(DataError) as caught:
        predict(classifier, source, target, **options)
    assert target.read_bytes() == b"old"
    assert set(target.parent.iterdir()) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Formats


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (".csv", ".csv"),
        (".jsonl", ".jsonl"),
        (".parquet", ".parquet"),
        (".csv", ".parquet"),
        (".jsonl", ".csv"),
        (".jsonl", ".parquet"),
        (".parquet", ".csv"),
        (".parquet", ".jsonl"),
    ],
)
def test_rows_keep_columns_and_order_and_gain_the_answers(
    classifier: Classifier, tmp_path: Path, source: str, target: str
) -> None:
    path = WRITERS[source](tmp_path / f"in{source}", ROWS)
    out = tmp_path / "made" / f"out{target}"
    assert predict(classifier, path, out) == (len(ROWS), 0)
    found = read(out)
    assert [list(row) for row in found] == [["id", "text", "note", "label", "score", "error"]] * 7
    assert [{key: row[key] for key in ROWS[0]} for row in found] == ROWS
    answers = classifier.classify(TEXTS)
    assert [row["label"] for row in found] == [answer.label for answer in answers]
    scores = [float(row["score"]) for row in found]
    assert scores == pytest.approx([answer.score for answer in answers], abs=SAME_SCORE)
    assert {row["error"] for row in found} == {None}
    assert list(out.parent.iterdir()) == [out]


def test_numbers_and_nested_values_stay_themselves(classifier: Classifier, tmp_path: Path) -> None:
    rows = [{"text": "late", "n": 7, "x": 0.5, "tags": ["a", "b"], "meta": {"k": None}}]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    predict(classifier, path, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0].items() >= rows[0].items()


def test_parquet_keeps_its_types(classifier: Classifier, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "text": ["late", "lovely"],
            "at": pyarrow.array([datetime(2024, 1, 31), None], pyarrow.timestamp("ms")),
            "n": pyarrow.array([1, None], pyarrow.int16()),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    predict(classifier, tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = parquet.read_table(tmp_path / "out.parquet")
    assert written.select(table.column_names).equals(table)


@pytest.mark.parametrize("target", ["out.csv", "out.jsonl"])
def test_a_parquet_column_of_times_becomes_text(
    classifier: Classifier, tmp_path: Path, target: str
) -> None:
    rows = [{"text": "late", "at": datetime(2024, 1, 31, 12, 30)}]
    path = write_parquet(tmp_path / "in.parquet", rows)
    predict(classifier, path, tmp_path / target)
    assert read(tmp_path / target)[0]["at"].startswith("2024-01-31")


def test_parquet_columns_of_every_type_come_through(classifier: Classifier, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "text": pyarrow.array([TEXTS[0].encode(), None, b"caf\xe9"], pyarrow.binary()),
            "counts": pyarrow.array(
                [[("a", 1)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())
            ),
        }
    )
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(table, source)
    predict(classifier, source, target, DataArguments())
    found = parquet.read_table(target)
    assert found.select(["text", "counts"]) == table
    assert found["label"][0].as_py() == classifier.classify(TEXTS[:1])[0].label
    assert found["error"].to_pylist() == [
        None,
        "the text is missing",
        "the text holds bytes that cannot be decoded: save the file as UTF-8, or name its encoding",
    ]


def test_a_number_that_parquet_cannot_hold_is_one_sentence(
    classifier: Classifier, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a", "n": 2**70}])
    with pytest.raises(DataError, match="rows differ too much for one table"):
        predict(classifier, source, tmp_path / "out.parquet", DataArguments())


def test_two_parquet_columns_of_one_name_are_named(classifier: Classifier, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    source = tmp_path / "in.parquet"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), source)
    with pytest.raises(DataError, match="two columns named 'text'"):
        predict(classifier, source, tmp_path / "out.csv", DataArguments())


def test_a_byte_order_mark_is_not_part_of_the_first_column(
    classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("\ufefftext\nlate\n", encoding="utf-8")
    predict(classifier, tmp_path / "in.csv", tmp_path / "out.csv")
    assert list(read(tmp_path / "out.csv")[0]) == ["text", "label", "score", "error"]


@pytest.mark.parametrize("source", [".csv", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_a_file_without_rows_gives_a_file_without_rows(
    classifier: Classifier, tmp_path: Path, source: str, target: str
) -> None:
    import pyarrow
    from pyarrow import parquet

    path, out = tmp_path / f"in{source}", tmp_path / f"out{target}"
    if source == ".csv":
        path.write_text("id,text\n", encoding="utf-8")
    else:
        columns = {name: pyarrow.array([], pyarrow.string()) for name in ("id", "text")}
        parquet.write_table(pyarrow.table(columns), path)
    assert predict(classifier, path, out) == (0, 0)
    assert read(out) == []
    if target == ".parquet":
        written = parquet.read_table(out).column_names
        assert written == ["id", "text", "label", "score", "error"]


def test_a_very_long_cell_is_kept_whole(classifier: Classifier, tmp_path: Path) -> None:
    rows = [{"text": "long " * 50_000}]
    predict(classifier, write_csv(tmp_path / "in.csv", rows), tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["text"], row["error"]) == (rows[0]["text"], None)


def test_a_file_can_be_scored_in_place(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", ROWS)
    predict(classifier, path, path)
    assert [row["text"] for row in read(path)] == TEXTS


# Columns


def test_all_scores_adds_a_column_for_each_label(classifier: Classifier, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ROWS)
    predict(classifier, path, tmp_path / "out.jsonl", all_scores=True)
    for row, answer in zip(read(tmp_path / "out.jsonl"), classifier.classify(TEXTS), strict=True):
        scores = [row[f"score_{label}"] for label in classifier.manifest.labels]
        assert list(row)[-len(scores) :] == [f"score_{x}" for x in classifier.manifest.labels]
        assert sum(scores) == pytest.approx(1, abs=SAME_SCORE)
        assert scores == pytest.approx(answer.probs.tolist(), abs=SAME_SCORE)
        assert row["score"] == max(scores) == row[f"score_{row['label']}"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_own_label_column_stays_beside_the_predicted_one(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    rows = [{"text": text, "label": "mine", "score": "9"} for text in TEXTS]
    path = WRITERS[ending](tmp_path / f"in{ending}", rows)
    predict(classifier, path, tmp_path / f"out{ending}")
    found = read(tmp_path / f"out{ending}")
    assert list(found[0]) == [
        *("text", "label", "score"),
        *("predicted_label", "predicted_score", "error"),
    ]
    assert [{key: row[key] for key in rows[0]} for row in found] == rows
    expected = [answer.label for answer in classifier.classify(TEXTS)]
    assert [row["predicted_label"] for row in found] == expected


@pytest.mark.parametrize(
    ("columns", "labels", "expected"),
    [
        (["text"], [], ["label", "score", "error"]),
        (["text", "error"], [], ["label", "score", "predicted_error"]),
        (["text"], ["a"], ["label", "score", "error", "score_a"]),
        (["score_a"], ["a", "b"], ["label", "score", "error", "predicted_score_a", "score_b"]),
    ],
)
def test_added_columns_never_take_the_name_of_one_there_is(
    classifier: Classifier, columns: list[str], labels: list[str], expected: list[str]
) -> None:
    manifest = classifier.manifest.model_copy(update={"labels": tuple(labels)})
    assert list(added_columns(columns, manifest, bool(labels)).values()) == expected


def test_no_name_is_left_for_the_label(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", [{"text": "a", "label": "b", "predicted_label": "c"}])
    said = refused(classifier, path, tmp_path / "out.csv")
    assert "already has a column 'predicted_label'" in said


def test_the_text_column_may_have_another_name(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", [{"text": "wrong", "body": TEXTS[0]}])
    predict(classifier, path, tmp_path / "out.csv", DataArguments(text_column="body"))
    (row,) = read(tmp_path / "out.csv")
    (answer,) = classifier.classify([TEXTS[0]])
    assert float(row["score"]) == pytest.approx(answer.score, abs=SAME_SCORE)


# Rows without an answer


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_row_without_text_says_why_and_is_counted(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    rows: Rows = [{"text": text} for text in (TEXTS[0], "  ", TEXTS[1], None)]
    path = WRITERS[ending](tmp_path / f"in{ending}", rows)
    counts = predict(classifier, path, tmp_path / f"out{ending}", all_scores=True)
    assert counts == (4, 2)
    found = read(tmp_path / f"out{ending}")
    expected = [answer.label for answer in classifier.classify(TEXTS[:2])]
    assert [row["label"] for row in found] == [expected[0], None, expected[1], None]
    assert [row["score"] is None for row in found] == [False, True, False, True]
    assert [row["score_praise"] is None for row in found] == [False, True, False, True]
    # A CSV cell is never missing, only empty.
    last = "the text is empty" if ending == ".csv" else "the text is missing"
    assert [row["error"] for row in found] == [None, "the text is empty", None, last]


def test_a_file_without_any_text_has_only_errors(classifier: Classifier, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": None}, {"text": ["a"]}])
    assert predict(classifier, path, tmp_path / "out.jsonl") == (2, 2)
    errors = [row["error"] for row in read(tmp_path / "out.jsonl")]
    assert errors == ["the text is missing", "the text is a list"]


def test_a_csv_row_that_ends_early_has_no_text(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,late\n2\n", encoding="utf-8")
    assert predict(classifier, tmp_path / "in.csv", tmp_path / "out.csv") == (2, 1)
    assert read(tmp_path / "out.csv")[1] == {
        **{"id": "2", "text": None, "label": None, "score": None},
        "error": "the text is missing",
    }


# Streaming


ENDINGS = [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".csv.gz", ".jsonl.zst"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_parts_make_one_file_of_every_format(
    classifier: Classifier, tmp_path: Path, in_twos: None, ending: str
) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / f"out{ending}"
    assert predict(classifier, path, out) == (7, 0)
    blocks = list(read_blocks(str(out), None))
    found = [record for block in blocks for record in block.records()]
    assert [row["text"] for row in found] == TEXTS
    assert [row["label"] for row in found] == [
        answer.label for answer in classifier.classify(TEXTS)
    ]
    assert [row["note"] for row in found] == [ROWS[0]["note"]] * 7
    assert set(tmp_path.iterdir()) == {path, out}


def test_columns_that_only_later_rows_have_are_columns(
    classifier: Classifier, tmp_path: Path, in_twos: None
) -> None:
    rows: Rows = [{"text": text} for text in TEXTS]
    rows[5] |= {"n": 5, "label": "mine"}
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    for ending in (".csv", ".parquet", ".jsonl"):
        predict(classifier, path, tmp_path / f"out{ending}")
        found = read(tmp_path / f"out{ending}")
        assert str(found[5]["n"]) == "5" and found[5]["label"] == "mine"
        assert {row["predicted_label"] for row in found} <= set(classifier.manifest.labels)


# Refusals


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_names_the_columns_there_are(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    path = WRITERS[ending](tmp_path / f"in{ending}", [{"id": "1", "body": "late"}])
    said = refused(classifier, path, tmp_path / "out.csv")
    assert f"in{ending} has no column 'text', it has id, body" in said


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("in.jsonl", b"\n", "in.jsonl holds no rows"),
        ("in.csv", b"", "in.csv is empty"),
        ("in.csv", b"text,text\na,b\n", "two columns named 'text'"),
        ("in.parquet", b"PAR1", "in.parquet cannot be read as Parquet"),
        ("in", b"text\na\n", "in: the names of files end in .csv"),
    ],
)
def test_a_file_that_cannot_be_read_leaves_the_old_answers(
    classifier: Classifier, tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert part in refused(classifier, tmp_path / name, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.csv", b"text,n\na,1\ncaf\xe9,2\nb,3\n", "the text holds bytes that cannot be decoded"),
        ("in.csv", b"text,n\na,1\nx,2,9\nb,3\n", "it has 3 cells, and there are 2 columns"),
        ("in.csv", b'text,n\na,1\n"x,2\nb,3\n', "a quote opens in it that nothing closes"),
        ("in.jsonl", b'{"text":"a"}\n{"text":\n{"text":"b"}\n', "the line is not JSON"),
        ("in.jsonl", b'{"text":"a"}\n["x"]\n{"text":"b"}\n', "it is not a JSON object"),
        ("in.jsonl", b'{"text":"a"}\n{"text":"\\ud83d"}\n{"text":"b"}\n', "a lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_read_gets_its_reason_and_the_others_their_labels(
    classifier: Classifier, tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert predict(classifier, tmp_path / name, tmp_path / "out.jsonl") == (3, 1)
    found = read(tmp_path / "out.jsonl")
    assert [row["label"] is None for row in found] == [False, True, False]
    assert problem in found[1]["error"]
    expected = [answer.label for answer in classifier.classify(["a", "b"])]
    assert [found[0]["label"], found[2]["label"]] == expected


def test_bytes_that_cannot_be_decoded_are_written_as_they_were(
    classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_bytes(b"text,note\nlate,caf\xe9\n")
    assert predict(classifier, tmp_path / "in.csv", tmp_path / "out.csv") == (1, 0)
    assert b"\nlate,caf\xe9," in (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_carriage_return_in_a_text_ends_no_row(
    classifier: Classifier, tmp_path: Path, ending: str
) -> None:
    rows: Rows = [{"text": "hello\rworld", "id": 1}, {"text": "late", "id": 2}]
    out = tmp_path / f"out{ending}"
    assert predict(classifier, write_jsonl(tmp_path / "in.jsonl", rows), out) == (2, 0)
    found = [row for block in read_blocks(str(out), None) for row in block.records()]
    assert [(row["text"], row["id"]) for row in found] == [("hello\rworld", "1"), ("late", "2")]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_tools_layout_holds_for_the_whole_file(
    classifier: Classifier, tmp_path: Path, in_twos: None, ending: str
) -> None:
    rows: Rows = [
        {"fields": {"text": text}, "responses": {"label": [{"value": "praise"}]}}
        for text in TEXTS[:2]
    ]
    rows += [{"fields": {"text": text}, "responses": None} for text in TEXTS[2:4]]
    path = WRITERS[ending](tmp_path / f"in{ending}", rows)
    assert predict(classifier, path, tmp_path / "out.jsonl") == (4, 0)
    expected = [answer.label for answer in classifier.classify(TEXTS[:4])]
    assert [row["label"] for row in read(tmp_path / "out.jsonl")] == expected


def test_a_result_in_the_folder_is_no_input_of_the_next_command(
    classifier: Classifier, tmp_path: Path
) -> None:
    write_csv(tmp_path / "in.csv", ROWS)
    for _ in range(2):
        assert predict(classifier, tmp_path, tmp_path / "out.csv")[0] == len(ROWS)


@pytest.mark.parametrize("name", ["out.txt", "out.xlsx", "out.parquet.gz", "out"])
def test_an_unknown_ending_of_the_target_is_refused_before_any_work(
    classifier: Classifier, tmp_path: Path, name: str
) -> None:
    path = write_csv(tmp_path / "in.csv", ROWS)
    assert f"{name}: the result must end in" in refused(classifier, path, tmp_path / name)


def test_a_missing_file_is_named(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.csv"
    assert refused(classifier, path, tmp_path / "out.csv") == f"there is no file {path}"


@pytest.mark.parametrize(
    ("later", "target"),
    [
        ({"text": "b", "id": "one"}, "out.parquet"),
        ({"text": "b", "id": {"a": 1}}, "out.arrow"),
    ],
)
def test_json_rows_that_do_not_fit_one_table_are_refused(
    classifier: Classifier, tmp_path: Path, later: dict[str, Any], target: str
) -> None:
    rows = [{"text": "a", "id": 1}, later]
    said = refused(classifier, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / target)
    assert "rows differ" in said


def test_a_text_without_finite_scores_is_a_row_with_a_reason(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rows keep their answers; whether one is refused may change with those beside it."""
    logits = classifier.logits

    def spoiled(encodings: Any) -> Any:
        rows = logits(encodings).copy()
        for row, encoding in zip(rows, encodings, strict=True):
            # The long one always, the middle one only where it is the longest.
            if len(encoding) > 20 or (10 < len(encoding) == max(map(len, encodings))):
                row[:] = np.nan
        return rows

    monkeypatch.setattr(classifier, "logits", spoiled)
    texts = ["hello", "word " * 30, "thanks", "word " * 12]
    source = write_csv(tmp_path / "in.csv", [{"text": text} for text in texts])
    assert predict(classifier, source, tmp_path / "out.jsonl") == (4, 2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["label"] is None for row in rows] == [False, True, False, True]
    assert "no finite scores" in rows[1]["error"]
    assert rows[0]["error"] is None


@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("column", ["text", "note"])
def test_bytes_that_are_no_utf8_in_a_string_of_parquet_are_a_rows_own_problem(
    classifier: Classifier, tmp_path: Path, target: str, column: str
) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    path, out = tmp_path / "in.parquet", tmp_path / f"out{target}"
    columns = {"text": [b"late", b"my parcel"], "note": [b"a", b"b"]}
    columns[column][0] = b"gr\xfc\xdfe"
    arrays = {
        name: pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
        for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), path)
    failures = int(column == "text")
    assert predict(classifier, path, out) == (2, failures)
    if target in (".parquet", ".arrow"):
        table = parquet.read_table(out) if target == ".parquet" else ipc.open_file(out).read_all()
        content, reason = table[column].cast(pyarrow.binary())[0].as_py(), table["error"][0].as_py()
    else:
        content = out.read_bytes()
        reason = content.decode("utf-8", "replace")
    # JSON holds no such bytes: they are escapes there.
    assert (rb"gr\udcfc\udcdfe" if target == ".jsonl" else b"gr\xfc\xdfe") in content
    assert ("holds bytes that cannot be decoded" in (reason or "")) == bool(failures)
