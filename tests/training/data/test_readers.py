"""One reader for files of every kind: what people export is read, or said to be something else."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet

from training.common.errors import DataError
from training.data import arrow_files, csv_files, readers
from training.data.csv_files import CsvFormat, read_csv
from training.data.readers import ReadingKeys, read_blocks
from training.data.sources import find_sources

ROWS = [
    {"text": "my parcel is late", "label": "delivery"},
    {"text": "Grüße, tolle Arbeit", "label": "praise"},
    {"text": 'it said "yes", then no', "label": "delivery"},
    {"text": "können Sie das ändern?", "label": "praise"},
    {"text": "schöne Farbe; gute Größe", "label": "praise"},
]

# Two megabytes that hardly get smaller when they are compressed.
MANY_ROWS = b"text,label\n" + b"".join(
    hashlib.sha256(row.to_bytes(4, "big")).hexdigest().encode() + b",a\n" for row in range(30_000)
)


def csv_of(separator: str, end: str = "\n") -> str:
    """ROWS as CSV."""
    text = io.StringIO(newline="")
    import csv

    writer = csv.DictWriter(text, ["text", "label"], delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def read(path: Path | str | list[str], **keys: Any) -> list[dict[str, Any]]:
    """Text and label of every row, or what is wrong with it."""
    found: list[dict[str, Any]] = []
    for block in read_blocks(
        path if isinstance(path, list) else str(path), ["text", "label"], **keys
    ):
        values = zip(block.values("text"), block.values("label"), strict=True)
        for place, (text, label) in enumerate(values):
            problem = block.problems.get(place)
            found.append(
                {"problem": problem.message} if problem else {"text": text, "label": label}
            )
    return found


def refusal(path: Path | str, **keys: Any) -> str:
    """What is said of a file that is refused: one line."""
    with pytest.raises(DataError) as caught:
        read(path, **keys)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def pandas_layouts() -> dict[str, str]:
    """ROWS as pandas' to_json writes them."""
    import pandas

    frame = pandas.DataFrame(ROWS)
    orients = ("columns", "index", "records", "split", "table")
    return {orient: frame.to_json(orient=orient) for orient in orients}  # type: ignore[call-overload]


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CONTENTS: dict[str, tuple[str, bytes]] = {
    "commas": ("a.csv", csv_of(",").encode()),
    "semicolons": ("a.csv", csv_of(";", "\r\n").encode()),
    "sep line": ("a.csv", ("sep=;\r\n" + csv_of(";", "\r\n")).encode()),
    "tabs": ("a.csv", csv_of("\t").encode()),
    "tsv": ("a.tsv", csv_of("\t").encode()),
    "bars": ("a.csv", csv_of("|").encode()),
    "windows-1252": ("a.csv", csv_of(",").encode("cp1252")),
    "utf-8 mark": ("a.csv", csv_of(",").encode("utf-8-sig")),
    "utf-16 mark": ("a.csv", csv_of("\t").encode("utf-16")),
    "utf-16 little": ("a.csv", csv_of(",").encode("utf-16-le")),
    "utf-16 big": ("a.csv", csv_of(",").encode("utf-16-be")),
    "json lines": ("a.jsonl", LINES.encode()),
    "ndjson": ("a.ndjson", LINES.encode("utf-16")),
    "lines called json": ("a.json", LINES.encode()),
    "json list": ("a.json", json.dumps(ROWS).encode()),
    "pretty list": ("a.json", json.dumps(ROWS, indent=2).encode()),
    "data": ("a.json", json.dumps({"data": ROWS}, indent=1).encode()),
    "columns of lists": (
        "a.json",
        json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}).encode(),
    ),
    "fasttext": (
        "a.txt",
        "".join(f"__label__{row['label']} {row['text']}\n" for row in ROWS).encode(),
    ),
    **{f"pandas {name}": ("a.json", text.encode()) for name, text in pandas_layouts().items()},
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, compression: str) -> None:
    name, content = CONTENTS[kind]
    if compression == ".gz":
        content = gzip.compress(content)
    elif compression == ".zst":
        content = pyarrow.compress(content, codec="zstd", asbytes=True)
    path = tmp_path / f"{name}{compression}"
    path.write_bytes(content)
    assert read(path) == ROWS


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather"])
def test_tables_of_arrow_are_read(tmp_path: Path, ending: str) -> None:
    table, path = pyarrow.Table.from_pylist(ROWS), tmp_path / f"a{ending}"
    if ending == ".parquet":
        parquet.write_table(table, path)
    elif ending == ".feather":
        feather.write_feather(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    assert read(path) == ROWS


def test_keys_name_the_delimiter_and_encoding_that_cannot_be_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text^label\n荷物^配達\n".encode("shift_jis"))
    found = read(path, keys=ReadingKeys("^", "shift_jis"))
    assert found == [{"text": "荷物", "label": "配達"}]
    assert "there is no encoding 'latin-99'" in refusal(path, keys=ReadingKeys(None, "latin-99"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"PK\x03\x04rest", "is a ZIP archive (as Excel's .xlsx are)"),
        ("a.xlsx", b"PK\x03\x04rest", "is a ZIP archive (as Excel's .xlsx are)"),
        ("a.csv", b"PAR1rest", "is a Parquet file: name it .parquet"),
        ("a.jsonl", b"ARROW1rest", "is an Arrow file"),
        ("a.csv", b"<!DOCTYPE html><html>", "is a web page, not a table"),
        ("a.csv", b"\n<html>", "is a web page, not a table"),
        ("a.csv", gzip.compress(b"text,label\n", mtime=0), "compressed by gzip: name it .gz"),
        ("a.csv", b"text,label,,\na,x,,\n", "line 1: cell 3, 4 of the header is empty"),
        ("a.json", b"[[1, 2], [3, 4]]", "a list of lists, whose columns have no names"),
        ("a.json", b'[{"text": "a", "label": "b"}]\n[{"text": "c"}]', "row 2: more stands behind"),
        ("a.csv.gz", gzip.compress(MANY_ROWS, mtime=0)[:-9], "it breaks off"),
        ("a.json", b'[{"text": "a", "label": "b"}, {"te', "row 2: from here on it is not JSON"),
    ],
)
def test_files_of_other_formats_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"text,label\na,x\nb,y,z\nc,x\n", "it has 3 cells, and there are 2 columns"),
        ("a.csv", b'text,label\na,x\n"b,y\nc,x\n', "a quote opens in it that nothing closes"),
        ("a.jsonl", b'{"text":"a","label":"x"}\n{bad\n{"text":"c","label":"x"}\n', "not JSON"),
        ("a.jsonl", b'{"text":"a","label":"x"}\n[1]\n{"text":"c","label":"x"}\n', "JSON object"),
        ("a.json", b'[{"text":"a","label":"x"}, 7, {"text":"c","label":"x"}]', "JSON object"),
    ],
)
def test_a_broken_row_has_its_reason_and_the_others_are_read(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    first, second, third = read(path)
    assert (first, third) == ({"text": "a", "label": "x"}, {"text": "c", "label": "x"})
    assert expected in second["problem"]


def test_a_quote_at_the_start_of_a_cell_need_not_be_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"Premium" plan please,x\nb,y\n', encoding="utf-8")
    assert [row["text"] for row in read(path)] == ["Premium plan please", "b"]


def test_a_quote_that_opens_by_mistake_takes_no_other_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"Great phone,a\nfine,b\n5" screen,a\nok,b\n', encoding="utf-8")
    first, *others = read(path)
    assert "a quote opens in it" in first["problem"]
    assert [row["text"] for row in others] == ["fine", '5" screen', "ok"]


def test_a_row_that_is_too_long_is_one_row_or_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv_files, readers):
        monkeypatch.setattr(module, "ROW_CHARACTERS", 100)
    path = tmp_path / "a.csv"
    cell = '"Dear all,\n' + "Hello, urgent\n" * 50 + 'as ""said"", bye"'
    path.write_text(f"text,label\na,x\n{cell},spam\nb,x\n", encoding="utf-8")
    first, second, third = read(path)
    assert (first["text"], third["text"]) == ("a", "b")
    assert "it has more than" in second["problem"]
    path.write_text('text,label\na,x\n"open,x\n' + "b,x\n" * 50, encoding="utf-8")
    assert "line 3: a row of more than 100 characters begins" in refusal(path)


