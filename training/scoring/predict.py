"""Score a file: its columns kept, the answers added; streamed, so any size works.

    whetstone predict runs/support_tickets/package messages.csv --out scored.csv

Reads and writes CSV, JSONL and Parquet; the ending of each name says which.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.classifier import Classifier, NotFiniteError, Prediction
from service.model_package import Manifest, Text
from training.config import DataArguments, columns_of
from training.data.findings import text_problem
from training.data.readers import (
    csv_header,
    marked,
    plain,
    refuse_doubled,
    refuse_undecodable,
)
from training.errors import DataError
from training.progress import progress

CHUNK_ROWS = 1024
# A lone surrogate cannot be written as UTF-8; escaped, it is what JSON had.
UNENCODABLE = "backslashreplace"
LABEL, SCORE, LABELS, ABSTAINED, ERROR = "label", "score", "labels", "abstained", "error"
# Between the labels of a row of a CSV file, unless the package's own data had another.
DEFAULT_SEPARATOR = "|"
SCORE_PREFIX = "score_"
# Put before an added column whose name the input already has.
CLASH_PREFIX = "predicted_"

Row = dict[str, Any]
Write = Callable[[list[Row]], None]


def predict(
    classifier: Classifier,
    source: Path,
    target: Path,
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
        arguments: which columns hold the text, or the texts of a pair; by default those of the
            package's recipe.

    Raises:
        DataError: the file, a column, or one of the two formats cannot be used.
    """
    arguments = arguments or columns_of(classifier.manifest, {})
    columns = _columns(source)
    read = _text_columns(classifier, arguments)
    for column in read:
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r}, it has {', '.join(columns)}: name the right "
                f"one with --{'text_column' if column == read[0] else 'text_pair_column'}"
            )
    manifest = classifier.manifest
    added = added_columns(columns, manifest, all_scores)
    separator = arguments.label_separator or DEFAULT_SEPARATOR
    as_text = separator if _kind(target) == "csv" else None
    rows = failures = 0
    with (
        _writer(target, source, columns, list(added.values())) as write,
        progress(None, "predict", "row") as bar,
    ):
        for chunk in _chunks(source):
            problems = [_problem(row, read) for row in chunk]
            answers = _answers(classifier, chunk, read, problems)
            for row, problem in zip(chunk, problems, strict=True):
                if own := row.keys() & set(added.values()):
                    raise DataError(f"{source}: rows differ: only a later one has {min(own)!r}")
                row.update(dict.fromkeys(added.values()))
                row[added[ERROR]] = problem
                if problem is None:
                    cells = _cells(next(answers), manifest.labels, as_text)
                    row.update({name: cells[key] for key, name in added.items() if key != ERROR})
            failures += sum(problem is not None for problem in problems)
            write(chunk)
            rows += len(chunk)
            bar.update(len(chunk))
    return rows, failures


def _answers(
    classifier: Classifier, rows: list[Row], columns: list[str], problems: list[str | None]
) -> Iterator[Prediction]:
    """The answers to the rows without a problem; one without a finite score gets a problem, too."""
    while True:
        places = [place for place, problem in enumerate(problems) if problem is None]
        try:
            return iter(classifier.classify([_text(rows[place], columns) for place in places]))
        except NotFiniteError as error:
            # Beside other texts others may be refused, but each time there are fewer.
            for place in error.texts:
                problems[places[place]] = "the model computed no finite scores for this text"


def added_columns(columns: list[str], manifest: Manifest, all_scores: bool) -> dict[str, str]:
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


def _text_columns(classifier: Classifier, arguments: DataArguments) -> list[str]:
    if not classifier.manifest.has_pairs:
        return [arguments.text_column]
    return [arguments.text_column, arguments.text_pair_column or "text_pair"]


def _problem(row: Row, columns: list[str]) -> str | None:
    """Why a row cannot be classified, or None."""
    values = [plain(row.get(column)) for column in columns]
    if any(map(marked, values)):
        return "the text holds bytes that are not UTF-8"
    found = map(text_problem, values)
    return next((problem[1] for problem in found if problem is not None), None)


def _text(row: Row, columns: list[str]) -> Text:
    if len(columns) == 1:
        return str(plain(row[columns[0]]))
    return str(plain(row[columns[0]])), str(plain(row[columns[1]]))


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
    } | {f"{SCORE_PREFIX}{label}": score for label, score in scores}


