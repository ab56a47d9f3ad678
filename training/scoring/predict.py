"""Score files: their columns kept, the answers added; in parts, so any size works.

    whetstone predict runs/support_tickets/package messages.csv --out scored.csv

Killed at any moment, the same command continues after the last part that is written.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.inference.classifier import Classifier
from service.package.manifest import Text
from training.common.errors import DataError, InterruptedRunError
from training.common.progress import progress
from training.data.blocks import Block
from training.data.findings import text_problem
from training.data.readers import bytes_of, read_sources
from training.data.rows import keys_of
from training.data.sources import Source
from training.recipe.arguments import DataArguments, columns_of
from training.scoring.answers import Answering, PendingAnswers
from training.scoring.columns import ERROR, values_of
from training.scoring.job import STANDARD_OUTPUT, ScoringJob, plan_job
from training.scoring.parts import Parts
from training.scoring.tables import Row

NOT_FINITE = "the model computed no finite scores for this text"
# Parts that are read before the first of them is written: cores stay busy meanwhile.
PARTS_AHEAD = 2


@dataclass
class PendingPart:
    """A part whose answers are on their way; `problems` says why a row cannot be scored."""

    index: int
    block: Block
    problems: list[str | None]
    answers: PendingAnswers

    @property
    def failures(self) -> int:
        """How many rows cannot be scored."""
        return sum(problem is not None for problem in self.problems)


@dataclass
class Counts:
    """How many rows were scored, how many of them in vain, and how many written out."""

    rows: int = 0
    failures: int = 0
    written: int = 0


def predict(
    classifier: Classifier,
    source: str | Path | Sequence[str],
    target: str | Path,
    arguments: DataArguments | None = None,
    *,
    all_scores: bool = False,
) -> tuple[int, int]:
    """Score `source` into `target`.

    The added columns are `label`, `score`, `labels` (of a multi-label package: those past their
    thresholds, a list, in CSV joined by the separator), `abstained` (of a package that abstains),
    `error` and, with `all_scores`, `score_<label>`; one that the input already has becomes
    `predicted_label` and so on. A row that cannot be scored gets nulls, and the reason in
    `error`.

    Args:
        source: as `training.data.sources.find_sources` takes it; `-` is standard input.
        target: a file or address, whose ending says how it is written; `-` is standard output.
        arguments: which columns hold the text, or the texts of a pair; by default those of the
            package's recipe.

    Returns:
        How many rows there are, and how many of them could not be scored.

    Raises:
        DataError: a file, a column, or one of the two formats cannot be used.
        InterruptedRunError: Ctrl-C; the parts that are written stay.
    """
    arguments = arguments or columns_of(classifier.manifest, {})
    job = plan_job(classifier, source, str(target), arguments, all_scores)
    if str(target) == STANDARD_OUTPUT:
        return _score_to_standard_output(job)
    return _score_to_file(job, Parts(str(target), job.identity()))


def _score_to_standard_output(job: ScoringJob) -> tuple[int, int]:
    counts = Counts()
    try:
        for part, rows in _scored_parts(job, None):
            content = job.format.part(part.block, rows, part.index == 0)
            counts.rows += len(rows)
            counts.failures += part.failures
            write_out((job.format.beginning() if part.index == 0 else b"") + content)
            counts.written = counts.rows
        write_out(job.format.end() if counts.rows else job.format.beginning() + job.format.end())
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: {counts.written:,} rows or more were written to standard output, which "
            "may break off within a row; the same command begins anew, with --out FILE it would "
            "go on"
        ) from None
    return counts.rows, counts.failures


def _score_to_file(job: ScoringJob, parts: Parts) -> tuple[int, int]:
    """Write the parts that are missing, then the result of all parts."""
    try:
        for part, rows in _scored_parts(job, parts):
            content = job.format.part(part.block, rows, part.index == 0)
            parts.add(part.index, content, len(rows), part.failures)
        parts.finish(job.format.assemble)
    except KeyboardInterrupt:
        raise InterruptedRunError(_kept_rows(parts)) from None
    except DataError:
        parts.discard_empty()
        raise
    written = parts.written.values()
    return sum(part.rows for part in written), sum(part.failures for part in written)


def _kept_rows(parts: Parts) -> str:
    """What an interrupted command leaves."""
    rows = sum(part.rows for part in parts.written.values())
    if not rows:
        return "interrupted, before a part was written"
    return (
        f"interrupted: {rows:,} rows are kept in {parts.place}; the same command goes on behind "
        "them"
    )


def write_out(content: bytes) -> None:
    """Write to standard output at once."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _scored_parts(job: ScoringJob, parts: Parts | None) -> Iterator[tuple[PendingPart, list[Row]]]:
    """Every part that is not written yet, in order, with the values added to each of its rows."""
    written = parts.written if parts else {}
    waiting: deque[PendingPart] = deque()
    # Where standard output is the result, the bar would be within it on a terminal.
    hidden = parts is None and sys.stdout.isatty()
    keys = keys_of(job.arguments)
    blocks = read_sources(job.sources, None, keys, looked_for=job.text_columns)
    with closing(Answering(job.classifier)) as answering, ScoringBar(job.sources, hidden) as bar:

        def finish_oldest() -> tuple[PendingPart, list[Row]]:
            part = waiting.popleft()
            rows = _added_values(job, part)
            bar.add(part.block, part.failures)
            return part, rows

        for index, block in enumerate(block for block in blocks if len(block)):
            if index in written:
                bar.skip(block, written[index].failures)
            else:
                waiting.append(_submit(job, answering, index, block))
            if len(waiting) > PARTS_AHEAD:
                yield finish_oldest()
        while waiting:
            yield finish_oldest()


