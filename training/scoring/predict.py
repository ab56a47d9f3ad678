"""Score files: their columns kept, the answers added; in parts, so any size works.

    whetstone predict runs/support_tickets/package messages.csv --out scored.csv

Killed at any moment, the same command continues after the last part that is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.inference.classifier import Classifier
from training.common.errors import DataError, InterruptedRunError
from training.common.progress import progress
from training.data.blocks import Block
from training.data.readers import bytes_of, read_sources
from training.data.rows import keys_of
from training.data.sources import Source
from training.recipe.arguments import DataArguments, columns_of
from training.scoring.job import STANDARD_OUTPUT, ScoringJob, plan_job
from training.scoring.parts import Parts
from training.scoring.rows import ScoredBlock, score_blocks


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
    job = plan_job(classifier.manifest, source, str(target), arguments, all_scores)
    if str(target) == STANDARD_OUTPUT:
        return _score_to_standard_output(classifier, job)
    return _score_to_file(classifier, job, Parts(str(target), job.identity()))


def _score_to_standard_output(classifier: Classifier, job: ScoringJob) -> tuple[int, int]:
    counts = Counts()
    try:
        for part in _scored_parts(classifier, job, None):
            content = job.format.part(part.block, part.rows, part.key == 0)
            counts.rows += len(part.rows)
            counts.failures += part.failures
            write_out((job.format.beginning() if part.key == 0 else b"") + content)
            counts.written = counts.rows
        write_out(job.format.end() if counts.rows else job.format.beginning() + job.format.end())
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: {counts.written:,} rows or more were written to standard output, which "
            "may break off within a row; the same command begins anew, with --out FILE it would "
            "go on"
        ) from None
    return counts.rows, counts.failures


def _score_to_file(classifier: Classifier, job: ScoringJob, parts: Parts) -> tuple[int, int]:
    """Write the parts that are missing, then the result of all parts."""
    try:
        for part in _scored_parts(classifier, job, parts):
            content = job.format.part(part.block, part.rows, part.key == 0)
            parts.add(part.key, content, len(part.rows), part.failures)
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


def _scored_parts(
    classifier: Classifier, job: ScoringJob, parts: Parts | None
) -> Iterator[ScoredBlock[int]]:
    """Every block that is not written yet, in order, with the values added to each of its rows."""
    written = parts.written if parts else {}
    # Where standard output is the result, the bar would be within it on a terminal.
    hidden = parts is None and sys.stdout.isatty()
    keys = keys_of(job.arguments)
    blocks = read_sources(job.sources, None, keys, looked_for=job.columns.text)
    with ScoringBar(job.sources, hidden) as bar:

        def missing() -> Iterator[tuple[int, Block]]:
            for index, block in enumerate(block for block in blocks if len(block)):
                if index in written:
                    bar.skip(block, written[index].failures)
                else:
                    yield index, block

        for scored in score_blocks(classifier, job.columns, job.text_columns, missing()):
            bar.add(scored.block, scored.failures)
            yield scored


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
