"""Files or hub → checked and split text and labels.

Refuses or drops what `findings` calls an error, and makes a validation split where none is given.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from service.model_package import Task, Text
from training.config import DataArguments
from training.data.findings import Errors, Rows, find_errors
from training.data.readers import marked, plain, read_table
from training.defaults import validation_share
from training.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


# Every start of every copy asks all of them.
MOST_GOLDEN_TEXTS = 1000
NO_GOLDEN = "none"


@dataclass(frozen=True)
class Split:
    """Rows of one split: texts, or pairs of them, and the names of each row's labels."""

    texts: list[Text]
    labels: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> Split:
        """The rows at `indices`, in that order."""
        return Split([self.texts[i] for i in indices], [self.labels[i] for i in indices])


class Labelled(NamedTuple):
    """The usable rows of a file, their 0-based places in it, and how many others there were.

    `columns` is what stands beside each usable row, by column.
    """

    split: Split
    rows: np.ndarray
    dropped: int
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class LabelledData:
    """What training needs: `labels` are sorted from the training split."""

    train: Split
    validation: Split
    test: Split | None
    labels: list[str]
    task: Task
    has_pairs: bool
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
    rows = read_rows(arguments)
    return usable_data(rows, find_errors(rows), arguments, seed)


def read_rows(arguments: DataArguments) -> dict[str, Rows]:
    """Every row of the splits that a recipe names, sound or not: train, validation, test.

    Raises:
        DataError: a file or column cannot be used.
    """
    tables = _read_files(arguments) if arguments.train_file else _read_hub(arguments)
    splits = {name: rows_of(table, where, arguments) for name, (table, where) in tables.items()}
    if arguments.train_file is None and "test" in splits and not any(splits["test"].labels):
        # As of all of GLUE, whose answers the hub does not tell.
        logger.warning("%s has no labels: it is left out", splits.pop("test").where)
    if any(rows.multi_label for rows in splits.values()):
        splits = {name: replace(rows, multi_label=True) for name, rows in splits.items()}
    return splits


def usable_data(
    splits: Mapping[str, Rows], errors: Errors, arguments: DataArguments, seed: int
) -> LabelledData:
    """The rows without `errors`, with a validation split.

    Raises:
        DataError: there are errors that may not be dropped, or nothing is left.
    """
    errors.refuse(arguments.drop_invalid)
    usable = {name: usable_rows(rows, errors.kept[name]) for name, rows in splits.items()}
    for name, split in usable.items():
        if not len(split):
            raise DataError(f"{splits[name].where}: no row is left to use")
    train, validation = usable["train"], usable.get("validation")
    if validation is None:
        share = arguments.validation_share or validation_share(len(train)).value
        train, validation = stratified_split(train, share, seed)
    if errors.rows:
        logger.warning("dropped %d rows that cannot be used", errors.rows)
    return LabelledData(
        train,
        validation,
        usable.get("test"),
        errors.labels,
        "multi_label" if splits["train"].multi_label else "single_label",
        arguments.text_pair_column is not None,
        errors.rows,
    )


def usable_rows(rows: Rows, kept: Sequence[int]) -> Split:
    """The rows at the 0-based places `kept`, their texts as strings."""

    def text(value: Any) -> Text:
        return (str(value[0]), str(value[1])) if isinstance(value, tuple) else str(value)

    return Split([text(rows.texts[row]) for row in kept], [rows.labels[row] for row in kept])


def rows_of(table: Dataset, where: str, arguments: DataArguments) -> Rows:
    """Texts and label names of a table, whatever they are.

    Raises:
        DataError: a column is not there, or the table is empty.
    """
    pair_column = arguments.text_pair_column
    wanted = {
        "text_column": arguments.text_column,
        "text_pair_column": pair_column,
        "label_column": arguments.label_column,
    }
    for key, column in wanted.items():
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{where} has no column {column!r}, it has {', '.join(table.column_names)}: "
                f"name the right one with {key}"
            )
    if not len(table):
        raise DataError(f"{where} holds no rows")
    _refuse_times(table, arguments.label_column, where)
    texts = _values(table, arguments.text_column)
    labels, multi_label = _label_names(table, arguments.label_column, arguments.label_separator)
    undecodable = {
        row
        for row, (text, names) in enumerate(zip(texts, labels, strict=True))
        if marked(text) or any(map(marked, names))
    }
    if pair_column is not None:
        pairs = _values(table, pair_column)
        undecodable |= {row for row, text in enumerate(pairs) if marked(text)}
        texts = list(zip(texts, pairs, strict=True))
    return Rows(where, texts, labels, multi_label, frozenset(undecodable))


def read_labelled(
    path: Path,
    arguments: DataArguments,
    labels: Sequence[str],
    task: Task,
    columns: Sequence[str] = (),
) -> Labelled:
    """The usable rows of a file for a package that knows `labels`.

    Args:
        columns: what stands in them is returned beside the rows.

    Raises:
        DataError: the file, a column or a row cannot be used.
    """
    table = read_table(path)
    rows = rows_of(table, str(path), arguments)
    for column in columns:
        if column not in table.column_names:
            raise DataError(
                f"{path} has no column {column!r} to slice by, it has "
                f"{', '.join(table.column_names)}"
            )
    if rows.multi_label and task == "single_label":
        raise DataError(f"{path} has several labels a row, but the package answers with one")
    rows = replace(rows, multi_label=task == "multi_label")
    errors = find_errors({"test": rows}, known=labels)
    errors.refuse(arguments.drop_invalid)
    kept = errors.kept["test"]
    slices = {}
    for column in columns:
        values = _values(table, column)
        slices[column] = ["" if values[row] is None else str(values[row]) for row in kept]
    return Labelled(usable_rows(rows, kept), np.asarray(kept, dtype=int), errors.rows, slices)


