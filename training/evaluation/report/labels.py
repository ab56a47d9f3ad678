"""The report's sections about labels: metrics, errors, confusions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.evaluation.report.formats import plural, score
from training.evaluation.report.render import Section
from training.evaluation.report.rows import Measured, confusions

# Up to so many labels the matrix is shown; beyond, only the pairs that are confused.
MATRIX_LABELS = 150
# With more labels the cells are small.
DENSE_LABELS = 20
LISTED_CONFUSIONS = 15
# From these shares on the digits have another color: on a dark page, and on a light page, too.
MIDDLE_SHARE, DEEP_SHARE = 0.5, 0.7


@dataclass(frozen=True)
class LabelErrors:
    """How many rows miss a label and how many wrongly get it; shares are None of no row."""

    label: str
    missed: int
    extra: int
    having: int
    given: int

    @property
    def missed_share(self) -> float | None:
        """False negatives as a share of the rows with the label."""
        return self.missed / self.having if self.having else None

    @property
    def extra_share(self) -> float | None:
        """False positives as a share of the rows that get the label."""
        return self.extra / self.given if self.given else None


@dataclass(frozen=True)
class MatrixCell:
    """A cell of the confusion matrix; `kind` are its classes, `share` is of its line's rows."""

    rows: int
    kind: str
    title: str
    share: str


@dataclass(frozen=True)
class MatrixLine:
    """A label and the answers to its rows; None where there are none."""

    label: str
    cells: list[MatrixCell | None]


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of the labels that occur; without lines where they are too many."""

    labels: list[str]
    lines: list[MatrixLine] | None
    hidden: int

    @property
    def is_dense(self) -> bool:
        """Whether the cells are small."""
        return len(self.labels) > DENSE_LABELS


def labels(measured: Measured) -> Section:
    """Precision, recall and F1 of every label, the weakest first."""
    priors = measured.manifest.profile.label_priors
    ranked = sorted(measured.metrics["per_label"].items(), key=lambda item: item[1]["f1"])
    data = {
        "several": measured.several,
        "labels": [
            {"name": label, "scores": scores, "prior": priors.get(label)}
            for label, scores in ranked
        ],
    }
    return Section("labels", "Labels", "labels.html", data)


def label_errors(measured: Measured) -> Section:
    """False negatives and false positives of every label, where a row may have several."""
    missed = (measured.truth & ~measured.answered).sum(axis=0)
    extra = (measured.answered & ~measured.truth).sum(axis=0)
    having, given = measured.truth.sum(axis=0), measured.answered.sum(axis=0)
    errors = [
        LabelErrors(
            measured.manifest.labels[place],
            *(int(counts[place]) for counts in (missed, extra, having, given)),
        )
        for place in np.argsort(-(missed + extra), kind="stable")
    ]
    return Section("errors", "Errors by label", "errors.html", errors)


def confused_labels(measured: Measured) -> Section:
    """The pairs that are confused, and the matrix."""
    pairs = confusions(measured.metrics)
    data = {
        "pairs": pairs[:LISTED_CONFUSIONS],
        "more_pairs": max(0, len(pairs) - LISTED_CONFUSIONS),
        "matrix": _matrix(measured),
    }
    return Section("confusions", "Confusions", "confusions.html", data)


def _matrix(measured: Measured) -> Matrix:
    counts = np.asarray(measured.metrics["confusion"])
    occurring = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))
    names = [measured.metrics["labels"][place] for place in occurring]
    hidden = len(measured.metrics["labels"]) - len(names)
    if len(names) > MATRIX_LABELS:
        return Matrix(names, None, hidden)
    lines = [
        MatrixLine(names[line], _matrix_cells(names, line, counts[place, occurring]))
        for line, place in enumerate(occurring)
    ]
    return Matrix(names, lines, hidden)


def _matrix_cells(names: list[str], line: int, counts: np.ndarray) -> list[MatrixCell | None]:
    total = max(int(counts.sum()), 1)
    cells: list[MatrixCell | None] = []
    for place, rows in enumerate(counts.tolist()):
        if not rows:
            cells.append(None)
            continue
        share = rows / total
        kind = "hit" if place == line else "miss"
        depth = " deep" if share >= DEEP_SHARE else " mid" if share >= MIDDLE_SHARE else ""
        title = (
            f"{names[line]} answered {names[place]}: {plural(rows, 'row')}, "
            f"{score(share, total)} of the label"
        )
        cells.append(MatrixCell(rows, kind + depth, title, f"{share:.2f}"))
    return cells