def test_utf8_behind_what_was_taken_for_windows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    head = b"text,label\n" + b"caf\xe9,x\n" * 3 + b"plain,x\n" * 200_000
    path.write_bytes(head + "später,y\n".encode())
    assert "line 200005: it is UTF-8, and lines before it are not" in refusal(path)


def test_blocks_of_large_rows_have_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "BLOCK_CHARACTERS", 100_000)
    rows = [{"text": f"{row:1000}", "label": "x"} for row in range(2000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    blocks = [block for block in read_blocks(str(tmp_path / "a.parquet"), None) if len(block)]
    assert [block.start for block in blocks] == list(range(0, 2000, 256))
    assert sum(map(len, blocks)) == 2000


def test_a_name_for_lines_of_json_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('garbage\n{"text": "a", "label": "x"}\n', encoding="utf-8")
    first, second = read(path)
    assert (first["problem"], second["text"]) == ("the line is not JSON", "a")
    path.write_text('{"text": "a", "label": "x", "data": [{"text": "inner"}]}', encoding="utf-8")
    assert read(path) == [{"text": "a", "label": "x"}]


def test_an_encoding_that_is_named_may_have_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for encoding, named in (("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16")):
        path.write_bytes(csv_of(",").encode(encoding))
        assert read(path, keys=ReadingKeys(None, named)) == ROWS


def test_a_file_of_open_quotes_is_no_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "ROW_CHARACTERS", 200)
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + '"a,x\nb,x\n' * 101, encoding="utf-8")
    found = read_csv(
        iter(path.read_text("utf-8").splitlines(keepends=True)), CsvFormat(","), "a.csv"
    )
    rows = sum(len(block) for block in found)
    # Quotes that happen to close one another are cells; the last one closes with nothing.
    assert rows > 50


