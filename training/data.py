"""Files or hub → validated, split text and labels.

Reads CSV, JSONL, JSON and Parquet through `datasets`, checks every row, makes a validation split
where none is given, and says in one sentence what cannot be used.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.config import DataArguments
from training.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
MIN_ROWS_OF_A_LABEL = 2


@dataclass(frozen=True)
class Split:
    """Rows of one split: equally long lists."""

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Split:
        """The rows at `indices`, in that order."""
        return Split([self.texts[i] for i in indices], [self.labels[i] for i in indices])


@dataclass(frozen=True)
class LabelledData:
    """What training needs: `labels` are sorted from the training split."""

    train: Split
    validation: Split
    test: Split | None
    labels: list[str]
    dropped: int

    def fingerprint(self, splits: Sequence[str] = ("train", "validation", "test")) -> str:
        """SHA-256 over every row of `splits`, in order."""
        digest = hashlib.sha256()
        for name in splits:
            split = getattr(self, name)
            rows = list(zip(split.texts, split.labels, strict=True)) if split else []
            digest.update(json.dumps([name, rows], ensure_ascii=False).encode())
        return digest.hexdigest()


def load_data(arguments: DataArguments, seed: int) -> LabelledData:
    """Read, check and split the data that a recipe names.

    Raises:
        DataError: a file, column or row cannot be used.
    """
    tables = _read_files(arguments) if arguments.train_file else _read_hub(arguments)
    findings = Findings(arguments.drop_invalid)
    splits = {
        name: rows_of(table, where, arguments.text_column, arguments.label_column, findings)
        for name, (table, where) in tables.items()
    }
    where = {name: place for name, (_, place) in tables.items()}
    train = _drop_rare_labels(splits["train"], where["train"], findings)
    labels = sorted(set(train.labels))
    if len(labels) < 2:
        found = f"only {labels[0]!r}" if labels else "none"
        raise DataError(f"{where['train']}: at least two labels are needed, found {found}")
    others = {
        name: _drop_unseen_labels(split, where[name], set(labels), findings)
        for name, split in splits.items()
        if name != "train"
    }
    for name, split in others.items():
        if not len(split):
            raise DataError(f"{where[name]}: no row is left to use")
    validation = others.get("validation")
    if validation is None:
        train, validation = stratified_split(train, arguments.validation_share, seed)
    if findings.dropped:
        logger.warning("dropped %d rows that cannot be used", findings.dropped)
    return LabelledData(train, validation, others.get("test"), labels, findings.dropped)


class Findings:
    """Rows that cannot be used: refused, or counted and dropped."""

    def __init__(self, drop_invalid: bool) -> None:
        self.drop_invalid = drop_invalid
        self.dropped = 0

    def add(self, where: str, problem: str, rows: list[int]) -> None:
        """`rows` are 0-based; people count from 1, and the header is not a row."""
        if not rows:
            return
        if not self.drop_invalid:
            others = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
            raise DataError(
                f"{where}, row {rows[0] + 1}: {problem}{others}: "
                "correct the data, or drop such rows with `drop_invalid: true`"
            )
        self.dropped += len(rows)


def rows_of(
    table: Dataset,
    where: str,
    text_column: str,
    label_column: str,
    findings: Findings,
    known: Sequence[str] | None = None,
) -> Split:
    """The texts and label names of a table, checked row by row; `known` are the only labels."""
    for column in (text_column, label_column):
        if column not in table.column_names:
            raise DataError(
                f"{where} has no column {column!r}, it has {', '.join(table.column_names)}: "
                "name the right one with text_column or label_column"
            )
    if not len(table):
        raise DataError(f"{where} holds no rows")
    texts = table[text_column][:]
    labels = _label_names(table, label_column)
    problems: dict[str, list[int]] = {}
    kept: list[int] = []
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        problem = text_problem(text) or label_problem(label)
        if problem:
            problems.setdefault(problem, []).append(row)
        elif known is not None and label[0] not in known:
            raise DataError(
                f"{where}, row {row + 1}: label {label[0]!r} is not one of the package's: "
                f"{', '.join(known)}"
            )
        else:
            kept.append(row)
    for problem, rows in problems.items():
        findings.add(where, problem, rows)
    return Split([str(texts[row]) for row in kept], [labels[row][0] for row in kept])


def label_problem(names: list[str]) -> str | None:
    """Why a row with these labels cannot be learned from, or None."""
    if not names:
        return "the label is missing"
    if len(names) > 1:
        return "it has several labels, and a row must have one"
    return None


def text_problem(text: object) -> str | None:
    """Why `text` cannot be classified, or None."""
    if text is None:
        return "the text is missing"
    if not isinstance(text, str | int | float):
        return f"the text is a {type(text).__name__}"
    if not str(text).strip():
        return "the text is empty"
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return "the text holds a lone surrogate"
    return None


def read_table(path: Path) -> Dataset:
    """One file as a table.

    Raises:
        DataError: it is absent, of another format, not UTF-8, or malformed.
    """
    from datasets import DatasetDict, Features, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError

    kind = FORMATS.get(path.suffix.lower())
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if kind is None:
        raise DataError(f"{path}: files end in {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    options: dict[str, Any] = {}
    if kind != "parquet":
        refuse_undecodable(path)
    if kind == "csv":
        columns = csv_header(path)
        # All columns as text: `NA` and `null` are words, `007` is not 7. A nameless column is
        # called as pandas will call it.
        names = [column or f"Unnamed: {index}" for index, column in enumerate(columns)]
        options["features"] = Features({name: Value("string") for name in names})
        options["keep_default_na"] = False
        options["encoding"] = "utf-8-sig"
    try:
        table = load_dataset(kind, data_files=glob.escape(str(path)), split="train", **options)
    except (DatasetGenerationError, ValueError, OSError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "corresponds to no data" in reason:
            raise DataError(f"{path} holds no rows") from None
        raise DataError(f"{path} cannot be read as {kind.upper()}: {reason}") from error
    assert not isinstance(table, DatasetDict)  # noqa: S101 - a split was named
    return table


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV file."""
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        columns = next(reader, [])
        first = next(filter(None, reader), [])
        if len(first) > len(columns):
            # pandas would take the first column for an index.
            raise DataError(f"{path}, line {reader.line_num}: more cells than columns")
    if not columns:
        raise DataError(f"{path} is empty: it has no header")
    doubled = [column for column, count in Counter(columns).items() if count > 1]
    if doubled:
        raise DataError(f"{path} has two columns named {doubled[0]!r}")
    return columns


