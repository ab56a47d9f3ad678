"""What the report says about rows: errors, slices and curves; arithmetic without markup."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from service.inference.classifier import Prediction
from service.inference.decisions import margin
from service.package.manifest import Manifest
from training.data.splits import Split
from training.evaluation.metrics import label_matrix
from training.evaluation.significance import label_f1, wilson

CURVE_POINTS = 60
SLICE_VALUES = 30
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Measured:
    """Rows, their answers and the metrics; arrays are of shape (rows, labels)."""

    manifest: Manifest
    split: Split
    answers: Sequence[Prediction]
    metrics: dict[str, Any]
    truth: np.ndarray
    answered: np.ndarray
    probs: np.ndarray

    @property
    def several(self) -> bool:
        """Whether a row has any number of labels."""
        return self.manifest.task == "multi_label"

    @cached_property
    def right(self) -> np.ndarray:
        """Which rows are answered with exactly their labels; shape (rows,)."""
        return np.asarray((self.truth == self.answered).all(axis=1))

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Of each label of a multi-label package; shape (labels,)."""
        return np.asarray([self.manifest.thresholds[label] for label in self.manifest.labels])

    @cached_property
    def confidence(self) -> np.ndarray:
        """How confident each answer is, of several labels where it is wrong; shape (rows,).

        The answer's probability; of several labels the largest distance of a probability from
        its threshold, among those on the wrong side.
        """
        if not self.several:
            return np.asarray([answer.score for answer in self.answers])
        wrong = self.truth != self.answered
        return np.asarray(np.where(wrong, np.abs(self.probs - self.thresholds), 0).max(axis=1))

    @cached_property
    def margins(self) -> np.ndarray:
        """How far each row's probabilities are from another answer; shape (rows,)."""
        return np.asarray([margin(row, self.manifest) for row in self.probs])


@dataclass(frozen=True)
class Slice:
    """Some of the rows; `low` and `high` are the Wilson interval of `accuracy`."""

    name: str
    rows: int
    accuracy: float
    low: float
    high: float
    macro_f1: float


@dataclass(frozen=True)
class Confusion:
    """Rows of `label` that were answered `answer`; `share` is of all rows of `label`."""

    label: str
    answer: str
    rows: int
    share: float

    @property
    def label_rows(self) -> int:
        """All rows of `label`."""
        return round(self.rows / self.share)


def measure(
    manifest: Manifest, split: Split, answers: Sequence[Prediction], metrics: dict[str, Any]
) -> Measured:
    """Rows and answers as arrays."""
    answered = [(a.label,) if a.labels is None else a.labels for a in answers]
    return Measured(
        manifest=manifest,
        split=split,
        answers=answers,
        metrics=metrics,
        truth=label_matrix(split.labels, manifest.labels),
        answered=label_matrix(answered, manifest.labels),
        probs=np.stack([answer.probs for answer in answers]),
    )


def confident_errors(measured: Measured) -> list[int]:
    """Rows answered wrongly, the most confident answer first."""
    order = np.argsort(-measured.confidence, kind="stable")
    return [int(row) for row in order if not measured.right[row]]


def least_certain(measured: Measured) -> list[int]:
    """All rows, the nearest to another answer first."""
    return [int(row) for row in np.argsort(measured.margins, kind="stable")]


def confusions(metrics: dict[str, Any]) -> list[Confusion]:
    """Pairs of label and wrong answer, the commonest first."""
    labels, counts = metrics["labels"], np.asarray(metrics["confusion"])
    wrong, totals = counts * ~np.eye(len(labels), dtype=bool), counts.sum(axis=1)
    pairs = [
        Confusion(labels[i], labels[j], int(wrong[i, j]), float(wrong[i, j] / totals[i]))
        for i, j in np.argwhere(wrong)
    ]
    return sorted(pairs, key=lambda pair: (-pair.rows, -pair.share))


def slice_of(
    measured: Measured, name: str, rows: np.ndarray, per_label: np.ndarray | None = None
) -> Slice:
    """The slice of the rows at which the boolean `rows` is true; there is at least one.

    Args:
        per_label: the F1 of the labels that its macro-F1 is the mean of, where that is not of all
            labels that these rows have or get.
    """
    hits, size = int(measured.right[rows].sum()), int(rows.sum())
    if per_label is None:
        per_label = label_f1(measured.truth[rows], measured.answered[rows])
    known = per_label[~np.isnan(per_label)]
    macro_f1 = float(known.mean()) if len(known) else math.nan
    return Slice(name, size, hits / size, *wilson(hits, size), macro_f1)