def _submit(job: ScoringJob, answering: Answering, index: int, block: Block) -> PendingPart:
    """Begin to answer the rows of a block that have a text."""
    columns = [job.layouts.of(block).text_column, *job.text_columns[1:]]
    rows = list(zip(*(block.values(column) for column in columns), strict=True))
    problems = [_problem(block, place, row) for place, row in enumerate(rows)]
    texts: list[Text] = [
        str(row[0]) if len(row) == 1 else (str(row[0]), str(row[1]))
        for row, problem in zip(rows, problems, strict=True)
        if problem is None
    ]
    return PendingPart(index, block, problems, answering.submit(texts))


def _problem(block: Block, place: int, row: Sequence[Any]) -> str | None:
    """Why a row cannot be classified, or None."""
    problem = block.problems.get(place) or next(filter(None, map(text_problem, row)), None)
    return problem.message if problem else None


def _added_values(job: ScoringJob, part: PendingPart) -> list[Row]:
    """The values added to each row of a part, by the names of the columns."""
    answers = iter(part.answers.wait())
    labels = job.classifier.manifest.labels
    nulls = dict.fromkeys(job.added.values())
    rows = []
    for place, problem in enumerate(part.problems):
        answer = next(answers) if problem is None else None
        if problem is None and answer is None:
            problem = part.problems[place] = NOT_FINITE
        if answer is None:
            rows.append({**nulls, job.added[ERROR]: problem})
        else:
            values = values_of(answer, labels, job.separator)
            rows.append({name: values[key] for key, name in job.added.items()})
    return rows


class ScoringBar:
    """The progress of a command: bytes read, rows a second, and rows that cannot be scored."""

    def __init__(self, sources: Sequence[Source], hidden: bool) -> None:
        self._total = None if hidden else bytes_of(sources)
        self._bar: tqdm[Any] = progress(self._total, "predict", "B")
        self._bar.disable = self._bar.disable or hidden
        self._rows = self._failures = self._skipped = 0
        self._began = time.monotonic()

    def __enter__(self) -> ScoringBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def skip(self, block: Block, failures: int) -> None:
        """Count a part that an earlier command wrote; it took no time."""
        self._rows, self._failures = self._rows + len(block), self._failures + failures
        self._skipped = self._rows
        self._bar.n = self._bar.initial = block.position
        self._began = time.monotonic()

    def add(self, block: Block, failures: int) -> None:
        """Count a part that is answered."""
        self._rows, self._failures = self._rows + len(block), self._failures + failures
        rate = (self._rows - self._skipped) / max(time.monotonic() - self._began, 1e-3)
        counts = f"{self._rows:,} rows, {rate:,.0f} rows/s, {self._failures:,} refused"
        self._bar.set_postfix_str(counts, refresh=False)
        self._bar.update(max(0, block.position - self._bar.n))
