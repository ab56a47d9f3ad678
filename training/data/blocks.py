"""Rows as they come from a file, a few thousand at once, each whole or with what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Rows of a block, and characters of the text they came from: whichever is reached first.
BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 16 << 20
# A row of more characters is not read: memory is to be bounded whatever a file holds.
ROW_CHARACTERS = 4 << 20
# Of a column's name so many are shown.
SHOWN_CHARACTERS = 60
# Stands where bytes could not be decoded: half a surrogate pair.
UNDECODABLE = re.compile("[\udc80-\udcff]")


class Problem(NamedTuple):
    """Why a row cannot be used: a code for scripts, and what a person is told."""

    code: str
    message: str


TOO_LONG = Problem("malformed_row", f"it has more than {ROW_CHARACTERS:,} characters")


@dataclass
class Block:
    """Some rows of one file, one after another.

    `start` counts the file's rows before them; `lines` is where each begins in the file, from 1,
    or empty where rows have no lines; `problems` has those that could not be read, by place;
    `position` is how many bytes of all files were read when it came, for a bar.
    """

    file: str
    start: int
    columns: list[str]
    lines: list[int] = field(default_factory=list)
    problems: dict[int, Problem] = field(default_factory=dict)
    position: int = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def values(self, column: str) -> list[Any]:
        """What stands in a column, row by row; None where nothing does.

        `data.text` is the field `text` of what stands in `data`, and `label.0` the first of a
        list, where no column has that whole name.
        """
        parts = column.split(".")
        for length in range(len(parts), 0, -1):
            head = ".".join(parts[:length])
            if self.has(head):
                path = parts[length:]
                values = self.plain_values(head)
                return [follow(value, path) for value in values] if path else values
        return [None] * len(self)

    def has(self, column: str) -> bool:
        """Whether a column has this whole name."""
        return column in self.columns

    def resolves(self, column: str) -> bool:
        """Whether a column has this whole name, or the beginning of a dotted one."""
        parts = column.split(".")
        return any(self.has(".".join(parts[:length])) for length in range(len(parts), 0, -1))

    def plain_values(self, column: str) -> list[Any]:
        """What stands in the column of this whole name."""
        raise NotImplementedError

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row by its columns; an empty one where it could not be read."""
        raise NotImplementedError


@dataclass
class CellBlock(Block):
    """Rows of CSV: as many cells as there are columns."""

    cells: list[Sequence[str | None]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cells)

    def plain_values(self, column: str) -> list[Any]:
        """Cells as text."""
        place = self.columns.index(column)
        return [row[place] if place < len(row) else None for row in self.cells]

    def records(self) -> Iterator[dict[str, Any]]:
        """Cells by column; what a short row lacks is None."""
        missing = [None] * len(self.columns)
        for row in self.cells:
            yield dict(zip(self.columns, [*row, *missing[len(row) :]], strict=True))


@dataclass
class RecordBlock(Block):
    """Rows of JSON: each may have columns of its own."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, column: str) -> bool:
        """Whether it is known, or any row has it."""
        return column in self.columns or any(column in row for row in self.rows)

    def plain_values(self, column: str) -> list[Any]:
        """As JSON has them; NaN as None."""
        return [plain(row.get(column)) for row in self.rows]

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows themselves, copied."""
        return (dict(row) for row in self.rows)


@dataclass
class TableBlock(Block):
    """Rows of an Arrow table; `numbered` columns hold numbers of these names."""

    table: Any = None
    numbered: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def plain_values(self, column: str) -> list[Any]:
        """As Python's own types; bytes, of which Hive and old Spark make text, decoded."""
        values = [plain(value) for value in _values(self.table.column(column))]
        names = self.numbered.get(column)
        return values if names is None else [_name(value, names) for value in values]

    def records(self) -> Iterator[dict[str, Any]]:
        """Rows as Python's own types."""
        columns = [map(plain, _values(column)) for column in self.table.columns]
        names = self.table.column_names
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def shortened(name: str) -> str:
    """The name of a column as a sentence may hold it: a text that stands in its place is long."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…"


def plain(value: Any) -> Any:
    """A value as JSON would have it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _values(column: Any) -> list[Any]:
    """A column of Arrow as Python's own types."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        # Times beyond the year 9999, and durations beyond 2 million years.
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    """A scalar of Arrow as Python's own type, or as text where Python's cannot hold it."""
    import pyarrow

    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _value(part) for name, part in scalar.items()}
        if isinstance(scalar, pyarrow.ListScalar):
            return [_value(part) for part in scalar]
        if isinstance(scalar, pyarrow.DictionaryScalar):
            return _value(scalar.value)
        return scalar.cast(pyarrow.string()).as_py()


def follow(value: Any, path: Sequence[str]) -> Any:
    """What lies at the end of a path within objects and lists; None where nothing does."""
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return plain(value)


def _name(value: Any, names: list[str]) -> Any:
    """What a number stands for; -1 is how the hub's sets mark a row whose label is hidden."""
    if isinstance(value, list):
        return [_name(part, names) for part in value]
    return names[value] if value is not None and 0 <= value < len(names) else None
