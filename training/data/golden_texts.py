"""Golden texts from a file of the user's."""

from __future__ import annotations

from service.package.manifest import Text
from training.common.errors import DataError
from training.data.findings import Places, text_problem
from training.data.readers import read_blocks
from training.data.rows import keys_of, no_column
from training.recipe.arguments import DataArguments

# Every start of every copy asks all of them.
MOST_GOLDEN_TEXTS = 1000
NO_GOLDEN = "none"


def read_texts(named: str, arguments: DataArguments) -> list[Text]:
    """The texts of files without labels, or pairs where `text_pair_column` names one.

    Raises:
        DataError: a file or a column cannot be used, or a row holds no text.
    """
    keys = {"text_column": arguments.text_column, "text_pair_column": arguments.text_pair_column}
    columns = {key: name for key, name in keys.items() if name is not None}
    read: list[Text] = []
    places = Places()
    for block in read_blocks(named, list(columns.values()), keys_of(arguments)):
        for key, name in columns.items():
            if not block.resolves(name):
                raise DataError(no_column(block, name, key))
        if len(block):
            places.add(block, len(read))
        values = [block.values(name) for name in columns.values()]
        for place, row in enumerate(zip(*values, strict=True)):
            problem = block.problems.get(place) or next(filter(None, map(text_problem, row)), None)
            if problem is not None:
                where = places.of(len(read), named)
                raise DataError(f"{where}: {problem.message}: fill or remove it")
            texts = tuple(map(str, row))
            read.append(texts[0] if len(texts) == 1 else (texts[0], texts[1]))
    return read


def chosen_golden_texts(path: str | None, arguments: DataArguments) -> list[Text] | None:
    """The texts of the recipe's `golden_file`: no text for `none`; None where it names no file.

    Raises:
        DataError: it cannot be read, lacks a column, holds an empty text, none at all or too many.
    """
    if path is None:
        return None
    if path == NO_GOLDEN:
        return []
    texts = read_texts(path, arguments)
    if not 0 < len(texts) <= MOST_GOLDEN_TEXTS:
        raise DataError(
            f"golden_file {path} holds {len(texts)} texts, and every start of a copy asks them "
            f"all: give 1 to {MOST_GOLDEN_TEXTS}, or golden_file: {NO_GOLDEN}"
        )
    return texts
