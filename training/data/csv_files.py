"""CSV of any separator → blocks of rows. Python's own `csv` does the parsing: it says of every
row which line it ends on and how many cells it has."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from training.data.blocks import (
    BLOCK_CHARACTERS,
    BLOCK_ROWS,
    ROW_CHARACTERS,
    TOO_LONG,
    CellBlock,
    Problem,
    shortened,
)
from training.errors import DataError

SEPARATORS = ",;\t|"
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Rows of the head by which a separator is found.
SNIFFED_ROWS = 50
# Characters of rows that opened a quote and are read once more, line by line: a file with more of
# them is not quoted as CSV is.
MOST_READ_AGAIN = 16 * ROW_CHARACTERS
# As Excel writes and reads it, before the header.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[ \t]*(?:[\r\n]|$)', re.IGNORECASE)
OPEN_QUOTE = Problem("malformed_row", "a quote opens in it that nothing closes")


class Layout(NamedTuple):
    """How a file of CSV is written; `skip` lines come before the header."""

    separator: str
    skip: int = 0


class Lines:
    """The lines of a text; of the row that is being read, all so far."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self._number = 0
        self.first = 1
        self._row: list[str] = []
        self.characters = 0
        self.ended = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._take()
        self._row.append(line)
        self.characters += len(line)
        if self.characters > ROW_CHARACTERS:
            raise csv.Error("the row is too long")
        return line

    def _take(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            # A row that is given after this was open when the file ended.
            self.ended = True
            line = next(self._lines)
            self.ended = False
        self._number += 1
        return line

    def skip_row(self, separator: str) -> bool:
        """Pass over the rest of a row that is too long, which is not kept; whether that was sure.

        It is not where the quote that is open is not closed as CSV closes one, before a separator
        or the end of a line: then it was none, and what stands behind it may be other rows.
        """
        is_open = sum(line.count('"') for line in self._row) % 2 == 1
        while is_open:
            try:
                text = self._take().replace('""', "")
            except StopIteration:
                return False
            _, quote, rest = text.partition('"')
            if quote and rest and rest[0] not in (separator, "\r", "\n"):
                return False
            is_open = not quote or rest.count('"') % 2 == 1
        return True

    def are_strict(self, separator: str) -> bool:
        """Whether the row is quoted as CSV is, asked only where it has several lines.

        A quote that opens by mistake takes all lines up to the next one that happens to close it.
        """
        if len(self._row) < 2:
            return True
        try:
            return len(list(csv.reader(self._row, delimiter=separator, strict=True))) == 1
        except csv.Error:
            return False

    def start_row(self) -> None:
        """The next line, whose number is then `first`, begins a row."""
        self.first = self._number + 1
        self._row = []
        self.characters = 0

    def reread(self) -> None:
        """Give all lines of the row but its first another time."""
        again = self._row[1:]
        self._again.extendleft(reversed(again))
        self._number -= len(again)
        self._row = self._row[:1]
        self.ended = False


def find_layout(head: str, wanted: Sequence[str], separator: str | None) -> Layout:
    """How the file that begins with `head` is written.

    A line `sep=;`, as Excel writes it, says it. Else it is the separator by which the header has
    the `wanted` columns; else the one by which most rows have equally many cells, and more than
    one; else a comma.
    """
    said = SEPARATOR_LINE.match(head)
    if said is not None:
        return Layout(separator or said[1], 1)
    if separator is not None:
        return Layout(separator)
    votes = {}
    for candidate in SEPARATORS:
        rows = _first_rows(head, candidate)
        columns = {cell.strip() for cell in rows[0]} if rows else set()
        named = sum(column in columns for column in wanted)
        widths = Counter(len(row) for row in rows[1:] or rows if row)
        width, count = widths.most_common(1)[0] if widths else (1, 0)
        alike = count if width > 1 and width == len(rows[0]) else 0
        votes[candidate] = (named if len(columns) > 1 or len(wanted) == 1 else 0, alike)
    best = max(SEPARATORS, key=lambda candidate: votes[candidate])
    return Layout(best if any(votes[best]) else ",")


def read_csv(text: Iterator[str], layout: Layout, file: str) -> Iterator[CellBlock]:
    """Rows as blocks; the first is empty, and there for the columns that the header names.

    A row with more cells than columns, or a quote that nothing closes, has a problem.

    Raises:
        DataError: there is no header, or one that does not name every column.
    """
    csv.field_size_limit(2 * ROW_CHARACTERS)
    lines = Lines(text)
    for _ in range(layout.skip):
        next(lines, None)
    lines.start_row()
    columns = _header(lines, layout, file)
    yield CellBlock(file, 0, columns)
    block, characters = CellBlock(file, 0, columns), 0
    for row, problem in _rows(lines, layout, file):
        if problem is None and len(row) > len(columns):
            problem = _too_many(len(row), len(columns), layout.separator)
        if problem is not None:
            block.problems[len(block)] = problem
        block.cells.append(row[: len(columns)])
        block.lines.append(lines.first)
        characters += lines.characters
        if len(block) >= BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = CellBlock(file, block.start + len(block), columns), 0
    if len(block):
        yield block


def _too_many(cells: int, columns: int, separator: str) -> Problem:
    there = "there is one column" if columns == 1 else f"there are {columns} columns"
    name = SEPARATOR_NAMES.get(separator, f"the separator {separator!r}")
    return Problem(
        "malformed_row",
        f"it has {cells} cells, and {there} (a text that holds {name} has to be in quotes)",
    )


def _rows(lines: Lines, layout: Layout, file: str) -> Iterator[tuple[list[str], Problem | None]]:
    """Every row that is not empty; `lines` says where it stood."""
    reader = csv.reader(lines, delimiter=layout.separator)
    again = 0
    while True:
        lines.start_row()
        try:
            row = next(reader, None)
            is_open = row is not None and (lines.ended or not lines.are_strict(layout.separator))
        except csv.Error:
            if lines.characters <= ROW_CHARACTERS:
                raise DataError(f"{file}, line {lines.first}: it is not CSV") from None
            if not lines.skip_row(layout.separator):
                raise DataError(
                    f"{file}, line {lines.first}: a row of more than {ROW_CHARACTERS:,} characters "
                    "begins, or a quote that nothing closes: close it, or shorten the row"
                ) from None
            reader = csv.reader(lines, delimiter=layout.separator)
            yield [], TOO_LONG
            continue
        if is_open:
            again += lines.characters
            if again > MOST_READ_AGAIN:
                raise DataError(
                    f"{file}, line {lines.first}: too many rows open a quote that nothing closes: "
                    "write a quote within quotes twice, as CSV has it"
                )
            lines.reread()
            # The other one would go on within the quote.
            reader = csv.reader(lines, delimiter=layout.separator)
            yield [], OPEN_QUOTE
        elif row is None:
            return
        elif row:
            yield row, None


def _header(lines: Lines, layout: Layout, file: str) -> list[str]:
    try:
        columns = next(filter(None, csv.reader(lines, delimiter=layout.separator)), None)
    except csv.Error:
        columns = None
    if not columns:
        raise DataError(f"{file} is empty: it has no header")
    columns = [column.strip() for column in columns]
    doubled = [column for column, count in Counter(columns).items() if count > 1 and column]
    if doubled:
        raise DataError(f"{file} has two columns named {shortened(doubled[0])!r}")
    # The first is nameless where pandas wrote the numbers of its rows.
    nameless = [place for place, column in enumerate(columns, start=1) if not column and place > 1]
    if nameless:
        raise DataError(
            f"{file}, line {lines.first}: cell {', '.join(map(str, nameless))} of the header is "
            "empty: name the column, or remove it"
        )
    return columns


def _first_rows(head: str, separator: str) -> list[list[str]]:
    csv.field_size_limit(2 * ROW_CHARACTERS)
    try:
        rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
        return list(islice(filter(None, rows), SNIFFED_ROWS))
    except csv.Error:
        return []
