"""The errors in labeled rows, which stop the training or leave rows out.

`training.data.preflight` adds the warnings.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from training.common.errors import DataError
from training.data.blocks import UNDECODABLE, Block, Problem
from training.data.times import parse_times

Severity = Literal["error", "warning"]
EXAMPLE_ROWS = 10
MIN_ROWS_OF_A_LABEL = 2
MISSING_TIME = Problem(
    "missing_time",
    "the time is missing or cannot be read, write it as 2026-01-31, as 2026-01-31T12:00:00+02:00 "
    "or as a number",
)


class Places:
    """Where rows were read: the file, and the row or line in it."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: list[tuple[str, int, array[int]]] = []
        self._files: set[str] = set()

    def add(self, block: Block, start: int) -> None:
        """Add a block whose first row has the 0-based place `start` among all rows."""
        self._starts.append(start)
        self._blocks.append((block.file, block.start, array("I", block.lines)))
        self._files.add(block.file)

    def of(self, row: int, where: str) -> str:
        """The name of the 0-based `row` for a message, with its line where that differs."""
        if not self._starts:
            return f"{where}, row {row + 1}"
        index = bisect_right(self._starts, row) - 1
        file, start, lines = self._blocks[index]
        inside = row - self._starts[index]
        number = start + inside + 1
        line = lines[inside] if lines else None
        shown = f" (line {line})" if line is not None and line != number else ""
        return f"{file if len(self._files) > 1 else where}, row {number}{shown}"


class Remark(NamedTuple):
    """A remark of a reader about the rows at the 0-based places `rows`."""

    code: str
    message: str
    rows: list[int]


