"""Parquet, Arrow and Feather → blocks of rows, by pyarrow, with only the columns that are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from training.common.errors import DataError
from training.data.blocks import BLOCK_CHARACTERS, BLOCK_ROWS, TableBlock

# The number of rows decoded at once: their size is known only then.
READ_ROWS = 256


def read_arrow(
    content: Any,
    format_: str,
    file: str,
    wanted: Sequence[str] | None,
    rows: range | None = None,
) -> Iterator[TableBlock]:
    """Rows as blocks; the first block is empty and has the columns.

    Args:
        content: a file that can be read from anywhere.
        format_: parquet or arrow.
        wanted: columns, dotted ones too; all when None.
        rows: of Parquet, those to read; all when None.

    Raises:
        DataError: it is no such file.
    """
    import pyarrow

    try:
        schema, batches = _open(content, format_, wanted, rows)
        names = list(schema.names)
        if len(set(names)) < len(names):
            doubled = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{file} has two columns named {doubled!r}")
        numbered = _label_names(schema)
        yield TableBlock(file, 0, names, table=schema.empty_table(), numbered=numbered)
        start = rows.start if rows else 0
        for part in _joined(batches):
            table = pyarrow.Table.from_batches(part)
            yield TableBlock(file, start, names, table=table, numbered=numbered)
            start += len(table)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{file} cannot be read as {format_.capitalize()}: {reason}") from None


def _open(
    content: Any, format_: str, wanted: Sequence[str] | None, rows: range | None
) -> tuple[Any, Iterator[Any]]:
    """The schema of all columns, and batches of the wanted columns and rows."""
    import pyarrow

    if format_ == "parquet":
        from pyarrow import parquet

        file = parquet.ParquetFile(content)
        schema = file.schema_arrow
        columns = _columns(schema, wanted)
        if rows is None:
            return schema, file.iter_batches(READ_ROWS, columns=columns)
        groups, before = _groups_of(file.metadata, rows)
        batches = file.iter_batches(READ_ROWS, row_groups=groups, columns=columns)
        return schema, _cut(batches, rows.start - before, len(rows))
    if content.read(4) == b"FEA1":
        from pyarrow import feather

        content.seek(0)
        table = feather.read_table(content)
        return table.schema, iter(table.to_batches(READ_ROWS))
    content.seek(0)
    try:
        reader = pyarrow.ipc.open_file(content)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    except pyarrow.ArrowInvalid:
        content.seek(0)
        reader = pyarrow.ipc.open_stream(content)
        batches = iter(reader)
    return reader.schema, (part for batch in batches for part in _parts(batch))


def _groups_of(metadata: Any, rows: range) -> tuple[list[int], int]:
    """The row groups of Parquet that have any of the rows, and the rows before these groups."""
    groups: list[int] = []
    first = before = 0
    for group in range(metadata.num_row_groups):
        end = first + metadata.row_group(group).num_rows
        if first < rows.stop and end > rows.start:
            before = before if groups else first
            groups.append(group)
        first = end
    return groups, before


def _cut(batches: Iterator[Any], skipped: int, count: int) -> Iterator[Any]:
    """`count` rows of batches behind the first `skipped` ones."""
    for batch in batches:
        part = batch.slice(skipped, count)
        skipped = max(0, skipped - batch.num_rows)
        count -= part.num_rows
        if part.num_rows:
            yield part
        if not count:
            return


def _parts(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, READ_ROWS):
        yield batch.slice(start, READ_ROWS)


def _joined(batches: Iterator[Any]) -> Iterator[list[Any]]:
    """The batches of each block, fewer where rows are large."""
    block: list[Any] = []
    for batch in batches:
        block.append(batch)
        full = sum(part.num_rows for part in block) >= BLOCK_ROWS
        if full or sum(part.nbytes for part in block) >= BLOCK_CHARACTERS:
            yield block
            block = []
    if block:
        yield block


def _columns(schema: Any, wanted: Sequence[str] | None) -> list[str] | None:
    """The columns of a file that have the wanted values."""
    if wanted is None:
        return None
    names = set(schema.names)
    heads = [
        [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        for parts in (column.split(".") for column in wanted)
    ]
    columns = (next((name for name in head if name in names), None) for head in heads)
    return list(dict.fromkeys(name for name in columns if name is not None))


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The names for the numbers of each column, where `datasets` wrote the file."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        from datasets import ClassLabel, Features
    except ModuleNotFoundError:
        # Where a cluster scores. Only labels are numbered, and scoring reads none.
        return {}

    features = Features.from_arrow_schema(schema)
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {
        name: feature.names for name, feature in inner.items() if isinstance(feature, ClassLabel)
    }
