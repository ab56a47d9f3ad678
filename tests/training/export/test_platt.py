"""Platt scaling: the coefficients are those that a general minimiser finds, label by label."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from training.export.platt import LOWEST_SLOPE, fit_platt, scores_of

Aggregation = Literal["mean", "max"] | None


def drawn(rows: int, windows: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of windows, and which rows have each label; each label another slope and intercept."""
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(int(windows.sum()), 4)) * 3 - 1).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(windows)[:-1]])
    middle = np.add.reduceat(logits, starts, axis=0) / windows[:, None]
    likely = 1 / (1 + np.exp(-(middle * [0.4, 1, 2, 3] + [1, -2, 0, 2])))
    return logits, random.random((rows, 4)) < likely


def loss(
    point: np.ndarray,
    logits: np.ndarray,
    windows: np.ndarray,
    truth: np.ndarray,
    how: Aggregation,
) -> float:
    """Of columns together, targets smoothed, with probabilities as a package aggregates them."""
    positives, negatives = truth.sum(), (~truth).sum()
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    each = expit(logits.astype(np.float64) * point[0] + point[1])
    starts = np.concatenate([[0], np.cumsum(windows)[:-1]])
    if how == "max":
        probs = np.maximum.reduceat(each, starts, axis=0)
    else:
        probs = np.add.reduceat(each, starts, axis=0) / windows[:, None]
    probs = np.clip(probs, 1e-12, 1 - 1e-12)
    return float(-(targets * np.log(probs) + (1 - targets) * np.log1p(-probs)).sum())


@pytest.mark.parametrize("how", [None, "mean", "max"])
@pytest.mark.parametrize("shared", [False, True])
def test_no_other_coefficients_have_a_lower_loss(how: Aggregation, shared: bool) -> None:
    rows = 120
    windows = np.ones(rows, dtype=int) if how is None else np.arange(rows) % 4 + 1
    logits, truth = drawn(rows, windows)
    found = fit_platt(scores_of(logits, windows, how), truth, shared=shared)
    groups = [[0, 1, 2, 3]] if shared else [[0], [1], [2], [3]]
    for place, group in enumerate(groups):
        given = logits[:, group], windows, truth[:, group], how
        best = minimize(
            loss,
            np.asarray([1.0, 0.0]),
            given,
            method="Nelder-Mead",
            options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000},
        )
        assert found[:, place] == pytest.approx(best.x, abs=1e-3)
        assert loss(found[:, place], *given) <= best.fun + 1e-5


def test_the_answer_does_not_depend_on_where_the_search_begins() -> None:
    windows = np.ones(300, dtype=int)
    logits, truth = drawn(300, windows)
    found = fit_platt(scores_of(logits, windows, None), truth)
    near = fit_platt(scores_of(logits, windows, None), truth, found + 0.3)
    assert near == pytest.approx(found, abs=1e-6)
    # Logits that are all far below zero, where every probability would be 0.
    far = fit_platt(scores_of(logits * 8 - 60, windows, None), truth)
    assert far[0] * 8 == pytest.approx(found[0], abs=1e-3)
    assert far[1] - 60 * far[0] == pytest.approx(found[1], abs=1e-2)


def test_coefficients_of_separable_labels_stay_finite_and_slopes_positive() -> None:
    logits = np.linspace(-4, 4, 100, dtype=np.float32)[:, None].repeat(3, axis=1)
    truth = np.stack([logits[:, 0] > 0, logits[:, 0] < 0, np.arange(100) % 2 == 0], axis=1)
    found = fit_platt(scores_of(logits, np.ones(100, dtype=int), None), truth)
    assert 1 < found[0, 0] < 100
    # The higher the logit the less likely: the slope stops at its bound, the intercept does not.
    assert found[:, 1] == pytest.approx([LOWEST_SLOPE, 0], abs=1e-3)
    assert found[0, 2] < 0.05
