"""Files or a hub data set → checked and split text and labels.

Rows with an error are refused or dropped. Validation rows are set aside where a recipe names none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from service.package.manifest import Task, Text
from training.common.errors import DataError
from training.data.findings import Errors, Finding, Rows, find_errors
from training.data.near_duplicates import Groups, groups_of_splits
from training.data.rows import read_dataset, read_files, shown_columns
from training.data.splits import Split, divide, with_groups
from training.recipe.arguments import DataArguments

logger = logging.getLogger(__name__)


class LabeledFile(NamedTuple):
    """The usable rows of a file, their 0-based places in it, and the number of dropped rows.

    `columns` has the values beside each usable row, by column.
    """

    split: Split
    rows: np.ndarray
    dropped: int
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class LabeledData:
    """The data of a training; `labels` are those of the training split, sorted.

    `set_aside` says that the validation rows are rows of the training file. `findings` are about
    that split. `similar` has the groups of near-duplicates among the usable rows of the files:
    train, validation, test.
    """

    train: Split
    validation: Split
    test: Split | None
    labels: list[str]
    task: Task
    has_pairs: bool
    dropped: int
    set_aside: bool = False
    findings: tuple[Finding, ...] = ()
    similar: Groups = field(default_factory=dict, compare=False, repr=False)

    def fingerprint(self, splits: Sequence[str] = ("train", "validation", "test")) -> str:
        """SHA-256 over every row of `splits`, in order."""
        digest = hashlib.sha256()
        for name in splits:
            split = getattr(self, name)
            rows = list(zip(split.texts, split.labels, strict=True)) if split else []
            digest.update(json.dumps([name, rows], ensure_ascii=False).encode())
        return digest.hexdigest()


def load_data(arguments: DataArguments, seed: int) -> LabeledData:
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
    splits = _read_splits(arguments) if arguments.train_file else _read_hub(arguments)
    if arguments.train_file is None and "test" in splits and not any(splits["test"].labels):
        # As in all of GLUE, whose answers are not published.
        logger.warning("%s has no labels: it is left out", splits.pop("test").where)
    if any(rows.multi_label for rows in splits.values()):
        splits = {name: replace(rows, multi_label=True) for name, rows in splits.items()}
    return _with_split_columns(splits, arguments)


def usable_data(
    splits: Mapping[str, Rows], errors: Errors, arguments: DataArguments, seed: int
) -> LabeledData:
    """The rows without `errors`, with a validation split.

    Raises:
        DataError: there are errors that may not be dropped, or nothing is left.
    """
    errors.refuse(arguments.drop_invalid)
    usable = {name: usable_rows(rows, errors.kept[name]) for name, rows in splits.items()}
    for name, split in usable.items():
        if not len(split):
            raise DataError(f"{splits[name].where}: no row is left to use")
    similar = groups_of_splits({name: split.texts for name, split in usable.items()})
    usable = {name: replace(split, groups=similar[name]) for name, split in usable.items()}
    train, validation = usable["train"], usable.get("validation")
    findings: tuple[Finding, ...] = ()
    if validation is None:
        kept = errors.kept["train"]
        train, validation, findings = divide(train, splits["train"], kept, arguments, seed)
    else:
        validation = with_groups(validation, splits["validation"], errors.kept["validation"])
    if errors.rows:
        logger.warning("dropped %d rows that cannot be used", errors.rows)
    return LabeledData(
        train,
        validation,
        usable.get("test"),
        errors.labels,
        "multi_label" if splits["train"].multi_label else "single_label",
        arguments.text_pair_column is not None,
        errors.rows,
        "validation" not in usable,
        findings,
        similar,
    )


def _with_split_columns(splits: dict[str, Rows], arguments: DataArguments) -> dict[str, Rows]:
    """The splits with the times that they are split by; training must have both columns.

    Raises:
        DataError: training lacks a column, or nothing is left to split by time.
    """
    train = splits["train"]
    for key, values in (("group_column", train.groups), ("time_column", train.times)):
        column = getattr(arguments, key)
        if column is not None and values is None:
            raise DataError(
                f"{train.where} has no column {column!r}, it has "
                f"{shown_columns(train.columns)}: name the right one with {key}"
            )
    if arguments.time_column is not None and "validation" in splits:
        raise DataError(
            f"{splits['validation'].where} is given, so that no rows are split by time_column: "
            "leave the key out"
        )
    others = {name: replace(rows, times=None) for name, rows in splits.items() if name != "train"}
    return {"train": train, **others}


def usable_rows(rows: Rows, kept: Sequence[int]) -> Split:
    """The rows at the 0-based places `kept`, their texts as strings."""

    def text(value: Any) -> Text:
        return (str(value[0]), str(value[1])) if isinstance(value, tuple) else str(value)

    return Split([text(rows.texts[row]) for row in kept], [rows.labels[row] for row in kept])


def read_labeled(
    named: str,
    arguments: DataArguments,
    labels: Sequence[str],
    task: Task,
    columns: Sequence[str] = (),
) -> LabeledFile:
    """The usable rows of files for a package that knows `labels`.

    Args:
        named: a file, an address, a folder or a pattern.
        columns: their values are returned beside the rows.

    Raises:
        DataError: a file, a column or a row cannot be used.
    """
    rows, beside = read_files([named], arguments, columns)
    several = any(len(names) > 1 for names in rows.labels)
    if rows.multi_label and several and task == "single_label":
        raise DataError(f"{named} has several labels a row, but the package answers with one")
    for remark in rows.remarks:
        if task == "single_label" or remark.code != "lists_of_one":
            place = rows.place(remark.rows[0]) if remark.rows else rows.where
            logger.warning("%s: %s (%d rows)", place, remark.message, len(remark.rows))
    rows = replace(rows, multi_label=task == "multi_label")
    errors = find_errors({"test": rows}, known=labels)
    errors.refuse(arguments.drop_invalid)
    kept = errors.kept["test"]
    slices = {
        column: ["" if values[row] is None else str(values[row]) for row in kept]
        for column, values in beside.items()
    }
    dropped = errors.rows + len(rows.left_out)
    return LabeledFile(usable_rows(rows, kept), np.asarray(kept, dtype=int), dropped, slices)


def _read_splits(arguments: DataArguments) -> dict[str, Rows]:
    named = {
        "train": arguments.train_file,
        "validation": arguments.validation_file,
        "test": arguments.test_file,
    }
    return {name: read_files(files, arguments)[0] for name, files in named.items() if files}


def _read_hub(arguments: DataArguments) -> dict[str, Rows]:
    from datasets import load_dataset

    name = arguments.dataset_name
    try:
        splits = load_dataset(
            name, arguments.dataset_config_name, revision=arguments.dataset_revision
        )
    except Exception as error:  # the hub's client raises many kinds, which mean the same here
        raise DataError(
            f"data set {name!r} could not be loaded from the hub ({_first_line(error)}): "
            "check the name and the network, or give files with train_file and test_file"
        ) from error
    if "train" not in splits:
        raise DataError(f"data set {name!r} has no split 'train', it has {', '.join(splits)}")
    return {
        split: read_dataset(splits[split], f"{name} ({split})", arguments)
        for split in ("train", "validation", "test")
        if split in splits
    }


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
