"""Rows with their answers → bytes of CSV, JSON, Parquet or Arrow, in parts that make one file."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from training.common.errors import DataError
from training.data.blocks import UNDECODABLE, Block
from training.scoring.arrow_tables import (
    assemble_arrow,
    encodable,
    pack_part,
    refuse_more,
    table_of,
)

Row = dict[str, Any]
COPIED_BYTES = 1 << 20


def _keep(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write undecodable bytes as they were, and half of a surrogate pair as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    if UNDECODABLE.fullmatch(bad[0]):
        return bytes([ord(bad[0]) - 0xDC00]), error.start + 1
    return f"\\u{ord(bad[0]):04x}", error.start + 1


codecs.register_error("whetstone.keep", _keep)


@dataclass(frozen=True)
class TableFormat:
    """The format of a table that is written in parts, which make one file.

    Attributes:
        columns: those of the input.
        added: the columns after them.
        schema: an Arrow schema of all columns, for Parquet and Arrow.
    """

    kind: str
    compression: str | None
    columns: Sequence[str]
    added: Sequence[str]
    schema: Any = None

    @property
    def names(self) -> list[str]:
        """All columns, in order."""
        return [*self.columns, *self.added]

    @property
    def has_lists(self) -> bool:
        """Whether a cell can be a list."""
        return self.kind not in ("csv", "tsv")

    def part(self, block: Block, answers: list[Row], is_first: bool) -> bytes:
        """The bytes of a block's rows, each with its answer.

        Raises:
            DataError: a row has a column that the table has not, or a value of another type.
        """
        if self.kind in ("parquet", "arrow"):
            return self._arrow_part(block, answers)
        if self.kind == "json":
            lines = self._json_lines(block, answers)
            text = "".join(f",\n{line}" for line in lines)
            return self._pack(text.removeprefix(",\n") if is_first else text)
        if self.kind == "jsonl":
            return self._pack("".join(f"{row}\n" for row in self._json_lines(block, answers)))
        rows = []
        for row, answer in zip(block.records(), answers, strict=True):
            refuse_more(block, row, self.columns)
            cells = [row.get(name) for name in self.columns]
            rows.append([*map(_cell, cells), *(answer[name] for name in self.added)])
        return self._pack(self._csv_lines(rows), "whetstone.keep")

    def beginning(self) -> bytes:
        """The bytes before all rows."""
        if self.kind == "json":
            return self._pack("[\n")
        if self.kind in ("csv", "tsv"):
            return self._pack(self._csv_lines([self.names]), "whetstone.keep")
        return b""

    def end(self) -> bytes:
        """The bytes after all rows."""
        return self._pack("\n]\n") if self.kind == "json" else b""

    def assemble(self, parts: Iterable[BinaryIO], target: BinaryIO) -> None:
        """Write one file of all parts, in order; the same parts make the same bytes."""
        if self.kind in ("parquet", "arrow"):
            assemble_arrow(parts, self.kind, self.schema, target)
            return
        target.write(self.beginning())
        for part in parts:
            while data := part.read(COPIED_BYTES):
                target.write(data)
        target.write(self.end())

    def _csv_lines(self, rows: Iterable[Sequence[Any]]) -> str:
        text = io.StringIO(newline="")
        separator = "\t" if self.kind == "tsv" else ","
        # With this line end the writer quotes a cell with a carriage return alone, too.
        writer = csv.writer(text, delimiter=separator, lineterminator="\r\n")
        lines = []
        for row in rows:
            text.seek(0)
            text.truncate()
            writer.writerow(row)
            lines.append(text.getvalue().removesuffix("\r\n"))
        return "".join(f"{line}\n" for line in lines)

    def _json_lines(self, block: Block, answers: list[Row]) -> Iterator[str]:
        own = set(self.added)
        for row, answer in zip(block.records(), answers, strict=True):
            if taken := own & row.keys():
                raise DataError(
                    f"{block.file}: rows differ: only a later one has {min(taken)!r}: rename it"
                )
            yield _json({**row, **answer})

    def _pack(self, text: str, errors: str = "backslashreplace") -> bytes:
        """Text as UTF-8, compressed by itself: such pieces in a row are one file."""
        data = text.encode("utf-8", errors)
        if self.compression == "gzip":
            return gzip.compress(data, mtime=0)
        if self.compression == "zstd":
            import pyarrow

            packed = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
                stream.write(data)
            return bytes(packed.getvalue())
        return data

    def _arrow_part(self, block: Block, answers: list[Row]) -> bytes:
        import pyarrow

        own = pyarrow.schema([self.schema.field(name) for name in self.columns])
        table = table_of(block, self.columns, own)
        for name in self.added:
            field = self.schema.field(name)
            cells = pyarrow.array([encodable(answer[name]) for answer in answers], field.type)
            table = table.append_column(field, cells)
        return pack_part(table.replace_schema_metadata(self.schema.metadata))


def _cell(value: Any) -> Any:
    """A value for CSV: objects and lists as JSON."""
    if isinstance(value, dict | list):
        return _json(value)
    return value


def _json(value: Any) -> str:
    """A value as JSON, which has no NaN and no infinity: null, as pandas writes them."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
