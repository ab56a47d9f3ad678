"""Rows that people have labeled come back: into a training file, each with where it comes from.

The exports of spreadsheets, Label Studio and Argilla are read by the one reader of training data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monitoring.captured import Key
from monitoring.labeled import FIELDS, LABEL, TEXT, TEXT_PAIR
from monitoring.labeling import SEPARATOR
from service.capture.records import Feedback
from service.package.files import write_bytes
from service.package.manifest import Manifest, Text
from training.common.errors import DataError
from training.data.findings import row_problem
from training.data.readers import read_blocks
from training.data.rows import read_files
from training.recipe.arguments import DataArguments, columns_of

# Where a row comes from, as `collect` has written it.
PROVENANCE = ("id", "index", "time", "version", "reason")
# Where labeling tools keep what they were given beside the text.
KEPT_IN = ("", "data.", "metadata.")
NEW_FILE_MODE = 0o600


class LabeledRow(NamedTuple):
    """A text with its labels; `facts` has the known ones of PROVENANCE, `place` is for messages."""

    text: Text
    labels: tuple[str, ...]
    facts: dict[str, str]
    place: str


@dataclass
class Returned:
    """What exports hold.

    Attributes:
        unlabeled: rows that have no label yet.
        left_out: rows that people rejected or skipped.
        problems: why other rows cannot be used, each with its place.
    """

    rows: list[LabeledRow] = field(default_factory=list)
    unlabeled: int = 0
    left_out: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Merged:
    """What became of the rows.

    Attributes:
        added: rows that the file has now in addition.
        present: rows that it had already, with the same labels.
        conflicts: sentences: the file or feedback says otherwise.
    """

    added: int = 0
    present: int = 0
    conflicts: list[str] = field(default_factory=list)


def read_labeled(named: Sequence[str], manifest: Manifest) -> Returned:
    """The labeled rows of exports that hold the columns which `collect` writes.

    Raises:
        DataError: a file cannot be read, or has no such columns.
    """
    several = manifest.task == "multi_label"
    names = [f"{where}{name}" for name in PROVENANCE for where in KEPT_IN]
    returned = Returned()
    for file in named:
        arguments = DataArguments(
            text_column=TEXT,
            text_pair_column=_pair_column(file) if manifest.has_pairs else None,
            label_column=LABEL,
            label_separator=SEPARATOR if several else None,
        )
        rows, beside = read_files(file, arguments, optional_columns=names)
        for number in range(len(rows)):
            labels, problem = rows.labels[number], row_problem(rows, number)
            if number in rows.left_out:
                returned.left_out += 1
            elif problem is not None and problem.code != "missing_label":
                returned.problems.append(f"{rows.place(number)}: {problem.message}")
            elif not labels:
                returned.unlabeled += 1
            else:
                facts = _facts({name: values[number] for name, values in beside.items()})
                row = LabeledRow(rows.texts[number], labels, facts, rows.place(number))
                returned.rows.append(row)
    return returned


def _pair_column(file: str) -> str:
    """Where a file has the second texts."""
    block = next(iter(read_blocks([file], None, looked_for=[TEXT])))
    names = (TEXT_PAIR, *(f"{prefix}{TEXT_PAIR}" for prefix in FIELDS.values()))
    return next((name for name in names if block.resolves(name)), TEXT_PAIR)


def _facts(values: Mapping[str, object]) -> dict[str, str]:
    """The known values of PROVENANCE, wherever a tool keeps them."""
    found: dict[str, str] = {}
    for name in PROVENANCE:
        for where in KEPT_IN:
            value = values[f"{where}{name}"]
            if value is not None and value != "":
                found.setdefault(name, str(value))
    return found


def merge(
    rows: Sequence[LabeledRow], path: Path, manifest: Manifest, feedback: Mapping[Key, Feedback]
) -> Merged:
    """Add rows to a CSV file of training data, which is made if it is not there.

    The columns of texts and labels are those of the package's recipe; those of PROVENANCE are added
    to them. What the file has already stays: a row whose text it has with other labels is a
    conflict, and is not added. A row whose feedback says otherwise is a conflict, and is added with
    the label that a person has given now.

    Raises:
        DataError: the file is no CSV with these columns, or its labels are columns.
    """
    columns = columns_of(manifest, {})
    if columns.label_columns:
        raise DataError(f"{path} has a column for each label: add the rows by hand")
    table = _Table.read(path, columns, several=manifest.task == "multi_label")
    merged = Merged()
    for row in rows:
        known = table.labels.get(_key(row.text))
        if known is not None:
            if known == set(row.labels):
                merged.present += 1
            else:
                merged.conflicts.append(
                    f"{row.place} is labeled {_named(row.labels)}; {path} has the text as "
                    f"{_named(sorted(known))}, and was left as it is"
                )
            continue
        index = row.facts.get("index", "")
        said = feedback.get((row.facts.get("id", ""), int(index) if index.isdecimal() else 0))
        if said is not None and set(said.labels) != set(row.labels):
            merged.conflicts.append(
                f"{row.place} is labeled {_named(row.labels)}; feedback to {said.id} says "
                f"{_named(said.labels)}"
            )
        table.add(row)
        merged.added += 1
    if merged.added:
        table.write()
    return merged


class _Table:
    """A CSV file of training data, whole in memory.

    `labels` has those of each text.
    """

    def __init__(self, path: Path, columns: DataArguments, *, several: bool) -> None:
        self.path = path
        self.header: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.labels: dict[tuple[str, ...], set[str]] = {}
        self._texts = [columns.text_column]
        if columns.text_pair_column:
            self._texts.append(columns.text_pair_column)
        self._label = columns.label_column
        self._separator = (columns.label_separator or SEPARATOR) if several else None

    @classmethod
    def read(cls, path: Path, columns: DataArguments, *, several: bool) -> _Table:
        """The file, or an empty table where there is none."""
        table = cls(path, columns, several=several)
        needed = [*table._texts, table._label]
        if path.exists():
            with path.open(newline="", encoding="utf-8-sig") as handle:
                reader = csv.DictReader(handle, strict=True)
                try:
                    table.header = list(reader.fieldnames or [])
                    table.rows = list(reader)
                except (csv.Error, UnicodeDecodeError) as error:
                    raise DataError(f"{path} is no CSV file in UTF-8: {error}") from None
            missing = [name for name in needed if name not in table.header]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}: name a CSV file of training data, with "
                    f"commas and the columns {', '.join(needed)}"
                )
        table.header += [name for name in (*needed, *PROVENANCE) if name not in table.header]
        for number, row in enumerate(table.rows, start=1):
            if None in row:
                raise DataError(f"row {number} of {path} has more cells than the header")
            texts = tuple((row[name] or "").strip() for name in table._texts)
            table.labels[texts] = table._split(row[table._label] or "")
        return table

    def _split(self, label: str) -> set[str]:
        parts = [label] if self._separator is None else label.split(self._separator)
        return {part.strip() for part in parts if part.strip()}

    def add(self, row: LabeledRow) -> None:
        """Add a row that the table does not have."""
        texts = row.text if isinstance(row.text, tuple) else (row.text,)
        cells = dict(zip(self._texts, map(str, texts), strict=True))
        cells[self._label] = (self._separator or "").join(row.labels)
        self.rows.append({**row.facts, **cells})
        self.labels[_key(row.text)] = set(row.labels)

    def write(self) -> None:
        """Write the file, complete or not at all; a new one is for this user alone."""
        content = io.StringIO()
        # Python 3.11 does not quote a carriage return alone, which would end a row.
        returns = any("\r" in (cell or "") for row in self.rows for cell in row.values())
        quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        style: dict[str, Any] = {"lineterminator": "\n", "quoting": quoting}
        writer = csv.DictWriter(content, self.header, restval="", **style)
        writer.writeheader()
        writer.writerows(self.rows)
        mode = self.path.stat().st_mode & 0o777 if self.path.exists() else NEW_FILE_MODE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, content.getvalue().encode(), mode)


def _key(text: Text) -> tuple[str, ...]:
    return tuple(str(part).strip() for part in (text if isinstance(text, tuple) else (text,)))


def _named(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels))