def read_texts(path: Path, arguments: DataArguments) -> list[Text]:
    """The texts of a file without labels, or pairs where `text_pair_column` names one.

    Raises:
        DataError: the file or a column cannot be used, or a row holds no text.
    """
    table = read_table(path)
    columns = [arguments.text_column, arguments.text_pair_column]
    read = []
    for column in columns:
        if column is None:
            continue
        if column not in table.column_names:
            raise DataError(
                f"{path} has no column {column!r}, it has {', '.join(table.column_names)}"
            )
        values = _values(table, column)
        for row, value in enumerate(values, start=1):
            if value is None or not str(value).strip() or marked(value):
                raise DataError(f"{path}: row {row} has no text in {column!r}: fill or remove it")
        read.append([str(value) for value in values])
    if len(read) == 1:
        return list(read[0])
    return list(zip(*read, strict=True))


def chosen_golden_texts(path: str | None, arguments: DataArguments) -> list[Text] | None:
    """The texts of the recipe's `golden_file`: no text for `none`; None where it names no file.

    Raises:
        DataError: it cannot be read, lacks a column, holds an empty text, none at all or too many.
    """
    if path is None:
        return None
    if path == NO_GOLDEN:
        return []
    texts = read_texts(Path(path), arguments)
    if not 0 < len(texts) <= MOST_GOLDEN_TEXTS:
        raise DataError(
            f"golden_file {path} holds {len(texts)} texts, and every start of a copy asks them "
            f"all: give 1 to {MOST_GOLDEN_TEXTS}, or golden_file: {NO_GOLDEN}"
        )
    return texts


def stratified_split(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Set `share` of each label's rows aside, at least one of all, never a label's last row.

    Equal texts stay on one side. A row of several labels is counted with the rarest of them, so
    that rare labels are spread as common ones are (the first step of Sechidis et al. 2011, "On
    the Stratification of Multi-label Data").

    Raises:
        DataError: every label has one text only, however often.
    """
    random = np.random.default_rng(seed)
    counts = Counter(label for labels in split.labels for label in labels)
    groups: dict[Text, list[int]] = {}
    for row, text in enumerate(split.texts):
        groups.setdefault(text, []).append(row)
    strata: dict[str, list[list[int]]] = {}
    for rows in groups.values():
        labels = {label for row in rows for label in split.labels[row]}
        rarest = min(labels, key=lambda label: (counts[label], label), default="")
        strata.setdefault(rarest, []).append(rows)
    aside: list[list[int]] = []
    for stratum in sorted(strata):
        members = strata[stratum]
        wanted = min(max(1, round(share * len(members))), len(members) - 1)
        aside += [members[index] for index in random.permutation(len(members))[:wanted]]
    aside = _give_back_last_rows(split, counts, aside)
    if not aside:
        raise DataError(
            "no validation rows can be set aside, each label has a single text: add rows, or name "
            "a validation_file"
        )
    held = np.sort(np.concatenate(aside))
    return split.take(np.setdiff1d(np.arange(len(split)), held)), split.take(held)


def _give_back_last_rows(
    split: Split, counts: Counter[str], aside: list[list[int]]
) -> list[list[int]]:
    """`aside` without the groups that hold all that there is of some label."""
    left = counts.copy()
    left.subtract(label for rows in aside for row in rows for label in split.labels[row])
    kept = []
    for rows in aside:
        labels = [label for row in rows for label in split.labels[row]]
        if any(left[label] == 0 for label in labels):
            left.update(labels)
        else:
            kept.append(rows)
    return kept


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


def _values(table: Dataset, column: str) -> list[Any]:
    """A column's values; Parquet of Hive and old Spark has strings as bytes, others NaN as None."""
    return [plain(value) for value in table[column][:]]


def _refuse_times(table: Dataset, column: str, where: str) -> None:
    """Raise DataError where labels were read as times: how they were written is lost."""
    feature = table.features[column]
    kind = str(getattr(getattr(feature, "feature", feature), "dtype", ""))
    if kind.startswith(("timestamp", "date", "time")):
        raise DataError(
            f"{where}: column {column!r} was read as dates, not as text: give it as CSV, where "
            "every column is text"
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _label_names(
    table: Dataset, column: str, separator: str | None
) -> tuple[list[tuple[str, ...]], bool]:
    """The names of each row's labels, and whether a row may have several.

    It may where the column holds lists, or names joined by `separator`.
    """
    from datasets import ClassLabel

    feature = table.features[column]
    numbered = getattr(feature, "feature", feature)
    known: dict[Any, tuple[str, ...]] = {}

    def name(value: Any) -> str | None:
        if isinstance(numbered, ClassLabel):
            # -1 is how the hub's sets mark a row whose label is hidden.
            return numbered.int2str(value) if value is not None and value >= 0 else None
        return None if value is None or not str(value).strip() else str(value)

    def names(value: Any) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if separator is not None and isinstance(value, str):
            values = [part.strip() for part in value.split(separator)]
        found = (name(part) for part in values)
        return tuple(dict.fromkeys(part for part in found if part is not None))

    values = _values(table, column)
    # One tuple for all rows of a label: a million rows have few kinds. 1, 1.0 and True are equal.
    keys = [
        repr(value) if isinstance(value, list | dict) else (type(value), value) for value in values
    ]
    for key, value in zip(keys, values, strict=True):
        if key not in known:
            known[key] = names(value)
    several = separator is not None or any(isinstance(value, list) for value in values)
    return [known[key] for key in keys], several
