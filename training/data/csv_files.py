"""CSV with any separator → blocks of rows.

Python's own `csv` parses it: for every row it tells the line on which the row ends and its cells.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from training.common.errors import DataError
from training.data.blocks import (
    BLOCK_CHARACTERS,
    BLOCK_ROWS,
    ROW_CHARACTERS,
    TOO_LONG,
    CellBlock,
    Problem,
    shortened,
)

SEPARATORS = ",;\t|"
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# The number of first rows by which the separator is detected.
SNIFFED_ROWS = 50
# The characters of rows with a stray quote that are read again, line by line. A file with more of
# them is not quoted as CSV is.
MOST_READ_AGAIN = 16 * ROW_CHARACTERS
# The line before the header by which Excel names the separator.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[ \t]*(?:[\r\n]|$)', re.IGNORECASE)
OPEN_QUOTE = Problem("malformed_row", "a quote opens in it that nothing closes")


class CsvFormat(NamedTuple):
    """How a CSV file is written; `skip` lines come before the header."""

    separator: str
    skip: int = 0


class Lines:
    """The lines of a text; it keeps those of the row that is being read."""

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
            # A row that `csv` returns after this was open when the file ended.
            self.ended = True
            line = next(self._lines)
            self.ended = False
        self._number += 1
        return line

    def skip_row(self, separator: str) -> bool:
        """Skip the rest of a row that is too long; return whether its end is certain.

        The end is not certain where the open quote is not closed as CSV closes a quote, before a
        separator or the end of a line. Then it was no quote, and other rows may follow it.
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
        """Whether a row of several lines is quoted as CSV is.

        A quote that opens by mistake takes all lines up to the next one that happens to close it.
        """
        if len(self._row) < 2:
            return True
        try:
            return len(list(csv.reader(self._row, delimiter=separator, strict=True))) == 1
        except csv.Error:
            return False

    def start_row(self) -> None:
        """Begin a row with the next line, whose number is then `first`."""
        self.first = self._number + 1
        self._row = []
        self.characters = 0

    def reread(self) -> None:
        """Return all lines of the row but its first once more."""
        again = self._row[1:]
        self._again.extendleft(reversed(again))
        self._number -= len(again)
        self._row = self._row[:1]
        self.ended = False


def detect_format(head: str, wanted: Sequence[str], separator: str | None) -> CsvFormat:
    """The format of the file that begins with `head`.

    A line `sep=;`, as Excel writes it, names the separator. Otherwise it is the separator by which
    the header has most of the `wanted` columns; otherwise the one by which most rows have equally
    many cells, and more than one; otherwise a comma.
    """
    stated = SEPARATOR_LINE.match(head)
    if stated is not None:
        return CsvFormat(separator or stated[1], 1)
    if separator is not None:
        return CsvFormat(separator)
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
    return CsvFormat(best if any(votes[best]) else ",")


def read_csv(text: Iterator[str], format_: CsvFormat, file: str) -> Iterator[CellBlock]:
    """Rows as blocks; the first block is empty and has the columns of the header.

    A row with more cells than columns, or a quote that nothing closes, has a problem.

    Raises:
        DataError: there is no header, or one that does not name every column.
    """
    csv.field_size_limit(2 * ROW_CHARACTERS)
    lines = Lines(text)
    for _ in range(format_.skip):
        next(lines, None)
    lines.start_row()
    columns = _header(lines, format_, file)
    yield CellBlock(file, 0, columns)
    block, characters = CellBlock(file, 0, columns), 0
    for row, problem in _rows(lines, format_, file):
        if problem is None and len(row) > len(columns):
            problem = _too_many(len(row), len(columns), format_.separator)
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


def _rows(
    lines: Lines, format_: CsvFormat, file: str
) -> Iterator[tuple[list[str], Problem | None]]:
    """Every row that is not empty; `lines` tells its line."""
    reader = csv.reader(lines, delimiter=format_.separator)
    again = 0
    while True:
        lines.start_row()
        try:
            row = next(reader, None)
            is_open = row is not None and (lines.ended or not lines.are_strict(format_.separator))
        except csv.Error:
            if lines.characters <= ROW_CHARACTERS:
                raise DataError(f"{file}, line {lines.first}: it is not CSV") from None
            if not lines.skip_row(format_.separator):
                raise DataError(
                    f"{file}, line {lines.first}: a row of more than {ROW_CHARACTERS:,} characters "
                    "begins, or a quote that nothing closes: close it, or shorten the row"
                ) from None
            reader = csv.reader(lines, delimiter=format_.separator)
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
            # The other reader would continue within the quote.
            reader = csv.reader(lines, delimiter=format_.separator)
            yield [], OPEN_QUOTE
        elif row is None:
            return
        elif row:
            yield row, None


def _header(lines: Lines, format_: CsvFormat, file: str) -> list[str]:
    try:
        columns = next(filter(None, csv.reader(lines, delimiter=format_.separator)), None)
    except csv.Error:
        columns = None
    if not columns:
        raise DataError(f"{file} is empty: it has no header")
    columns = [column.strip() for column in columns]
    doubled = [column for column, count in Counter(columns).items() if count > 1 and column]
    if doubled:
        raise DataError(f"{file} has two columns named {shortened(doubled[0])!r}")
    # The first column has no name where pandas wrote its row numbers.
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
