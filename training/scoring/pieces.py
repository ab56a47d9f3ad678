"""Files → pieces, each of which one worker reads by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.common.errors import DataError
from training.common.progress import progress
from training.common.storage import one_sentence
from training.data.blocks import BLOCK_ROWS
from training.data.readers import BAR_SECONDS
from training.data.sources import Source

# The blocks of a piece, and of a part of the result, at most: of short texts about a minute of a
# core, so that little is lost with a worker. A small input has smaller ones, so that many workers
# share it.
MOST_BLOCKS = 8
WANTED_PIECES = 64


@dataclass(frozen=True)
class Piece:
    """Some rows of the input.

    Attributes:
        file: the number of its file.
        source: the file, or some rows of it.
        part_blocks: so many of its blocks are one part of the result.
    """

    file: int
    source: Source
    part_blocks: int

    @property
    def parts_begin(self) -> str:
        """The beginning of the names of its parts, and of no other piece's."""
        return f"part-{self.file:06}-{self.source.rows.start if self.source.rows else 0:012}-"

    def part_name(self, block: int) -> str:
        """The name of the part with a block, by the block's number; the same at every attempt."""
        return f"{self.parts_begin}{block // self.part_blocks:06}"


def plan_pieces(sources: Sequence[Source]) -> list[Piece]:
    """The pieces of all files, in order: of Parquet some rows each, of other formats whole files.

    Raises:
        DataError: a file of Parquet cannot be read.
    """
    counts = []
    with progress(len(sources), "count", "file", leave=False, delay=BAR_SECONDS) as bar:
        for source in sources:
            counts.append(_rows_of(source))
            bar.update()
    total = sum(count or 0 for count in counts)
    blocks = max(1, min(MOST_BLOCKS, total // WANTED_PIECES // BLOCK_ROWS))
    pieces = []
    for file, (source, count) in enumerate(zip(sources, counts, strict=True)):
        if count is None:
            pieces.append(Piece(file, source, MOST_BLOCKS))
            continue
        for first in range(0, count, blocks * BLOCK_ROWS):
            rows = range(first, min(count, first + blocks * BLOCK_ROWS))
            pieces.append(Piece(file, replace(source, rows=rows), blocks))
    return pieces


def _rows_of(source: Source) -> int | None:
    """The rows of a file of Parquet; None for other formats."""
    if source.format != "parquet":
        return None
    import pyarrow
    from pyarrow import parquet

    try:
        with one_sentence(source.name, DataError), source.fs.open(source.path, "rb") as content:
            return int(parquet.read_metadata(content).num_rows)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source.name} cannot be read as Parquet: {reason}") from None
