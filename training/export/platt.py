"""Platt scaling of all labels at once: a slope and an intercept for each label's logits.

    slopes, intercepts = fit_platt(scores_of(logits, windows, None), truth)

The slope and the intercept with the lowest log loss (Platt 1999, "Probabilistic Outputs for Support
Vector Machines"), found by Newton's method with backtracking (Lin, Lin and Weng 2007, "A note on
Platt's probabilistic outputs for support vector machines", Machine Learning 68, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.inference.decisions import FloatArray
from service.package.manifest import Aggregation

# A slope stays positive: a higher logit is a higher probability.
LOWEST_SLOPE = 1e-4
MOST_STEPS, MOST_HALVINGS = 100, 20
# The error after a step of Newton's method is about its square; coefficients are rounded to 1e-4.
SMALL_STEP = 1e-3
# With the expected curvature the error is a share of the step.
SMALL_SCORING_STEP = 3e-5
# The share of the descent promised by the gradient that a step must bring at least.
LEAST_DESCENT = 1e-4
# By how much sums of float64 may differ.
ROUNDING = 1e-12
# Values of a block of labels: it stays in a core's cache.
BLOCK = 32_768


class Sums(NamedTuple):
    """The log loss over rows, its gradient and its curvature; each of shape (labels,)."""

    loss: np.ndarray
    by_slope: np.ndarray
    by_intercept: np.ndarray
    slope_slope: np.ndarray
    slope_intercept: np.ndarray
    intercept_intercept: np.ndarray


Measure = Callable[[np.ndarray], Sums]


@dataclass(frozen=True)
class Scores:
    """Logits of rows, of shape (labels, windows of all rows), in float64.

    `starts` are the places of each row's first window where a row's probability is the mean over
    its windows; None where a row has one value.
    """

    logits: np.ndarray
    windows: np.ndarray
    starts: np.ndarray | None

    def take(self, labels: np.ndarray) -> Scores:
        """The scores of the labels at which the boolean `labels` is true."""
        return Scores(self.logits[labels], self.windows, self.starts)


def scores_of(logits: FloatArray, windows: np.ndarray, how: Aggregation | None) -> Scores:
    """The scores of logits of shape (windows of all rows, labels).

    The largest probability of a row's windows is that of its largest logit.
    """
    by_label = np.ascontiguousarray(logits.T, dtype=np.float64)
    starts = np.concatenate([[0], np.cumsum(windows)[:-1]])
    if how == "mean" and windows.max() > 1:
        return Scores(by_label, windows, starts)
    if how is not None:
        by_label = np.maximum.reduceat(by_label, starts, axis=1)
    return Scores(by_label, windows, None)


def fit_platt(
    scores: Scores, truth: np.ndarray, near: np.ndarray | None = None, *, shared: bool = False
) -> np.ndarray:
    """Slopes and intercepts, of shape (2, labels); or (2, 1) for what the labels share.

    Targets are smoothed as by Platt 1999, section 2.2: the coefficients of labels that separate
    perfectly stay finite.

    Args:
        truth: booleans of shape (rows, labels).
        near: the point where the search begins, of the shape of the result, such as the result of
            other rows of the same kind. By default every row has the label's share as its
            probability there.
        shared: one slope and one intercept for all labels together.
    """
    counts = truth.sum(axis=0, dtype=np.float64)
    totals = np.full_like(counts, len(truth))
    if shared:
        counts, totals = np.full_like(counts, counts.sum()), np.full_like(counts, totals.sum())
    if near is None:
        intercepts = np.log((counts + 1) / (totals - counts + 1))
        near = np.stack([np.full_like(counts, LOWEST_SLOPE), intercepts])
        near = near[:, :1] if shared else near
    highs, lows = (counts + 1) / (counts + 2), 1 / (totals - counts + 2)
    by_label = np.ascontiguousarray(truth.T)
    size = max(1, BLOCK // max(1, scores.logits.shape[1]))
    blocks = [slice(at, at + size) for at in range(0, len(by_label), size)]

    def measure_block(block: slice) -> Measure:
        targets = np.where(by_label[block], highs[block, None], lows[block, None])
        part = Scores(scores.logits[block], scores.windows, scores.starts)
        measure = _one_value if part.starts is None else _mean_of_windows
        return lambda point: measure(part, targets, point)

    small = SMALL_STEP if scores.starts is None else SMALL_SCORING_STEP
    if shared:
        measures = [measure_block(block) for block in blocks]

        def measure_all(point: np.ndarray) -> Sums:
            columns = [np.stack(part(point)).sum(axis=1, keepdims=True) for part in measures]
            return Sums(*np.sum(columns, axis=0))

        return _newton(measure_all, near.astype(np.float64), small)
    points = [_newton(measure_block(block), near[:, block], small) for block in blocks]
    return np.concatenate([np.empty((2, 0)), *points], axis=1)


def _newton(measure: Measure, point: np.ndarray, small: float) -> np.ndarray:
    """The point of shape (2, labels) with the lowest loss, each label for itself.

    Args:
        small: the search ends with a step smaller than this.
    """
    sums = measure(point)
    for _ in range(MOST_STEPS):
        step = _step(point, sums)
        if np.abs(step).max(initial=0) < small:
            # So near that the loss need not be measured.
            point = _bounded(point + step)
            break
        length = np.ones(point.shape[1])
        for _ in range(MOST_HALVINGS):
            after = _bounded(point + length * step)
            sums_after = measure(after)
            promised = sums.by_slope * (after - point)[0] + sums.by_intercept * (after - point)[1]
            most = sums.loss + LEAST_DESCENT * promised + ROUNDING * np.abs(sums.loss)
            if (sums_after.loss <= most).all():
                break
            length = np.where(sums_after.loss <= most, length, length / 2)
        point, sums = after, sums_after
    return point


def _bounded(point: np.ndarray) -> np.ndarray:
    return np.stack([np.maximum(point[0], LOWEST_SLOPE), point[1]])


def _step(point: np.ndarray, sums: Sums) -> np.ndarray:
    """Newton's step, of shape (2, labels); a slope at its bound stays there."""
    ridge = ROUNDING * (1 + sums.slope_slope + sums.intercept_intercept)
    first, second = sums.slope_slope + ridge, sums.intercept_intercept + ridge
    pinned = (point[0] <= LOWEST_SLOPE) & (sums.by_slope > 0)
    mixed = np.where(pinned, 0.0, sums.slope_intercept)
    by_slope = np.where(pinned, 0.0, sums.by_slope)
    determinant = first * second - mixed**2
    return np.stack(
        [
            (mixed * sums.by_intercept - second * by_slope) / determinant,
            (mixed * by_slope - first * sums.by_intercept) / determinant,
        ]
    )