def test_a_column_that_nobody_reads_may_be_anything(tmp_path: Path) -> None:
    late = [[1, "one"], [None, "x"], [{"k": 1}, {"k": 1, "more": "x"}], [[], ["x"]], [1, 1.5]]
    rows = [
        {
            "text": str(row),
            "label": "ab"[row % 2],
            **{f"c{n}": pair[row > 5000] for n, pair in enumerate(late)},
        }
        for row in range(6000)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read(path) == [{"text": row["text"], "label": row["label"]} for row in rows]


def test_folders_patterns_and_lists_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "day=1"
    parts.mkdir()
    for number, name in enumerate(["b.csv", "a.jsonl", "_SUCCESS", ".c.csv.crc", "notes.md"]):
        row = {"text": f"{number}", "label": "x"}
        content = json.dumps(row) if name.endswith("l") else f"text,label\n{number},x\n"
        (parts / name).write_text(content, encoding="utf-8")
    assert [row["text"] for row in read(tmp_path)] == ["1", "0"]
    assert [row["text"] for row in read(f"{parts}/*.csv")] == ["0"]
    named = [str(parts / "b.csv"), str(parts / "a.jsonl")]
    assert [row["text"] for row in read(named)] == ["0", "1"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [row["text"] for row in read("~/day=1/b.csv")] == ["0"]
    (tmp_path / "empty").mkdir()
    assert "empty holds no file to read" in refusal(tmp_path / "empty")
    assert "no file is named like" in refusal(f"{tmp_path}/*.parquet")


def test_lines_are_named_where_rows_do_not_count_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a\nb",x\n\nc,y\n', encoding="utf-8")
    blocks = [block for block in read_blocks(str(path), None) if len(block)]
    assert [block.lines for block in blocks] == [[2, 5]]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_of(","), encoding="utf-8")
    blocks = read_blocks(str(path), None)
    next(blocks)
    with path.open("a", encoding="utf-8") as handle:
        handle.write("one more,x\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(blocks)


def test_an_address_without_a_driver_says_which(tmp_path: Path) -> None:
    assert "no driver is known for nothing://" in refusal("nothing://bucket/a.csv")
    said = refusal("gs://bucket/a.csv?token=secret")
    assert "gs://bucket/a.csv needs the driver gcsfs, which is not installed: pip install" in said
    assert said.endswith("pip install -c constraints.txt gcsfs")
    assert "secret" not in said


def test_a_file_from_the_web_needs_no_ending(tmp_path: Path) -> None:
    (tmp_path / "export").write_text(csv_of(";"), encoding="utf-8")
    words = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        assert read(f"http://127.0.0.1:{port}/export") == ROWS
    finally:
        server.kill()
        server.wait()


def test_standard_input_is_read_whatever_it_holds(tmp_path: Path) -> None:
    code = (
        "from training.data.readers import read_blocks\n"
        "print(sum(len(block) for block in read_blocks('-', ['text'])))"
    )
    for content in (csv_of("|"), LINES):
        done = subprocess.run(
            [sys.executable, "-c", code], input=content, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(len(ROWS))


def test_a_source_knows_its_size_and_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\na\n"))
    (source,) = find_sources(path)
    assert source.size == path.stat().st_size
    source.refuse_change()
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="changed while it was read"):
        source.refuse_change()


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=10), where=st.integers(0, 9))
def test_whatever_csv_holds_comes_back_and_a_bad_row_spoils_no_other(
    rows: list[tuple[str, str]], where: int
) -> None:
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["text", "label"])
    lines = []
    for row in rows:
        before = text.tell()
        writer.writerow(row)
        lines.append(text.getvalue()[before:])
    lines.insert(min(where, len(lines)), "one,two,three\n")
    content = io.StringIO("text,label\n" + "".join(lines), newline="")
    blocks = [block for block in read_csv(content, CsvFormat(","), "a.csv") if len(block)]
    found = [
        tuple(row)
        for block in blocks
        for place, row in enumerate(block.cells)
        if place not in block.problems
    ]
    assert found == [row for row in rows if row != ("",)]
    assert sum(len(block.problems) for block in blocks) == 1