@dataclass(frozen=True)
class Rows:
    """The rows of one split as they were read, sound or not: equally long lists.

    `texts` has strings, pairs of them, or any other value (None for no value). `labels` has the
    names of each row's labels, an empty tuple for no label. By 0-based place, `problems` says why a
    row could not be read, and `left_out` has the rows that an annotator decided against. `groups`
    and `times` are the values of `group_column` and `time_column`, where a recipe names them.
    """

    where: str
    texts: list[Any]
    labels: list[tuple[str, ...]]
    multi_label: bool = False
    problems: Mapping[int, Problem] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    remarks: Sequence[Remark] = ()
    places: Places = field(default_factory=Places)
    groups: list[str | None] | None = None
    times: list[Any] | None = None
    columns: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, row: int) -> str:
        """The name of the 0-based `row` for a message: its file, and its number from 1."""
        return self.places.of(row, self.where)


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split.

    `count` is rows; `rows` are the first of them, as people count: from 1, without the header;
    `place` names the first, where there is one, and else the split.
    """

    code: str
    severity: Severity
    split: str
    where: str
    count: int
    rows: tuple[int, ...]
    message: str
    place: str

    def sentence(self) -> str:
        """The place, the fault, and how many other rows have it."""
        others = f" (and {self.count - 1} more rows)" if self.rows and self.count > 1 else ""
        return f"{self.place}: {self.message}{others}"


def make_finding(
    code: str,
    severity: Severity,
    split: str,
    source: Rows,
    rows: Sequence[int],
    message: str,
) -> Finding:
    """A finding about the 0-based `rows` of a split."""
    examples = tuple(row + 1 for row in rows[:EXAMPLE_ROWS])
    place = source.place(rows[0]) if rows else source.where
    return Finding(code, severity, split, source.where, len(rows), examples, message, place)


@dataclass(frozen=True)
class Errors:
    """The errors of all splits; `kept` has the 0-based rows of each split that can be used."""

    findings: list[Finding]
    kept: dict[str, list[int]]
    labels: list[str]

    @property
    def rows(self) -> int:
        """The number of rows that cannot be used."""
        return sum(finding.count for finding in self.findings if finding.rows)

    def fatal(self, drop_invalid: bool) -> list[Finding]:
        """The findings that stop the training: all, or those that no dropping of rows corrects."""
        return [finding for finding in self.findings if not finding.rows or not drop_invalid]

    def refuse(self, drop_invalid: bool) -> None:
        """Raise DataError where a finding stops the training."""
        fatal = self.fatal(drop_invalid)
        if not fatal:
            return
        remedy = "correct the data"
        if fatal[0].rows:
            remedy += ", or drop such rows with `drop_invalid: true`"
        if len(fatal) > 1:
            remedy += f" ({len(fatal) - 1} more kinds of error: `whetstone check` shows all)"
        raise DataError(f"{fatal[0].sentence()}: {remedy}")


def find_errors(splits: Mapping[str, Rows], known: Sequence[str] | None = None) -> Errors:
    """The rows that cannot be trained or measured on, each counted under one code.

    Args:
        splits: train, validation and test, or any single one together with `known`.
        known: the only labels there are; those of the training split when None.
    """
    findings: list[Finding] = []
    kept: dict[str, list[int]] = {}
    for name, rows in splits.items():
        by_problem: dict[Problem, list[int]] = {}
        kept[name] = []
        timeless = _without_time(rows)
        for row in range(len(rows)):
            if row in rows.left_out:
                continue
            problem = row_problem(rows, row) or (MISSING_TIME if row in timeless else None)
            if problem is None:
                kept[name].append(row)
            else:
                by_problem.setdefault(problem, []).append(row)
        findings += [
            make_finding(code, "error", name, rows, bad, message)
            for (code, message), bad in by_problem.items()
        ]
    if known is None:
        findings += _drop_rare_labels(splits["train"], kept)
        labels = sorted({label for row in kept["train"] for label in splits["train"].labels[row]})
        if len(labels) < 2:
            found_labels = f"only {labels[0]!r}" if labels else "none"
            message = f"at least two labels are needed, found {found_labels}"
            train = splits["train"]
            findings.append(make_finding("single_label", "error", "train", train, [], message))
    else:
        labels = list(known)
    for name, rows in splits.items():
        if name != "train" or known is not None:
            findings += _drop_unseen_labels(name, rows, kept, set(labels), known is not None)
    return Errors(findings, kept, labels)


def _without_time(rows: Rows) -> set[int]:
    """The rows that cannot be ordered, where the rows have times."""
    if rows.times is None:
        return set()
    return set(np.flatnonzero(np.isnan(parse_times(rows.times, rows.where))).tolist())


def row_problem(rows: Rows, row: int) -> Problem | None:
    """Why a row cannot be used, or None."""
    if row in rows.problems:
        return rows.problems[row]
    text = rows.texts[row]
    for part in text if isinstance(text, tuple) else (text,):
        problem = text_problem(part)
        if problem:
            return problem
    if not rows.labels[row] and not rows.multi_label:
        return Problem("missing_label", "the label is missing")
    return next(filter(None, map(label_problem, rows.labels[row])), None)


def label_problem(label: str) -> Problem | None:
    """Why the name of a label cannot be used, or None."""
    if label.isascii():
        return None
    return _encoding_problem(label, "label")


def text_problem(text: object) -> Problem | None:
    """Why `text` cannot be classified, or None."""
    if text is None:
        return Problem("missing_text", "the text is missing")
    if isinstance(text, dict):
        fields = ", ".join(map(repr, list(text)[:5]))
        first = next(iter(text), "b")
        return Problem(
            "missing_text",
            f"the text is an object with the fields {fields}: name one, as text_column: "
            f"text.{first}",
        )
    if not isinstance(text, str | int | float):
        return Problem("missing_text", f"the text is a {type(text).__name__}")
    if not str(text).strip():
        return Problem("empty_text", "the text is empty")
    return None if str(text).isascii() else _encoding_problem(str(text), "text")


def _encoding_problem(text: str, kind: str) -> Problem | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        if UNDECODABLE.search(text):
            return Problem(
                "undecodable",
                f"the {kind} holds bytes that cannot be decoded: save the file as UTF-8, or name "
                "its encoding",
            )
        return Problem("undecodable", f"the {kind} holds a lone surrogate")
    return None


def _drop_rare_labels(train: Rows, kept: dict[str, list[int]]) -> list[Finding]:
    """Take the rows of labels with too few rows out of `kept`."""
    dropped: list[int] = []
    rare: set[str] = set()
    while True:
        counts = Counter(label for row in kept["train"] for label in train.labels[row])
        # Dropping a row of several labels may make another of them rare.
        new = {label for label, count in counts.items() if count < MIN_ROWS_OF_A_LABEL}
        if not new:
            break
        rare |= new
        dropped += [row for row in kept["train"] if new & set(train.labels[row])]
        kept["train"] = [row for row in kept["train"] if not new & set(train.labels[row])]
    if not dropped:
        return []
    dropped.sort()
    first = next(label for label in train.labels[dropped[0]] if label in rare)
    message = f"label {first!r} has fewer than {MIN_ROWS_OF_A_LABEL} rows"
    return [make_finding("rare_labels", "error", "train", train, dropped, message)]


def _drop_unseen_labels(
    name: str, rows: Rows, kept: dict[str, list[int]], known: set[str], by_package: bool
) -> list[Finding]:
    """Take the rows with a label that is not among `known` out of `kept`."""
    bad = [row for row in kept[name] if set(rows.labels[row]) - known]
    if not bad:
        return []
    first = next(label for label in rows.labels[bad[0]] if label not in known)
    message = f"label {first!r} does not occur in the training data"
    if by_package:
        message = f"label {first!r} is not one of the package's: {', '.join(sorted(known))}"
    kept[name] = sorted(set(kept[name]) - set(bad))
    return [make_finding("unseen_label", "error", name, rows, bad, message)]