def _one_value(scores: Scores, targets: np.ndarray, point: np.ndarray) -> Sums:
    """The sums where a row has one logit; `targets` of shape (labels, rows)."""
    logits = scores.logits
    shifted = logits * point[0][:, None] + point[1][:, None]
    small = np.exp(-np.abs(shifted))
    whole = 1 + small
    probs = np.where(shifted >= 0, 1.0, small) / whole
    loss = np.log(whole).sum(axis=1) + np.maximum(shifted, 0).sum(axis=1)
    loss -= np.einsum("lr,lr->l", targets, shifted)
    weights = small / whole**2
    weighted = weights * logits
    gap = probs - targets
    return Sums(
        loss,
        np.einsum("lr,lr->l", gap, logits),
        gap.sum(axis=1),
        np.einsum("lr,lr->l", weighted, logits),
        weighted.sum(axis=1),
        weights.sum(axis=1),
    )


def _mean_of_windows(scores: Scores, targets: np.ndarray, point: np.ndarray) -> Sums:
    """The sums where a row's probability is the mean over windows.

    The loss is no longer convex. Its expected curvature stands in for it (Fisher scoring); with one
    window the two are equal.
    """
    starts = scores.starts
    assert starts is not None  # noqa: S101 - the caller checked
    shifted = scores.logits * point[0][:, None] + point[1][:, None]
    small = np.exp(-np.abs(shifted))
    each = np.where(shifted >= 0, 1.0, small) / (1 + small)
    slopes = small / (1 + small) ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.add.reduceat(values, starts, axis=1) / scores.windows)

    probs = np.clip(mean(each), ROUNDING, 1 - ROUNDING)
    by_slope, by_intercept = mean(slopes * scores.logits), mean(slopes)
    weights = 1 / (probs * (1 - probs))
    gap = (probs - targets) * weights
    loss = -(targets * np.log(probs) + (1 - targets) * np.log1p(-probs))
    return Sums(
        loss.sum(axis=1),
        (gap * by_slope).sum(axis=1),
        (gap * by_intercept).sum(axis=1),
        (weights * by_slope**2).sum(axis=1),
        (weights * by_slope * by_intercept).sum(axis=1),
        (weights * by_intercept**2).sum(axis=1),
    )
