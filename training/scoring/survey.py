"""A look at files before they are scored: which columns there are, and is the text there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.data.blocks import Block, CellBlock, RecordBlock, TableBlock
from training.data.layouts import Layouts
from training.data.readers import BAR_SECONDS, ReadingKeys, bytes_of, read_sources
from training.data.rows import no_column
from training.data.sources import Source
from training.errors import DataError
from training.progress import progress
from training.scoring.arrow_tables import differing, field_for, schema_of, table_of


@dataclass
class Survey:
    """The columns of all files, in order; their Arrow fields where the result needs them.

    `is_csv` says that all of them are.
    """

    columns: list[str] = field(default_factory=list)
    fields: list[Any] = field(default_factory=list)
    metadata: Any = None
    is_csv: bool = True


def survey(
    sources: Sequence[Source], kind: str, keys: ReadingKeys, read: Sequence[str], layouts: Layouts
) -> Survey:
    """What the files hold: of rows of JSON all are looked at, of everything else the header.

    Args:
        kind: how the result is written.
        read: the columns of the text.

    Raises:
        DataError: a file has no text, or cannot be read; rows differ too much for the result.
    """
    found = Survey()
    columns: dict[str, None] = {}
    schemas: dict[int, list[Any]] = {}
    for index, source in enumerate(sources):
        with progress(bytes_of([source]), "look", "B", leave=False, delay=BAR_SECONDS) as bar:
            for block in read_sources([source], None, keys, looked_for=read):
                bar.update(block.position - bar.n)
                columns.update(dict.fromkeys(block.columns))
                # Of a table of objects the layout shows in the first rows only.
                is_header = isinstance(block, TableBlock) and not len(block)
                waits = is_header and not block.resolves(read[0])
                if not waits:
                    _refuse_without_text(block, read, layouts)
                found.is_csv = found.is_csv and isinstance(block, CellBlock)
                if kind in ("parquet", "arrow"):
                    schemas.setdefault(index, []).append(_add_fields(found, block))
                if not waits and not isinstance(block, RecordBlock):
                    break
    found.columns = list(columns)
    if kind in ("parquet", "arrow"):
        fields = {field.name: field for field in found.fields}
        found.fields = [field_for(fields[name], kind) for name in found.columns]
        _try_conversions(found, schemas, sources, keys)
    return found


def _refuse_without_text(block: Block, read: Sequence[str], layouts: Layouts) -> None:
    if isinstance(block, RecordBlock) and block.start > 0:
        return
    first = layouts.of(block).text_column
    for column in (first, *read[1:]):
        if not block.resolves(column):
            key = "text_column" if column == first else "text_pair_column"
            raise DataError(no_column(block, column, key))


def _add_fields(found: Survey, block: Block) -> Any:
    """The Arrow fields of a block beside those so far; the schema of the block."""
    import pyarrow

    schema = schema_of(block)
    found.metadata = found.metadata or schema.metadata
    try:
        merged = pyarrow.unify_schemas(
            [pyarrow.schema(found.fields), schema.remove_metadata()], promote_options="permissive"
        )
    except pyarrow.ArrowException as error:
        raise differing(block, error) from None
    found.fields = list(merged)
    return schema


def _try_conversions(
    found: Survey, schemas: dict[int, list[Any]], sources: Sequence[Source], keys: ReadingKeys
) -> None:
    """Raise DataError where values do not fit the common type of their column.

    Only of files that have another type there: a number may be too large to be a fraction.
    """
    import pyarrow

    schema = pyarrow.schema(found.fields)
    differ = [
        sources[index]
        for index, ones in schemas.items()
        if any(schema.field(field.name).type != field.type for one in ones for field in one)
    ]
    with progress(bytes_of(differ), "look", "B", leave=False, delay=BAR_SECONDS) as bar:
        for block in read_sources(differ, None, keys, looked_for=found.columns):
            bar.update(block.position - bar.n)
            table_of(block, found.columns, schema)
