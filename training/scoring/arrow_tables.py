"""Rows of any file → Arrow tables of one schema, as Parquet and Arrow files can hold it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from training.common.errors import DataError
from training.data.blocks import Block, RecordBlock, TableBlock

# Rows, and bytes, of a row group: parts are smaller.
GROUP_ROWS = 1 << 16
GROUP_BYTES = 64 << 20


def schema_of(block: Block) -> Any:
    """The Arrow schema that a block's rows have by themselves.

    Raises:
        DataError: values of one column have no common type.
    """
    import pyarrow

    if isinstance(block, TableBlock):
        return block.table.schema
    if not isinstance(block, RecordBlock):
        return pyarrow.schema([(name, pyarrow.string()) for name in block.columns])
    columns = {name: encodable(block.plain_values(name)) for name in block.columns}
    try:
        return pyarrow.table(columns).schema
    except (pyarrow.ArrowException, OverflowError) as error:
        raise differing(block, error) from None


def field_for(field: Any, kind: str) -> Any:
    """A field as a file of a kind can hold it.

    A column without any value is text. A file of Arrow has one dictionary for each column, and
    another block may have other words: there they are plain values.
    """
    import pyarrow

    if pyarrow.types.is_null(field.type):
        return field.with_type(pyarrow.string())
    return field.with_type(_without_dictionaries(field.type)) if kind == "arrow" else field


def _without_dictionaries(type_: Any) -> Any:
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(type_):
        return _without_dictionaries(type_.value_type)
    if types.is_struct(type_):
        return pyarrow.struct([_plain_field(type_.field(n)) for n in range(type_.num_fields)])
    if types.is_large_list(type_):
        return pyarrow.large_list(_plain_field(type_.value_field))
    if types.is_fixed_size_list(type_):
        return pyarrow.list_(_plain_field(type_.value_field), type_.list_size)
    if types.is_list(type_):
        return pyarrow.list_(_plain_field(type_.value_field))
    if types.is_map(type_):
        return pyarrow.map_(_plain_field(type_.key_field), _plain_field(type_.item_field))
    return type_


def _plain_field(field: Any) -> Any:
    return field.with_type(_without_dictionaries(field.type))


def refuse_unwritable(schema: Any, kind: str) -> None:
    """Raise DataError where a file of the kind cannot hold a column, before there is any row."""
    import pyarrow

    for field in schema:
        column = pyarrow.schema([field])
        try:
            with arrow_writer(kind, io.BytesIO(), column) as writer:
                writer.write_table(column.empty_table())
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{kind.capitalize()} cannot hold column {field.name!r} ({reason}): write .jsonl"
            ) from None


def table_of(block: Block, columns: Sequence[str], schema: Any) -> Any:
    """The rows of a block, whose columns are some of `columns`, by a schema of all of these.

    Raises:
        DataError: a row has another column, or a value of another type.
    """
    import pyarrow

    try:
        if not isinstance(block, TableBlock):
            rows = []
            for row in block.records():
                refuse_more(block, row, columns)
                rows.append(encodable(row))
            return pyarrow.Table.from_pylist(rows, schema=schema)
        table = block.table.select([name for name in columns if block.has(name)])
        for name in columns:
            if not block.has(name):
                nulls = pyarrow.nulls(len(block), schema.field(name).type)
                table = table.append_column(name, nulls)
        return table.select(columns).cast(schema)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise differing(block, error) from None


def refuse_more(block: Block, row: dict[str, Any], columns: Sequence[str]) -> None:
    """Raise DataError where a row has a column that the table has not."""
    if more := row.keys() - set(columns):
        raise DataError(
            f"{block.file}: rows differ: only a later one has {min(more)!r}, for which a table "
            "has no column: write .jsonl"
        )


def differing(block: Block, error: Exception) -> DataError:
    """The error for rows that one table cannot hold."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"{block.file}: rows differ too much for one table: {reason}: write .jsonl instead"
    )


def pack_part(table: Any) -> bytes:
    """A table as a part: a file of Arrow for every kind of result, as it keeps the types."""
    import pyarrow

    target = io.BytesIO()
    options = pyarrow.ipc.IpcWriteOptions(unify_dictionaries=True, compression="lz4")
    with pyarrow.ipc.new_file(target, table.schema, options=options) as writer:
        writer.write_table(table)
    return target.getvalue()


def assemble_arrow(parts: Iterable[BinaryIO], kind: str, schema: Any, target: BinaryIO) -> None:
    """Write one file of all parts, in order."""
    import pyarrow

    with arrow_writer(kind, target, schema) as writer:
        waiting: list[Any] = []
        for part in parts:
            waiting.append(pyarrow.ipc.open_file(part.read()).read_all())
            full = sum(map(len, waiting)) >= GROUP_ROWS
            if full or sum(table.nbytes for table in waiting) >= GROUP_BYTES:
                writer.write_table(pyarrow.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pyarrow.concat_tables(waiting))


def arrow_writer(kind: str, target: BinaryIO, schema: Any) -> Any:
    """A writer of tables into a file of the kind."""
    import pyarrow
    from pyarrow import parquet

    if kind == "parquet":
        return parquet.ParquetWriter(target, schema)
    return pyarrow.ipc.new_file(target, schema)


def encodable(value: Any) -> Any:
    """A value that Arrow can hold: no halves of surrogate pairs; an object of no field is null."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [encodable(part) for part in value]
    if isinstance(value, dict):
        return {key: encodable(part) for key, part in value.items()} or None
    return value
