"""Rows as they are read from a file, a few thousand at once, each whole or with its problem."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# A block ends with this many rows, or with this many characters of the file.
BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 16 << 20
# A longer row is not read: whatever a file holds, the memory that it takes is bounded.
ROW_CHARACTERS = 4 << 20
# The characters of a column's name that a message shows.
SHOWN_CHARACTERS = 60
# Half a surrogate pair stands for bytes that could not be decoded.
UNDECODABLE = re.compile("[\udc80-\udcff]")


class Problem(NamedTuple):
    """Why a row cannot be used: a code for scripts, and a message for people."""

    code: str
    message: str


TOO_LONG = Problem("malformed_row", f"it has more than {ROW_CHARACTERS:,} characters")


@dataclass
class Block:
    """Some rows of one file, one after another.

    `start` is the number of the file's rows before them. `lines` has the line on which each begins,
    from 1, and is empty where rows have no lines. `problems` has the rows that could not be read,
    by place. `position` is the number of bytes of all files that were read so far, for a bar.
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
        """The values of a column, row by row; None where a row has none.

        `data.text` is the field `text` of the objects in `data`, and `label.0` the first item of
        the lists in `label`, where no column has that whole name.
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
        """The values of the column of this whole name."""
        raise NotImplementedError

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row by its columns; an empty row where it could not be read."""
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
        """Cells by column; None for the cells that a short row lacks."""
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
        """Whether the file or any row has the column."""
        return column in self.columns or any(column in row for row in self.rows)

    def plain_values(self, column: str) -> list[Any]:
        """The values of JSON; None for NaN."""
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
        """The values in Python's types; bytes, as Hive and old Spark write text, are decoded."""
        values = [plain(value) for value in _values(self.table.column(column))]
        names = self.numbered.get(column)
        return values if names is None else [_name(value, names) for value in values]

    def records(self) -> Iterator[dict[str, Any]]:
        """Rows in Python's types."""
        columns = [map(plain, _values(column)) for column in self.table.columns]
        names = self.table.column_names
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def shortened(name: str) -> str:
    """The name of a column for a message, cut where it is long: it may be a text by mistake."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…"


def plain(value: Any) -> Any:
    """A value as JSON would have it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list | tuple):
        # A pair of a map is a list in JSON, too.
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _values(column: Any) -> list[Any]:
    """A column of Arrow in Python's types."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        # Times beyond the year 9999, durations beyond 2 million years, and text that is no UTF-8.
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    """A scalar of Arrow in Python's type, or as text or bytes where that cannot represent it."""
    import pyarrow

    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pyarrow.StringScalar):
            # Hive, Impala and Spark write any bytes as text.
            return scalar.as_buffer().to_pybytes()
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _value(part) for name, part in scalar.items()}
        if isinstance(scalar, pyarrow.MapScalar):
            pairs = (scalar.values.field(side) for side in range(2))
            return list(zip(*(map(_value, part) for part in pairs), strict=True))
        if isinstance(scalar, pyarrow.ListScalar):
            return [_value(part) for part in scalar]
        if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.ExtensionScalar):
            return _value(scalar.value)
        return scalar.cast(pyarrow.string()).as_py()


def follow(value: Any, path: Sequence[str]) -> Any:
    """The value at the end of a path within objects and lists; None where there is none."""
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return plain(value)


def _name(value: Any, names: list[str]) -> Any:
    """The name for a number; data sets of the hub write -1 where the label is hidden."""
    if isinstance(value, list):
        return [_name(part, names) for part in value]
    return names[value] if value is not None and 0 <= value < len(names) else None