def _columns(source: Path) -> list[str]:
    if not source.is_file():
        raise DataError(f"there is no file {source}")
    kind = _kind(source)
    if kind == "parquet":
        names = list(_parquet_file(source).schema_arrow.names)
        refuse_doubled(source, names)
        return names
    refuse_undecodable(source)
    if kind == "csv":
        return csv_header(source)
    first = next(_json_rows(source), None)
    if first is None:
        raise DataError(f"{source} is empty")
    return list(first)


def _chunks(source: Path) -> Iterator[list[Row]]:
    kind = _kind(source)
    if kind == "parquet":
        for batch in _parquet_file(source).iter_batches(CHUNK_ROWS):
            yield batch.to_pylist()
        return
    chunk: list[Row] = []
    for row in _csv_rows(source) if kind == "csv" else _json_rows(source):
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _csv_rows(source: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with source.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise DataError(f"{source}, line {reader.line_num}: more cells than columns")
                yield row
        except csv.Error as error:
            raise DataError(f"{source}, line {reader.line_num}: {error}") from None


def _json_rows(source: Path) -> Iterator[Row]:
    with source.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"{source}, line {number}: not JSON") from None
            if not isinstance(row, dict):
                raise DataError(f"{source}, line {number}: not a JSON object")
            yield row


def _parquet_file(source: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source)
    except pyarrow.ArrowInvalid:
        raise DataError(f"{source} is not a Parquet file") from None


@contextmanager
def _writer(target: Path, source: Path, columns: list[str], added: list[str]) -> Iterator[Write]:
    """Write rows to a temporary name that becomes `target` when all went well."""
    kind = _kind(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    openers = {"csv": _csv_writer, "jsonl": _json_writer, "parquet": _parquet_writer}
    try:
        with openers[kind](temporary, source, columns, added) as write:
            yield write
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _csv_writer(path: Path, source: Path, columns: list[str], added: list[str]) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8", errors=UNENCODABLE) as handle:
        writer = csv.DictWriter(handle, [*columns, *added], lineterminator="\n")
        writer.writeheader()

        def write(rows: list[Row]) -> None:
            try:
                writer.writerows(rows)
            except ValueError:
                raise DataError(
                    f"{source}: rows differ in their keys, which CSV cannot hold: write .jsonl"
                ) from None

        yield write


@contextmanager
def _json_writer(
    path: Path, _source: Path, _columns: list[str], _added: list[str]
) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", errors=UNENCODABLE) as handle:

        def write(rows: list[Row]) -> None:
            handle.writelines(
                json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows
            )

        yield write


@contextmanager
def _parquet_writer(
    path: Path, source: Path, columns: list[str], added: list[str]
) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    types = {name: _added_type(name) for name in added}
    if _kind(source) == "parquet":
        types |= {field.name: field.type for field in _parquet_file(source).schema_arrow}
    writer = None

    def write(rows: list[Row]) -> None:
        nonlocal writer
        names = [*columns, *added]
        if any(row.keys() - set(names) for row in rows):
            raise DataError(f"{source}: rows differ in their keys, which Parquet cannot hold")
        try:
            if writer is None:
                # JSON states no types: the first rows decide.
                for name in names:
                    if name not in types:
                        kind = pyarrow.array([row.get(name) for row in rows]).type
                        types[name] = pyarrow.string() if kind == pyarrow.null() else kind
                fields = ((name, types[name]) for name in names)
                writer = parquet.ParquetWriter(path, pyarrow.schema(fields))
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=writer.schema))
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as failure:
            raise DataError(f"{source}: rows differ too much for one table: {failure}") from None

    try:
        yield write
        if writer is None:
            write([])
    finally:
        if writer is not None:
            writer.close()


def _added_type(name: str) -> Any:
    """The Arrow type of an added column."""
    import pyarrow

    types = {
        LABEL: pyarrow.string(),
        ERROR: pyarrow.string(),
        LABELS: pyarrow.list_(pyarrow.string()),
        ABSTAINED: pyarrow.bool_(),
    }
    return types.get(name.removeprefix(CLASH_PREFIX), pyarrow.float64())


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("csv", "jsonl", "parquet"):
        raise DataError(f"{path}: the file must end in .csv, .jsonl or .parquet")
    return kind