def refuse_undecodable(path: Path) -> None:
    """Raise DataError naming the first line of `path` that is not UTF-8."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: byte {error.start + 1} is not UTF-8: "
                    "save the file as UTF-8"
                ) from None


def stratified_split(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Set `share` of each label's rows aside (at least one of all, never a label's last row)."""
    random = np.random.default_rng(seed)
    labels = np.asarray(split.labels, dtype=object)
    aside: list[int] = []
    for label in sorted(set(split.labels)):
        rows = random.permutation(np.flatnonzero(labels == label))
        aside.extend(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    held = np.sort(np.asarray(aside))
    return split.take(np.setdiff1d(np.arange(len(split)), held)), split.take(held)


def _read_files(arguments: DataArguments) -> dict[str, tuple[Dataset, str]]:
    named = {
        "train": arguments.train_file,
        "validation": arguments.validation_file,
        "test": arguments.test_file,
    }
    return {name: (read_table(Path(path)), path) for name, path in named.items() if path}


def _read_hub(arguments: DataArguments) -> dict[str, tuple[Dataset, str]]:
    from datasets import load_dataset

    name = arguments.dataset_name
    try:
        found = load_dataset(
            name, arguments.dataset_config_name, revision=arguments.dataset_revision
        )
    except Exception as error:  # the hub's client raises many kinds, all mean the same here
        raise DataError(
            f"data set {name!r} could not be loaded from the hub ({_first_line(error)}): "
            "check the name and the network, or give files with train_file and test_file"
        ) from error
    if "train" not in found:
        raise DataError(f"data set {name!r} has no split 'train', it has {', '.join(found)}")
    return {
        split: (found[split], f"{name} ({split})")
        for split in ("train", "validation", "test")
        if split in found
    }


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _label_names(table: Dataset, column: str) -> list[list[str]]:
    """The names of each row's labels; a column of lists is one of several labels a row."""
    from datasets import ClassLabel

    feature = table.features[column]
    numbered = getattr(feature, "feature", feature)

    def name(value: Any) -> str | None:
        if isinstance(numbered, ClassLabel):
            # -1 is how the hub's sets mark a row whose label is hidden.
            return numbered.int2str(value) if value is not None and value >= 0 else None
        return None if value is None or not str(value).strip() else str(value)

    rows = (value if isinstance(value, list) else [value] for value in table[column][:])
    return [[found for value in row if (found := name(value)) is not None] for row in rows]


def _drop_rare_labels(split: Split, where: str, findings: Findings) -> Split:
    counts = Counter(split.labels)
    rare = sorted(label for label, count in counts.items() if count < MIN_ROWS_OF_A_LABEL)
    return _without(
        split,
        where,
        set(rare),
        f"has fewer than {MIN_ROWS_OF_A_LABEL} rows",
        findings,
    )


def _drop_unseen_labels(split: Split, where: str, seen: set[str], findings: Findings) -> Split:
    unseen = sorted(set(split.labels) - seen)
    return _without(
        split,
        where,
        set(unseen),
        "does not occur in the training data",
        findings,
    )


def _without(split: Split, where: str, labels: set[str], problem: str, findings: Findings) -> Split:
    rows = [row for row, label in enumerate(split.labels) if label in labels]
    if rows:
        findings.add(where, f"label {split.labels[rows[0]]!r} {problem}", rows)
    return split.take(np.setdiff1d(np.arange(len(split)), rows)) if rows else split
