"""Score files: their columns kept, the answers added; in parts, so any size works.

    whetstone predict runs/support_tickets/package messages.csv --out scored.csv

Killed at any moment, the same command goes on behind the last part that is written.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from service.classifier import Classifier, Prediction
from service.model_package import Manifest, Text
from training.config import DataArguments, columns_of
from training.data.blocks import Block
from training.data.findings import text_problem
from training.data.layouts import Layouts
from training.data.readers import bytes_of, read_sources
from training.data.rows import keys_of
from training.data.sources import COMPRESSIONS, Source, find_sources
from training.errors import DataError, InterruptedRunError
from training.progress import progress
from training.scoring.answers import Answering, PendingAnswers
from training.scoring.arrow_tables import refuse_unwritable
from training.scoring.parts import Parts
from training.scoring.survey import survey
from training.scoring.tables import Row, TableFormat
from training.storage import file_system

LABEL, SCORE, LABELS, ABSTAINED, ERROR = "label", "score", "labels", "abstained", "error"
# Between the labels of a row of a CSV file, unless the package's own data had another.
DEFAULT_SEPARATOR = "|"
SCORE_PREFIX = "score_"
# Put before an added column whose name the input already has.
CLASH_PREFIX = "predicted_"
NOT_FINITE = "the model computed no finite scores for this text"
STANDARD_OUTPUT = "-"
# What a result's name ends in → how it is written.
KINDS = {
    **{".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"},
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"},
}
# Parts that are read before the first of them is written: cores stay busy meanwhile.
PARTS_AHEAD = 2
# With another one the parts of an earlier version are not gone on from.
PARTS_FORMAT = 2


@dataclass
class _Pending:
    """A part whose answers are on their way."""

    index: int
    block: Block
    problems: list[str | None]
    answers: PendingAnswers


@dataclass(frozen=True)
class _Job:
    """What is read and how it is written."""

    classifier: Classifier
    sources: list[Source]
    arguments: DataArguments
    read: list[str]
    added: dict[str, str]
    format: TableFormat
    separator: str | None
    layouts: Layouts


def predict(
    classifier: Classifier,
    source: str | Path | Sequence[str],
    target: str | Path,
    arguments: DataArguments | None = None,
    *,
    all_scores: bool = False,
) -> tuple[int, int]:
    """Score `source` into `target`; how many rows, and how many of them could not be scored.

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

    Raises:
        DataError: a file, a column, or one of the two formats cannot be used.
        InterruptedRunError: Ctrl-C; the parts that are written stay.
    """
    arguments = arguments or columns_of(classifier.manifest, {})
    job = _plan(classifier, source, str(target), arguments, all_scores)
    parts = None if str(target) == STANDARD_OUTPUT else Parts(str(target), _identity(job))
    rows = failures = out = 0
    try:
        for pending, cells in _answered(job, parts):
            content = job.format.part(pending.block, cells, pending.index == 0)
            bad = sum(problem is not None for problem in pending.problems)
            rows, failures = rows + len(cells), failures + bad
            if parts is not None:
                parts.add(pending.index, content, len(cells), bad)
            else:
                _write_out((job.format.beginning() if pending.index == 0 else b"") + content)
                out = rows
        if parts is None:
            _write_out(job.format.end() if rows else job.format.beginning() + job.format.end())
            return rows, failures
        parts.finish(job.format.assemble)
    except KeyboardInterrupt:
        raise InterruptedRunError(_kept(parts, out)) from None
    except DataError:
        if parts is not None:
            parts.discard_empty()
        raise
    written = parts.written.values()
    return sum(part.rows for part in written), sum(part.failures for part in written)


def _kept(parts: Parts | None, out: int) -> str:
    """What an interrupted command leaves; `out` rows or more are on standard output."""
    if parts is None:
        return (
            f"interrupted: {out:,} rows or more were written to standard output, which may break "
            "off within a row; the same command begins anew, with --out FILE it would go on"
        )
    rows = sum(part.rows for part in parts.written.values())
    if not rows:
        return "interrupted, before a part was written"
    return (
        f"interrupted: {rows:,} rows are kept in {parts.place}; the same command goes on behind "
        "them"
    )


def _plan(
    classifier: Classifier,
    source: str | Path | Sequence[str],
    target: str,
    arguments: DataArguments,
    all_scores: bool,
) -> _Job:
    sources = find_sources(source)
    if len(sources) > 1 and target != STANDARD_OUTPUT:
        # What an earlier command wrote into the folder is no input.
        written = file_system(target, DataError)[1]
        sources = [one for one in sources if one.path != written]
    read = [arguments.text_column]
    if classifier.manifest.has_pairs:
        read.append(arguments.text_pair_column or "text_pair")
    kind, compression = _kind(target)
    layouts = Layouts(arguments.text_column, arguments.label_column)
    found = survey(sources, kind, keys_of(arguments), read, layouts)
    if target == STANDARD_OUTPUT and found.is_csv:
        kind = "csv"
    added = added_columns(found.columns, classifier.manifest, all_scores)
    schema = None
    if kind in ("parquet", "arrow"):
        import pyarrow

        fields = [pyarrow.field(name, _added_type(key)) for key, name in added.items()]
        schema = pyarrow.schema([*found.fields, *fields], metadata=found.metadata)
        refuse_unwritable(schema, kind)
    form = TableFormat(kind, compression, found.columns, list(added.values()), schema)
    separator = None if form.has_lists else arguments.label_separator or DEFAULT_SEPARATOR
    return _Job(classifier, sources, arguments, read, added, form, separator, layouts)


def _identity(job: _Job) -> str:
    """Twelve digits that change with whatever the result depends on."""
    content = {
        "format": PARTS_FORMAT,
        "package": job.classifier.manifest.version,
        "sources": [(source.path, source.state) for source in job.sources],
        "arguments": asdict(job.arguments),
        "columns": [job.read, job.added, list(job.format.columns)],
        "kind": [job.format.kind, job.format.compression, str(job.format.schema)],
    }
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]


def _answered(job: _Job, parts: Parts | None) -> Iterator[tuple[_Pending, list[Row]]]:
    """Every part that is not written yet, in order, with what is added to each of its rows."""
    written = parts.written if parts else {}
    waiting: deque[_Pending] = deque()
    # Where standard output is the result, the bar would be within it on a terminal.
    hidden = parts is None and sys.stdout.isatty()
    blocks = read_sources(job.sources, None, keys_of(job.arguments), looked_for=job.read)
    with closing(Answering(job.classifier)) as answering, _Bar(job.sources, hidden) as bar:

        def oldest() -> tuple[_Pending, list[Row]]:
            pending = waiting.popleft()
            cells = _cells_of(job, pending)
            bar.add(pending.block, sum(problem is not None for problem in pending.problems))
            return pending, cells

        index = 0
        for block in blocks:
            if not len(block):
                continue
            if index in written:
                bar.skip(block, written[index].failures)
            else:
                waiting.append(_begin(job, answering, index, block))
            index += 1
            if len(waiting) > PARTS_AHEAD:
                yield oldest()
        while waiting:
            yield oldest()


def _begin(job: _Job, answering: Answering, index: int, block: Block) -> _Pending:
    columns = [job.layouts.of(block).text_column, *job.read[1:]]
    rows = list(zip(*(block.values(column) for column in columns), strict=True))
    problems = [_problem(block, place, row) for place, row in enumerate(rows)]
    texts: list[Text] = [
        str(row[0]) if len(row) == 1 else (str(row[0]), str(row[1]))
        for row, problem in zip(rows, problems, strict=True)
        if problem is None
    ]
    return _Pending(index, block, problems, answering.submit(texts))


def _problem(block: Block, place: int, row: Sequence[Any]) -> str | None:
    """Why a row cannot be classified, or None."""
    problem = block.problems.get(place) or next(filter(None, map(text_problem, row)), None)
    return problem.message if problem else None


def _cells_of(job: _Job, pending: _Pending) -> list[Row]:
    """What is added to each row of a part, by the names of the columns."""
    answers = iter(pending.answers.wait())
    labels = job.classifier.manifest.labels
    nothing = dict.fromkeys(job.added.values())
    rows = []
    for place, problem in enumerate(pending.problems):
        answer = next(answers) if problem is None else None
        if problem is None and answer is None:
            problem = pending.problems[place] = NOT_FINITE
        if answer is None:
            rows.append({**nothing, job.added[ERROR]: problem})
        else:
            cells = _cells(answer, labels, job.separator)
            rows.append({name: cells[key] for key, name in job.added.items()})
    return rows


def added_columns(columns: Sequence[str], manifest: Manifest, all_scores: bool) -> dict[str, str]:
    """What is added → the name of its column, which is none of `columns`.

    Raises:
        DataError: the input has both a column and its `predicted_` form.
    """
    wanted = [LABEL, SCORE]
    wanted += [LABELS] if manifest.task == "multi_label" else []
    wanted += [ABSTAINED] if manifest.abstain_threshold is not None else []
    wanted += [ERROR]
    wanted += [f"{SCORE_PREFIX}{label}" for label in manifest.labels] if all_scores else []
    names = {name: f"{CLASH_PREFIX}{name}" if name in columns else name for name in wanted}
    taken = [name for name in names.values() if name in columns]
    if taken:
        raise DataError(f"the input already has a column {taken[0]!r}: rename it first")
    return names


def _cells(answer: Prediction, labels: Sequence[str], separator: str | None) -> Row:
    """An answer by the keys of `added_columns`; several labels joined where there is no list."""
    several: Any = list(answer.labels or ())
    if separator is not None:
        several = separator.join(several)
    scores = zip(labels, answer.probs.tolist(), strict=True)
    return {
        LABEL: answer.label,
        SCORE: answer.score,
        LABELS: several,
        ABSTAINED: answer.abstained,
        ERROR: None,
    } | {f"{SCORE_PREFIX}{label}": score for label, score in scores}


def _added_type(key: str) -> Any:
    """The Arrow type of an added column."""
    import pyarrow

    types = {
        LABEL: pyarrow.string(),
        ERROR: pyarrow.string(),
        LABELS: pyarrow.list_(pyarrow.string()),
        ABSTAINED: pyarrow.bool_(),
    }
    return types.get(key, pyarrow.float64())


def _kind(target: str) -> tuple[str, str | None]:
    """How the result is written, as its name says; standard output is JSON, if not CSV."""
    if target == STANDARD_OUTPUT:
        return "jsonl", None
    endings = [ending.lower() for ending in PurePosixPath(target).suffixes]
    compression = COMPRESSIONS.get(endings[-1]) if endings else None
    endings = endings[:-1] if compression else endings
    kind = KINDS.get(endings[-1]) if endings else None
    if kind is None or (compression and kind in ("parquet", "arrow")):
        raise DataError(
            f"{target}: the result must end in {', '.join(KINDS)}; those of text may end in "
            "another .gz or .zst"
        )
    return kind, compression


def _write_out(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


class _Bar:
    """How far it is, rows a second, rows refused, and the time that is left."""

    def __init__(self, sources: Sequence[Source], hidden: bool) -> None:
        self._total = None if hidden else bytes_of(sources)
        self._bar: tqdm[Any] = progress(self._total, "predict", "B")
        self._bar.disable = self._bar.disable or hidden
        self._rows = self._failures = self._skipped = 0
        self._began = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def skip(self, block: Block, failures: int) -> None:
        """A part that was written before: no time was needed for it."""
        self._rows, self._failures = self._rows + len(block), self._failures + failures
        self._skipped = self._rows
        self._bar.n = self._bar.initial = block.position
        self._began = time.monotonic()

    def add(self, block: Block, failures: int) -> None:
        """A part that is answered."""
        self._rows, self._failures = self._rows + len(block), self._failures + failures
        rate = (self._rows - self._skipped) / max(time.monotonic() - self._began, 1e-3)
        said = f"{self._rows:,} rows, {rate:,.0f} rows/s, {self._failures:,} refused"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update(max(0, block.position - self._bar.n))
