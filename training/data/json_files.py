"""JSON → blocks of rows: one row a line, a list of rows, or a table as pandas writes it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from training.common.errors import DataError
from training.data.blocks import (
    BLOCK_CHARACTERS,
    BLOCK_ROWS,
    ROW_CHARACTERS,
    TOO_LONG,
    Problem,
    RecordBlock,
)
from training.data.text_files import lines_of

# A table in one JSON object cannot be read in parts.
DOCUMENT_CHARACTERS = 1 << 30
CHUNK_CHARACTERS = 1 << 20
NOT_JSON = Problem("malformed_row", "the line is not JSON")
NOT_AN_OBJECT = Problem("malformed_row", "it is not a JSON object")
# Python writes NaN and Infinity, which are no JSON: they are read as null, as pandas does.
DECODER = json.JSONDecoder(parse_constant=lambda _: None)
LINE_END = re.compile(r"\r\n?|\n")
# The characters between the elements of a list.
BETWEEN = re.compile(r"[\s,]*")
# The line, from 1, or None; the row; its problem; its characters.
Row = tuple[int | None, Any, Problem | None, int]


def read_json(
    text: io.TextIOBase, head: str, file: str, wanted: Sequence[str], *, lines: bool = False
) -> Iterator[RecordBlock]:
    """Rows as blocks, each with the columns of all rows so far.

    Args:
        head: what the text begins with.
        wanted: columns that are looked for, where a table's layout is not sure.
        lines: the file is said to have a row on each line.

    Raises:
        DataError: there are no rows in it, or it breaks off in the middle.
    """
    begin = head.lstrip()[:1]
    if begin == "[":
        rows = _list(text, file)
    elif lines:
        rows = _lines(text)
    elif begin != "{":
        raise DataError(f"{file} holds no rows: JSON rows begin with {{, or a list of them with [")
    elif _are_lines(head):
        rows = _lines(text)
    else:
        rows = _document(text, file, wanted)
    return in_blocks(rows, file)


def in_blocks(rows: Iterator[Row], file: str) -> Iterator[RecordBlock]:
    """Rows as blocks; a row that is no object has a problem.

    Raises:
        DataError: there are none.
    """
    columns: dict[str, None] = {}
    block, characters = RecordBlock(file, 0, []), 0
    for line, row, problem, length in rows:
        if problem is None and not isinstance(row, dict):
            problem = NOT_AN_OBJECT
        if problem is not None:
            block.problems[len(block)] = problem
            row = {}
        columns.update(dict.fromkeys(row))
        block.rows.append(row)
        if line is not None:
            block.lines.append(line)
        characters += length
        if len(block) >= BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            block.columns = list(columns)
            yield block
            block, characters = RecordBlock(file, block.start + len(block), []), 0
    if len(block):
        block.columns = list(columns)
        yield block
    elif not block.start:
        raise DataError(f"{file} holds no rows")


def _are_lines(head: str) -> bool:
    """Whether each line is a row; a single line with a whole object is read as a document."""
    lines = [line for line in LINE_END.split(head, 3)[:3] if line.strip()]
    whole = [_loads(line) is not None for line in lines[:2]]
    return len(lines) > 1 and any(whole)


def _loads(text: str) -> Any:
    """The value of a JSON text, or None where it is not JSON."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _lines(text: io.TextIOBase) -> Iterator[Row]:
    for number, line in enumerate(lines_of(text, ROW_CHARACTERS), start=1):
        if len(line) > ROW_CHARACTERS:
            yield number, None, TOO_LONG, 0
        elif line.strip():
            row = _loads(line)
            yield number, row, NOT_JSON if row is None else None, len(line)


def _list(text: io.TextIOBase, file: str) -> Iterator[Row]:
    """The elements of a list, one after another; the list need not fit into memory."""
    buffer = text.read(CHUNK_CHARACTERS).lstrip()[1:]
    count, place = 0, 0
    while True:
        try:
            place = BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
            if buffer[place : place + 1] == "]":
                if buffer[place + 1 :].strip() or text.read(CHUNK_CHARACTERS).strip():
                    raise DataError(
                        f"{file}, row {count + 1}: more stands behind the list: give each list a "
                        "file of its own, or a row on each line"
                    )
                return
            row, end = DECODER.raw_decode(buffer, place)
        except (ValueError, RecursionError):
            more = text.read(max(CHUNK_CHARACTERS, len(buffer) - place))
            if not more or len(buffer) - place > 2 * ROW_CHARACTERS:
                raise DataError(
                    f"{file}, row {count + 1}: from here on it is not JSON: was the file written "
                    "to its end?"
                ) from None
            buffer, place = buffer[place:] + more, 0
            continue
        count += 1
        if isinstance(row, list):
            raise DataError(
                f"{file} is a list of lists, whose columns have no names: write it with "
                "to_json(orient='records')"
            )
        yield None, row, None, end - place
        place = end


def _document(text: io.TextIOBase, file: str, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a table that is one object."""
    content = text.read(DOCUMENT_CHARACTERS + 1)
    if len(content) > DOCUMENT_CHARACTERS:
        raise DataError(
            f"{file} is one JSON object of more than {DOCUMENT_CHARACTERS:,} characters: write a "
            "row on each line, as to_json(orient='records', lines=True) does"
        )
    try:
        value, end = DECODER.raw_decode(content.lstrip())
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{file}, line {line}: it is not JSON") from None
    if content.lstrip()[end:].strip():
        yield from _lines(io.StringIO(content))
        return
    for row in _table(value, file, wanted):
        yield None, row, None, 0


def _table(value: dict[str, Any], file: str, wanted: Sequence[str]) -> Iterator[Any]:
    """Rows of a table in one object: one of pandas' layouts, or `{"data": [rows]}`."""
    data, columns = value.get("data"), value.get("columns")
    cells = list(value.values())
    if isinstance(data, list) and isinstance(columns, list):
        names = list(map(str, columns))
        for row in data:
            # A row that is no list, or has a cell too many, gets a problem.
            fits = isinstance(row, list) and len(row) <= len(names)
            yield dict(zip(names, row, strict=False)) if fits else None
    elif isinstance(data, list):
        yield from data
    elif cells and all(isinstance(cell, dict) for cell in cells):
        if any(name in cells[0] for name in wanted) and not any(n in value for n in wanted):
            yield from cells
        else:
            keys = list(dict.fromkeys(key for cell in cells for key in cell))
            yield from ({name: cell.get(key) for name, cell in value.items()} for key in keys)
    elif cells and all(isinstance(cell, list) for cell in cells):
        if len({len(cell) for cell in cells}) > 1:
            raise DataError(f"{file} holds lists of different lengths: give each column all rows")
        yield from (dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True))
    else:
        yield value