def by_length(measured: Measured) -> list[Slice]:
    """Quarters of the rows by the tokens that were read."""
    tokens = np.asarray([answer.tokens for answer in measured.answers])
    edges = np.unique(np.floor(np.quantile(tokens, [0.25, 0.5, 0.75])))
    quarters = np.searchsorted(edges, tokens)
    slices = []
    for quarter in np.unique(quarters):
        rows = quarters == quarter
        low, high = tokens[rows].min(), tokens[rows].max()
        ends = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        slices.append(slice_of(measured, f"{ends} tokens", rows))
    return slices


def by_label_frequency(measured: Measured) -> list[Slice]:
    """Thirds of the labels by their share of the training rows.

    A row counts with the rarest of its labels. Macro-F1 is that of the third's labels in all rows:
    the third's rows alone hold none of the other labels that they may be answered.
    """
    priors = measured.manifest.profile.label_priors
    if not set(measured.manifest.labels) <= set(priors):
        return []
    shares = np.asarray([priors[label] for label in measured.manifest.labels])
    thirds = np.empty(len(shares), dtype=int)
    places = np.arange(len(shares))
    # With two labels one is rare and one is common.
    thirds[np.argsort(shares, kind="stable")] = (
        places * 3 // len(shares) if len(shares) > 2 else places * 2
    )
    of_row = np.where(measured.truth, thirds, 3).min(axis=1)
    names = []
    for third, word in enumerate(("rare", "medium", "common")):
        inside = shares[thirds == third]
        if len(inside):
            ends = " to ".join(f"{end:.3f}" for end in sorted({inside.min(), inside.max()}))
            names.append(
                (third, f"{word} ({len(inside)} label{'s' if len(inside) > 1 else ''}, {ends})")
            )
    names.append((3, "no label"))
    per_label = label_f1(measured.truth, measured.answered)
    return [
        slice_of(measured, name, of_row == third, per_label[thirds == third])
        for third, name in names
        if (of_row == third).any()
    ]


def by_value(measured: Measured, values: Sequence[str]) -> list[Slice]:
    """Rows by a column's value, the commonest first; past SLICE_VALUES of them together."""
    counts = Counter(values)
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    kept = ranked if len(ranked) <= SLICE_VALUES else ranked[: SLICE_VALUES - 1]
    places = {value: place for place, value in enumerate(kept)}
    of_row = np.asarray([places.get(value, len(kept)) for value in values])
    slices = [slice_of(measured, value, of_row == place) for place, value in enumerate(kept)]
    if len(ranked) > len(kept):
        name = f"other ({len(ranked) - len(kept)} values)"
        slices.append(slice_of(measured, name, of_row == len(kept)))
    return slices


def precision_recall(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """At most CURVE_POINTS (recall, precision) by rising recall; empty where nothing is true."""
    from sklearn.metrics import precision_recall_curve

    if not truth.any():
        return []
    precision, recall, _ = precision_recall_curve(truth, scores)
    precision, recall = precision[::-1], recall[::-1]
    # Real points of the curve, by even steps of recall: none lies between two others.
    steps = np.linspace(0, 1, CURVE_POINTS - 1)
    chosen = np.unique(np.append(np.searchsorted(recall, steps), len(recall) - 1))
    chosen = chosen[chosen < len(recall)][:CURVE_POINTS]
    return list(zip(recall[chosen].tolist(), precision[chosen].tolist(), strict=True))


def histograms(measured: Measured) -> tuple[list[int], list[int]]:
    """Answers right and wrong by their probability, in HISTOGRAM_BINS equal bins of 0 to 1.

    Of several labels every label of every row is an answer.
    """
    if measured.several:
        scores, right = measured.probs.ravel(), (measured.truth == measured.answered).ravel()
    else:
        scores, right = measured.confidence, measured.right
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    first, second = (np.histogram(scores[rows], edges)[0].tolist() for rows in (right, ~right))
    return first, second
