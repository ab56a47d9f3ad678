"""Blocks of rows → the answer to each row, or why it has none: the same rules in every engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.inference.classifier import Classifier
from service.package.manifest import Text
from training.data.blocks import Block
from training.data.findings import text_problem
from training.scoring.answers import Answering, PendingAnswers
from training.scoring.columns import ERROR, ScoringColumns, values_of
from training.scoring.tables import Row

NOT_FINITE = "the model computed no finite scores for this text"
# Blocks that are read before the first of them is answered: cores stay busy meanwhile.
BLOCKS_AHEAD = 2

Key = TypeVar("Key")


@dataclass
class ScoredBlock(Generic[Key]):
    """A block with the values added to each row, by column; `problems` says why one has none."""

    key: Key
    block: Block
    rows: list[Row]
    problems: list[str | None]

    @property
    def failures(self) -> int:
        """How many rows cannot be scored."""
        return sum(problem is not None for problem in self.problems)


@dataclass
class _Pending(Generic[Key]):
    """A block whose answers are on their way."""

    key: Key
    block: Block
    problems: list[str | None]
    answers: PendingAnswers


def score_blocks(
    classifier: Classifier,
    columns: ScoringColumns,
    text_columns: Mapping[str, str],
    blocks: Iterable[tuple[Key, Block]],
) -> Iterator[ScoredBlock[Key]]:
    """Every block with its answers, in order; each has a key of the caller's.

    Args:
        text_columns: the column of the text, by file, where it is not the one of `columns`.

    Raises:
        Exception: the error of reading, tokenizing or inference.
    """
    waiting: deque[_Pending[Key]] = deque()
    labels = classifier.manifest.labels
    with closing(Answering(classifier)) as answering:
        for key, block in blocks:
            first = text_columns.get(block.file, columns.text[0])
            waiting.append(_submit(answering, [first, *columns.text[1:]], key, block))
            if len(waiting) > BLOCKS_AHEAD:
                yield _finish(waiting.popleft(), columns, labels)
        while waiting:
            yield _finish(waiting.popleft(), columns, labels)


def _submit(
    answering: Answering, text_columns: Sequence[str], key: Key, block: Block
) -> _Pending[Key]:
    """Begin to answer the rows of a block that have a text."""
    rows = list(zip(*(block.values(column) for column in text_columns), strict=True))
    problems = [_problem(block, place, row) for place, row in enumerate(rows)]
    texts: list[Text] = [
        str(row[0]) if len(row) == 1 else (str(row[0]), str(row[1]))
        for row, problem in zip(rows, problems, strict=True)
        if problem is None
    ]
    return _Pending(key, block, problems, answering.submit(texts))


def _problem(block: Block, place: int, row: Sequence[Any]) -> str | None:
    """Why a row cannot be classified, or None."""
    problem = block.problems.get(place) or next(filter(None, map(text_problem, row)), None)
    return problem.message if problem else None


def _finish(
    part: _Pending[Key], columns: ScoringColumns, labels: Sequence[str]
) -> ScoredBlock[Key]:
    """Wait for the answers of a block."""
    answers = iter(part.answers.wait())
    nulls = dict.fromkeys(columns.added.values())
    rows = []
    for place, problem in enumerate(part.problems):
        answer = next(answers) if problem is None else None
        if problem is None and answer is None:
            problem = part.problems[place] = NOT_FINITE
        if answer is None:
            rows.append({**nulls, columns.added[ERROR]: problem})
        else:
            values = values_of(answer, labels, columns.separator)
            rows.append({name: values[key] for key, name in columns.added.items()})
    return ScoredBlock(part.key, part.block, rows, part.problems)
