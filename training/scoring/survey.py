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
from training.scoring.tables import encodable


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
    for source in sources:
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
                    _add_fields(found, block)
                if not waits and not isinstance(block, RecordBlock):
                    break
    found.columns = list(columns)
    if kind in ("parquet", "arrow"):
        found.fields = [_typed(found.fields, name) for name in found.columns]
    return found


def _typed(fields: Sequence[Any], name: str) -> Any:
    """The field of a column; one that never holds anything is text."""
    import pyarrow

    found = next(one for one in fields if one.name == name)
    return found.with_type(pyarrow.string()) if pyarrow.types.is_null(found.type) else found


def _refuse_without_text(block: Block, read: Sequence[str], layouts: Layouts) -> None:
    if isinstance(block, RecordBlock) and block.start > 0:
        return
    first = layouts.of(block).text_column
    for column in (first, *read[1:]):
        if not block.resolves(column):
            key = "text_column" if column == first else "text_pair_column"
            raise DataError(no_column(block, column, key))


def _add_fields(found: Survey, block: Block) -> None:
    """The Arrow fields of a block beside those so far."""
    import pyarrow

    if isinstance(block, TableBlock):
        schema = block.table.schema
        found.metadata = found.metadata or schema.metadata
    elif isinstance(block, RecordBlock):
        try:
            columns = {name: block.plain_values(name) for name in block.columns}
            schema = pyarrow.table(
                {name: encodable(cells) for name, cells in columns.items()}
            ).schema
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(f"{block.file}: rows differ too much for one table: {error}") from None
    else:
        schema = pyarrow.schema([(name, pyarrow.string()) for name in block.columns])
    try:
        merged = pyarrow.unify_schemas(
            [pyarrow.schema(found.fields), schema], promote_options="permissive"
        )
    except pyarrow.ArrowException as error:
        raise DataError(f"{block.file}: rows differ too much for one table: {error}") from None
    found.fields = list(merged)
