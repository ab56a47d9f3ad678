"""A look at files before they are scored: which columns there are, and whether the text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.common.errors import DataError
from training.common.progress import progress
from training.data.blocks import Block, CellBlock, RecordBlock, TableBlock
from training.data.layouts import Layouts
from training.data.readers import BAR_SECONDS, ReadingKeys, bytes_of, read_sources
from training.data.rows import no_column
from training.data.sources import Source
from training.scoring.arrow_tables import differing, field_for, schema_of, table_of

# Formats that need one type for each column.
ARROW_KINDS = ("parquet", "arrow")


@dataclass
class Survey:
    """The columns of all files, in order; their Arrow fields where the result needs them.

    `is_csv` says whether all files are CSV. `text_columns` has the files, by name, whose text is in
    another column than the one that was named, and which that is.
    """

    columns: list[str] = field(default_factory=list)
    fields: list[Any] = field(default_factory=list)
    metadata: Any = None
    is_csv: bool = True
    text_columns: dict[str, str] = field(default_factory=dict)


def survey(
    sources: Sequence[Source], kind: str, keys: ReadingKeys, read: Sequence[str], layouts: Layouts
) -> Survey:
    """What the files hold: all rows of JSON are read, of everything else the header.

    Args:
        kind: how the result is written.
        read: the columns of the text.

    Raises:
        DataError: a file has no text, or cannot be read; rows differ too much for the result.
    """
    surveyed = Survey()
    columns: dict[str, None] = {}
    schemas: dict[int, list[Any]] = {}
    for index, source in enumerate(sources):
        with progress(bytes_of([source]), "look", "B", leave=False, delay=BAR_SECONDS) as bar:
            for block in read_sources([source], None, keys, looked_for=read):
                bar.update(block.position - bar.n)
                columns.update(dict.fromkeys(block.columns))
                is_undecided = _is_undecided(block, read)
                if not is_undecided:
                    _find_text(surveyed, block, read, layouts)
                surveyed.is_csv = surveyed.is_csv and isinstance(block, CellBlock)
                if kind in ARROW_KINDS:
                    schemas.setdefault(index, []).append(_add_fields(surveyed, block))
                if not is_undecided and not isinstance(block, RecordBlock):
                    break
    surveyed.columns = list(columns)
    if kind in ARROW_KINDS:
        fields = {field.name: field for field in surveyed.fields}
        surveyed.fields = [field_for(fields[name], kind) for name in surveyed.columns]
        _try_conversions(surveyed, schemas, sources, keys)
    return surveyed


def _is_undecided(block: Block, read: Sequence[str]) -> bool:
    """Whether only the first rows can show the layout: of a table of objects the header cannot."""
    is_header = isinstance(block, TableBlock) and not len(block)
    return is_header and not block.resolves(read[0])


def _find_text(surveyed: Survey, block: Block, read: Sequence[str], layouts: Layouts) -> None:
    """Note where a file has its text, by its first rows; raise DataError where it has none."""
    if isinstance(block, RecordBlock) and block.start > 0:
        return
    first = layouts.of(block).text_column
    if first != read[0]:
        surveyed.text_columns[block.file] = first
    for column in (first, *read[1:]):
        if not block.resolves(column):
            key = "text_column" if column == first else "text_pair_column"
            raise DataError(no_column(block, column, key))


def _add_fields(surveyed: Survey, block: Block) -> Any:
    """Add the Arrow fields of a block to the survey; the schema of the block."""
    import pyarrow

    schema = schema_of(block)
    surveyed.metadata = surveyed.metadata or schema.metadata
    try:
        merged = pyarrow.unify_schemas(
            [pyarrow.schema(surveyed.fields), schema.remove_metadata()],
            promote_options="permissive",
        )
    except pyarrow.ArrowException as error:
        raise differing(block, error) from None
    surveyed.fields = list(merged)
    return schema


def _try_conversions(
    surveyed: Survey, schemas: dict[int, list[Any]], sources: Sequence[Source], keys: ReadingKeys
) -> None:
    """Raise DataError where values do not fit the common type of their column.

    Only files with another type there are read: a number may be too large to be a fraction.
    """
    import pyarrow

    schema = pyarrow.schema(surveyed.fields)
    differing_sources = [
        sources[index]
        for index, blocks in schemas.items()
        if any(schema.field(field.name).type != field.type for block in blocks for field in block)
    ]
    with progress(bytes_of(differing_sources), "look", "B", leave=False, delay=BAR_SECONDS) as bar:
        for block in read_sources(differing_sources, None, keys, looked_for=surveyed.columns):
            bar.update(block.position - bar.n)
            table_of(block, surveyed.columns, schema)
