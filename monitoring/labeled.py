"""The texts of rows that people have labeled, or are labeling: they need not be picked again.

Every file is read by the one reader of training data, whatever tool wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.package.manifest import Manifest, Text
from training.common.errors import DataError
from training.data.blocks import Block
from training.data.layouts import Layouts
from training.data.readers import read_blocks
from training.recipe.arguments import columns_of

# The columns of the files that `collect` writes.
TEXT, TEXT_PAIR, LABEL = "text", "text_pair", "label"
# Where a labeling tool keeps the columns that it was given.
FIELDS = {"Label Studio": "data.", "Argilla": "fields."}


def read_texts(named: Sequence[str], manifest: Manifest) -> list[Text]:
    """The texts of files, labeled or not.

    The columns are those that `collect` writes; else those of the package's recipe.

    Raises:
        DataError: a file is missing, is no table, or has no column of texts.
    """
    recipe = columns_of(manifest, {})
    wanted = [TEXT, recipe.text_column]
    found: list[Text] = []
    for name in named:
        written = Layouts(TEXT, LABEL)
        trained = Layouts(recipe.text_column, recipe.label_column)
        for block in read_blocks([name], None, looked_for=wanted):
            if not len(block):
                continue
            layout, pair = written.of(block), TEXT_PAIR
            if not block.resolves(layout.text_column):
                layout, pair = trained.of(block), recipe.text_pair_column or TEXT_PAIR
            _refuse_missing(block, layout.text_column)
            prefix = FIELDS.get(layout.tool or "", "")
            pair = pair if block.resolves(pair) else f"{prefix}{pair}"
            if manifest.has_pairs:
                _refuse_missing(block, pair)
            found += _texts(block, layout.text_column, pair if manifest.has_pairs else None)
    return found


def _texts(block: Block, column: str, pair: str | None) -> Iterator[Text]:
    """The rows that hold a text, or both texts of a pair."""
    firsts = block.values(column)
    seconds = firsts if pair is None else block.values(pair)
    for first, second in zip(firsts, seconds, strict=True):
        if first is not None and second is not None:
            yield str(first) if pair is None else (str(first), str(second))


def _refuse_missing(block: Block, column: str) -> None:
    if not block.resolves(column):
        raise DataError(f"{block.file} has no column {column!r} of texts")
