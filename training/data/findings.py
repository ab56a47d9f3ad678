"""What is wrong with labelled rows, and which of it stops training.

`find_errors` finds what cannot be learned from; `training.data.preflight` adds the warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from training.data.times import parse_times
from training.errors import DataError

Severity = Literal["error", "warning"]
EXAMPLE_ROWS = 10
MIN_ROWS_OF_A_LABEL = 2
MISSING_TIME = (
    "missing_time",
    "the time is missing or cannot be read, write it as 2026-01-31, as 2026-01-31T12:00:00+02:00 "
    "or as a number",
)


@dataclass(frozen=True)
class Rows:
    """The rows of one split as they were read, sound or not: equally long lists.

    `texts` holds strings, or pairs of them, or whatever else stood there (None where nothing
    did); `labels` the names of each row's labels, an empty tuple where there is none. `groups` and
    `times` are what stands in `group_column` and `time_column`, where a recipe names them.
    """

    where: str
    texts: list[Any]
    labels: list[tuple[str, ...]]
    multi_label: bool = False
    undecodable: frozenset[int] = field(default=frozenset())
    groups: list[str | None] | None = None
    times: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong with one split.

    `count` is rows; `rows` are the first of them, as people count: from 1, without the header.
    """

    code: str
    severity: Severity
    split: str
    where: str
    count: int
    rows: tuple[int, ...]
    message: str

    def sentence(self) -> str:
        """Where, what, how often."""
        place = f"{self.where}, row {self.rows[0]}" if self.rows else self.where
        others = f" (and {self.count - 1} more rows)" if self.rows and self.count > 1 else ""
        return f"{place}: {self.message}{others}"


def make_finding(
    code: str,
    severity: Severity,
    split: str,
    where: str,
    rows: Sequence[int],
    message: str,
) -> Finding:
    """A finding about the 0-based `rows` of a split."""
    examples = tuple(row + 1 for row in rows[:EXAMPLE_ROWS])
    return Finding(code, severity, split, where, len(rows), examples, message)


@dataclass(frozen=True)
class Errors:
    """What `find_errors` found; `kept` are the 0-based rows of each split that can be used."""

    findings: list[Finding]
    kept: dict[str, list[int]]
    labels: list[str]

    @property
    def rows(self) -> int:
        """How many rows cannot be used."""
        return sum(finding.count for finding in self.findings if finding.rows)

    def fatal(self, drop_invalid: bool) -> list[Finding]:
        """What stops training: all of it, or what no dropping of rows can mend."""
        return [finding for finding in self.findings if not finding.rows or not drop_invalid]

    def refuse(self, drop_invalid: bool) -> None:
        """Raise DataError when anything stops training."""
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
    """The rows that cannot be learned from or measured on, each counted under one code.

    Args:
        splits: train, validation and test, or any single one together with `known`.
        known: the only labels there are; those of the training split when None.
    """
    findings: list[Finding] = []
    kept: dict[str, list[int]] = {}
    for name, rows in splits.items():
        found: dict[tuple[str, str], list[int]] = {}
        kept[name] = []
        timeless = _without_time(rows)
        for row in range(len(rows)):
            problem = row_problem(rows, row) or (MISSING_TIME if row in timeless else None)
            if problem is None:
                kept[name].append(row)
            else:
                found.setdefault(problem, []).append(row)
        findings += [
            make_finding(code, "error", name, rows.where, bad, message)
            for (code, message), bad in found.items()
        ]
    if known is None:
        findings += _drop_rare_labels(splits["train"], kept)
        labels = sorted({label for row in kept["train"] for label in splits["train"].labels[row]})
        if len(labels) < 2:
            found_labels = f"only {labels[0]!r}" if labels else "none"
            message = f"at least two labels are needed, found {found_labels}"
            where = splits["train"].where
            findings.append(make_finding("single_label", "error", "train", where, [], message))
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


def row_problem(rows: Rows, row: int) -> tuple[str, str] | None:
    """Code and message of what makes a row useless, or None."""
    if row in rows.undecodable:
        return "undecodable", "it holds bytes that are not UTF-8, save the file as UTF-8"
    text = rows.texts[row]
    for part in text if isinstance(text, tuple) else (text,):
        problem = text_problem(part)
        if problem:
            return problem
    if not rows.labels[row] and not rows.multi_label:
        return "missing_label", "the label is missing"
    return None


def text_problem(text: object) -> tuple[str, str] | None:
    """Code and message of why `text` cannot be classified, or None."""
    if text is None:
        return "missing_text", "the text is missing"
    if not isinstance(text, str | int | float):
        return "missing_text", f"the text is a {type(text).__name__}"
    if not str(text).strip():
        return "empty_text", "the text is empty"
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return "undecodable", "the text holds a lone surrogate"
    return None


def _drop_rare_labels(train: Rows, kept: dict[str, list[int]]) -> list[Finding]:
    """Take the rows of labels with too few of them out of `kept`."""
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
    return [make_finding("rare_labels", "error", "train", train.where, dropped, message)]


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
    return [make_finding("unseen_label", "error", name, rows.where, bad, message)]
