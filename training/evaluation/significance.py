"""Is one set of answers worse than another on the same rows, and how sure is that?

Answers are boolean matrices of shape (rows, labels): one label a row, or any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RESAMPLES = 2000
# Resamples at once; fewer of many rows: their weights, of shape (resamples, rows), fit any memory.
RESAMPLES_AT_ONCE = 100
WEIGHTS_AT_ONCE = 10_000_000
CONFIDENCE = 0.95
# 97.5 % of a normal distribution lie below.
NORMAL_QUANTILE = 1.959964
# Nothing seen in n rows still leaves room for a rate of 3/n (see `Difference.unseen`).
UNSEEN = 3

Metric = Literal["accuracy", "macro_f1", "micro_f1"]


@dataclass(frozen=True)
class Difference:
    """A metric before and after on all rows, and the 95 % interval of after minus before."""

    before: float
    after: float
    low: float
    high: float
    rows: int

    @property
    def point(self) -> float:
        """After minus before, on all rows."""
        return self.after - self.before

    @property
    def unseen(self) -> float:
        """The difference that so few rows could have missed.

        Where no answer differs a bootstrap has no spread, however few the rows are. Nothing seen
        in n rows still leaves room for a rate of 3/n (Hanley and Lippman-Hand 1983, "If nothing
        goes wrong, is everything all right?", JAMA 249(13)).
        """
        return min(1.0, UNSEEN / self.rows)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval as it is shown: never narrower than `unseen` on both sides."""
        if (self.high - self.low) / 2 >= self.unseen:
            return self.low, self.high
        return max(-1.0, self.point - self.unseen), min(1.0, self.point + self.unseen)

    @property
    def half_width(self) -> float:
        """Half of the interval, and never less than `unseen`."""
        return max((self.high - self.low) / 2, self.unseen)

    @property
    def surely_above(self) -> float:
        """A bound that the difference is surely not below: the lower end, or `unseen` below it.

        The one-sided confidence of the interval's lower end is 97.5 %.
        """
        return min(self.low, self.point - self.unseen)

    def rows_needed(self, half_width: float) -> int:
        """About how many rows of this kind would bring the half-width down to that."""
        by_spread = self.rows * ((self.high - self.low) / 2 / half_width) ** 2
        return int(np.ceil(max(by_spread, UNSEEN / half_width)))


def wilson(hits: float, rows: float) -> tuple[float, float]:
    """95 % interval of a share, sound for few rows and near 0 and 1 too.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22.
    """
    if not rows:
        return 0.0, 1.0
    square = NORMAL_QUANTILE**2
    middle = (hits + square / 2) / (rows + square)
    spread = hits * (rows - hits) / rows + square / 4
    half = NORMAL_QUANTILE * math.sqrt(spread) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(truth: np.ndarray, answered: np.ndarray, metric: Metric) -> tuple[float, float]:
    """The 95 % interval of a metric: Wilson's of accuracy, a share of rows; else by bootstrap.

    Percentiles over resampled rows (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 13), and at least as wide as what the rows could have missed.
    """
    if metric == "accuracy":
        return wilson(int((truth == answered).all(axis=1).sum()), len(truth))
    measured = _measure(truth, (answered,), metric)
    blocks = [measured(weights)[0] for weights in _resamples(len(truth))]
    low, high = _ends(np.concatenate(blocks))
    point = float(measured(np.ones((1, len(truth)), dtype=np.float32))[0][0])
    down, up = _missed(truth, answered, metric)
    return max(0.0, min(low, point - down)), min(1.0, max(high, point + up))


def _missed(truth: np.ndarray, answered: np.ndarray, metric: Metric) -> tuple[float, float]:
    """By how much an F1 may be lower or higher because of what no row shows.

    The bootstrap sees no error of a label without an error, and no hit of a label without a hit.
    UNSEEN of them may occur nevertheless; they are assumed where they weigh most: in the rarest
    labels.
    """
    hits, wrong = truth & answered, truth != answered
    if metric == "micro_f1":
        hits, wrong = hits.ravel()[:, None], wrong.ravel()[:, None]
        counts = np.asarray([truth.sum()])
    else:
        counts = np.maximum(truth.sum(axis=0), answered.sum(axis=0))
    occurring = counts > 0

    def room(labels: np.ndarray) -> float:
        """The largest change of F1 by UNSEEN rows of these labels."""
        left, changed = float(UNSEEN), 0.0
        for count in np.sort(counts[labels & occurring]):
            changed += min(1.0, left / count)
            left = max(0.0, left - count)
        return changed / max(1, int(occurring.sum()))

    return room(~wrong.any(axis=0)), room(~hits.any(axis=0))


def paired_difference(
    truth: np.ndarray, before: np.ndarray, after: np.ndarray, metric: Metric
) -> Difference:
    """How much higher the metric is of `after` than of `before`, with a paired interval.

    Both are measured on the same resampled rows, so that what is hard in a row is hard for both
    (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP).
    """
    measured = _measure(truth, (before, after), metric)
    first, second = measured(np.ones((1, len(truth)), dtype=np.float32))
    differences = []
    for weights in _resamples(len(truth)):
        old, new = measured(weights)
        differences.append(new - old)
    low, high = _ends(np.concatenate(differences))
    return Difference(float(first[0]), float(second[0]), low, high, len(truth))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted so that any false alarm is as rare as with one test.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 6(2).
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mcnemar(lost: int, gained: int) -> float:
    """The p-value that rows right before and wrong after, and the reverse, are equally likely.

    The exact two-sided test (McNemar 1947, "Note on the sampling error of the difference between
    correlated proportions or percentages", Psychometrika 12(2); the exact form is the sign test).
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def label_changes(
    truth: np.ndarray, before: np.ndarray, after: np.ndarray, level: float
) -> np.ndarray:
    """For each label the Holm-corrected p-value that it became worse; shape (labels,).

    A row is right for a label when it has the label and gets it, or neither. One-sided exact test
    over the rows that changed (McNemar 1947, "Note on the sampling error of the difference between
    correlated proportions or percentages", Psychometrika 12(2)). Labels with so few changed rows
    that no outcome could be significant at `level` are no part of the family, as they would hide
    the others (Tarone 1990, "A Modified Bonferroni Method for Discrete Data", Biometrics 46(2));
    their p-value is 1.
    """
    from scipy.stats import binom

    right_before, right_after = before == truth, after == truth
    lost = (right_before & ~right_after).sum(axis=0)
    gained = (~right_before & right_after).sum(axis=0)
    # P(X >= lost) of a binomial variable with chance one half.
    p_values = binom.sf(lost - 1, lost + gained, 0.5)
    # The smallest p-value that so many changed rows could give.
    least = 0.5 ** (lost + gained).astype(np.float64)
    sizes = range(1, len(least) + 1)
    family = next(size for size in sizes if (least <= level / size).sum() <= size)
    testable = least <= level / family
    adjusted = np.ones(len(least))
    adjusted[testable] = holm(p_values[testable].tolist())
    return adjusted


def label_f1(truth: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """F1 of each label, NaN where it neither occurs nor is answered; shape (labels,)."""
    hits, sums = (truth & answered).sum(axis=0), truth.sum(axis=0) + answered.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / np.where(sums, sums, np.nan))


def _resamples(rows: int) -> Iterator[np.ndarray]:
    """How often each row was drawn, in blocks of shape (resamples, rows); by a fixed seed."""
    random = np.random.default_rng(0)
    at_once = max(1, min(RESAMPLES_AT_ONCE, WEIGHTS_AT_ONCE // rows))
    for first in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - first)
        # Each resample counts in a stretch of its own.
        drawn = random.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
        counts = np.bincount(drawn.ravel(), minlength=size * rows)
        yield counts.reshape(size, rows).astype(np.float32)


def _ends(values: np.ndarray) -> tuple[float, float]:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)


def _measure(
    truth: np.ndarray, answers: Sequence[np.ndarray], metric: Metric
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function of weights, shape (resamples, rows): the metric of each of `answers` in each."""
    if metric == "accuracy":
        right = [(truth == answered).all(axis=1).astype(np.float32) for answered in answers]
        return lambda weights: [weights @ rows / weights.sum(axis=1) for rows in right]
    # Most of each matrix is false: the products of sparse matrices cost a hundredth.
    true_columns = _columns(truth)
    columns = [(_columns(answered), _columns(truth & answered)) for answered in answers]
    f1 = _micro_f1 if metric == "micro_f1" else _macro_f1

    def measured(weights: np.ndarray) -> list[np.ndarray]:
        true = (true_columns @ weights.T).T
        return [
            f1(true + (answered @ weights.T).T, (hits @ weights.T).T) for answered, hits in columns
        ]

    return measured


def _micro_f1(sums: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """F1 over all labels together; both counts of shape (resamples, labels).

    Args:
        sums: rows with a label and rows that are answered with it.
    """
    return np.asarray(2 * hits.sum(axis=1) / np.maximum(sums.sum(axis=1), 1))


def _macro_f1(sums: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The mean F1 of the labels that a resample holds or that are answered in it."""
    f1 = 2 * hits / np.maximum(sums, 1)
    return np.asarray(f1.sum(axis=1) / np.maximum((sums > 0).sum(axis=1), 1))


def _columns(matrix: np.ndarray) -> csr_array:
    """The transpose as a sparse matrix."""
    from scipy.sparse import csr_array

    return csr_array(matrix.T.astype(np.float32))
