"""Files that look like something else, or are written as few are: read, or said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, parquet

from training.common.errors import DataError
from training.data.blocks import SHOWN_CHARACTERS
from training.data.dataset import read_rows
from training.data.findings import Rows
from training.data.readers import ReadingKeys, read_blocks
from training.data.rows import read_files
from training.data.sources import find_sources
from training.recipe.arguments import DataArguments

SCRIPTS = {
    "hiragana": "おはようございますきのうはとてもたのしかったです",
    "chinese": "我的包裹一直没有到请问什么时候可以送达一下",
    "japanese": "荷物がまだ届いていません。いつ届きますか",
    "korean": "소포가 아직 도착하지 않았습니다",
    "russian": "Моя посылка до сих пор не пришла",
    "greek": "το δέμα μου δεν έχει φτάσει ακόμα",
    "hindi": "मेरा पार्सल अभी तक नहीं आया",
}


def read(path: Path, **keys: Any) -> Rows:
    """Every row of a file."""
    return read_files([str(path)], DataArguments(**keys))[0]


def refusal(path: Path, **keys: Any) -> str:
    """What is said of a file that is refused: one line."""
    with pytest.raises(DataError) as caught:
        read(path, **keys)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_utf16_without_a_mark_is_recognised_in_every_script(
    tmp_path: Path, script: str, encoding: str, ending: str
) -> None:
    # Long rows: the fewer separators, the fewer zero bytes.
    texts = [SCRIPTS[script] * 20 + str(number) for number in range(40)]
    lines = {
        ".csv": ["text,label", *(f"{text},x" for text in texts)],
        ".jsonl": [json.dumps({"text": t, "label": "x"}, ensure_ascii=False) for t in texts],
        ".txt": [f"__label__x {text}" for text in texts],
    }[ending]
    path = tmp_path / f"a{ending}"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    assert read(path).texts == texts


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_text_of_four_bytes_without_a_mark_is_refused_and_read_by_name(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nlate,x\n".encode(encoding))
    assert "name its encoding (key encoding), such as utf-32" in refusal(path)
    assert read(path, encoding=encoding).texts == ["late"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_few_zero_bytes_are_still_utf8(tmp_path: Path, script: str) -> None:
    texts = [SCRIPTS[script][: 3 + number % 11] + "\0" * (number % 3) for number in range(50)]
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{text},x\n" for text in texts), encoding="utf-8")
    assert read(path).texts == texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [";", "\t", "|", "^"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_that_names_the_separator_is_believed(
    tmp_path: Path, end: str, separator: str, quote: str
) -> None:
    lines = [f"{quote}sep={separator}{quote}", f"text{separator}label", f"a, b{separator}x"]
    path = tmp_path / "a.csv"
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    found = read(path)
    assert (found.texts, found.labels) == (["a, b"], [("x",)])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".txt"])
def test_lines_may_end_with_carriage_returns_only(tmp_path: Path, ending: str) -> None:
    texts = ["Grüße", "tolle Arbeit", "schön", "süß"]
    lines = {
        ".csv": ["text;label", *(f"{text};x" for text in texts)],
        ".txt": [f"__label__x {text}" for text in texts],
    }.get(ending, [json.dumps({"text": text, "label": "x"}) for text in texts])
    path = tmp_path / f"a{ending}"
    path.write_bytes("".join(f"{line}\r" for line in lines).encode())
    assert read(path).texts == texts
    blocks = [block for block in read_blocks(str(path), None) if len(block)]
    assert blocks[0].lines[:2] == ([2, 3] if ending == ".csv" else [1, 2])
    # One bad byte makes no other encoding of all of them.
    path.write_bytes("".join(f"{line}\r" for line in lines).encode() + b"\xff bad;x\r")
    assert read(path).texts[:4] == texts


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf<!DOCTYPE html><html>",
        b"<!-- saved from the web -->\n<html>",
        b"\xef\xbb\xbf\r\n<!-- a\n-- b -->\n<!-- c --><!doctype HTML>",
        b'<body class="login">',
    ],
)
def test_web_pages_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content + b"<p>Sign in, please</p>\n")
    assert "is a web page, not a table" in refusal(path)


def test_a_single_column_of_texts_with_commas_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nlate, again\nfine\n", encoding="utf-8")
    (block,) = [block for block in read_blocks(str(path), ["text"]) if len(block)]
    assert block.problems[0].message == (
        "it has 2 cells, and there is one column (a text that holds commas has to be in quotes)"
    )
    (block,) = [block for block in read_blocks(str(path), ["text"], ReadingKeys("^")) if len(block)]
    assert block.values("text") == ["late, again", "fine"]


def test_a_header_that_is_a_text_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{'my parcel is late ' * 500},x\nb,y\n", encoding="utf-8")
    said = refusal(path)
    assert "has no column 'text', it has my parcel is late" in said
    assert "or add a header line" in said and len(said) < 4 * SHOWN_CHARACTERS + len(str(path))
    path.write_text(f"text,label,{'long ' * 500}\na,x,\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'when'") as caught:
        read_rows(DataArguments(train_file=[str(path)], time_column="when"))
    assert len(str(caught.value)) < 4 * SHOWN_CHARACTERS + len(str(path))


def test_label_studio_writes_several_choices_into_a_cell_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'annotation_id,sentiment,text\n1,"{""choices"":[""a"",""b""]}",one\n2,a,two\n'
        '3,"{""choices"":[]}",three\n4,"{""choices"": broken",four\n',
        encoding="utf-8",
    )
    found = read(path, label_column="sentiment")
    assert found.multi_label
    assert found.labels == [("a", "b"), ("a",), (), ('{"choices": broken',)]
    assert [remark.code for remark in found.remarks] == ["label_lists"]


def test_annotators_who_chose_the_same_in_another_order_agree(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "label.responses": [["a", "b"], ["b", "a"]]},
        {"text": "two", "label.responses": [["a", "b"], ["a"]]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read(path)
    assert set(found.labels[0]) == {"a", "b"}
    assert list(found.problems) == [1] and found.problems[1].code == "disagreement"


@pytest.mark.parametrize("address", ["s3://", "s3:///", "file://", "https://"])
def test_an_address_of_nothing_is_refused(address: str) -> None:
    with pytest.raises(DataError, match=f"{address} names no file: write all of it"):
        find_sources(address)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_text_of_a_table_that_is_no_utf8_is_read_with_its_bytes(
    tmp_path: Path, ending: str
) -> None:
    """As Hive, Impala and Spark write it: also in lists, objects and maps."""
    bad, good = b"gr\xfc\xdfe", b"fine"

    def text(values: list[bytes]) -> Any:
        """What pyarrow itself would not make: bytes of any kind as text."""
        return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())

    ends = pyarrow.array([0, 1, 2], pyarrow.int32())
    columns = {
        "text": text([bad, good]),
        "large": pyarrow.array([bad, good], pyarrow.large_binary()).view(pyarrow.large_string()),
        "list": pyarrow.ListArray.from_arrays(ends, text([bad, good])),
        "object": pyarrow.StructArray.from_arrays([text([bad, good])], ["name"]),
        "map": pyarrow.MapArray.from_arrays(ends, text([bad, good]), text([bad, good])),
    }
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        parquet.write_table(pyarrow.table(columns), path)
    else:
        # Of Parquet pyarrow itself refuses such words.
        columns["words"] = pyarrow.DictionaryArray.from_arrays([0, 1], text([bad, good]))
        feather.write_feather(pyarrow.table(columns), path)
    (block,) = [block for block in read_blocks(str(path), None) if len(block)]
    kept = "gr\udcfc\udcdfe"
    for row, value in zip(block.records(), (kept, "fine"), strict=True):
        assert row.pop("words", value) == value
        assert row == {
            "text": value,
            "large": value,
            "list": [value],
            "object": {"name": value},
            "map": [[value, value]],
        }
    assert block.values("object.name") == [kept, "fine"]
