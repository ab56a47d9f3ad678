"""Calibration on the validation split: a temperature, or a slope and an intercept for each label.

It is fitted to the logits of the very graph that ships, or of a first model where that one was
trained on the validation rows, too. It is judged on rows that it was not fitted on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.inference.decisions import FloatArray, text_probabilities
from service.package.manifest import Manifest
from training.evaluation.metrics import calibration_metrics, label_matrix
from training.export.platt import LOWEST_SLOPE, fit_platt, scores_of
from training.export.thresholds import FEW_POSITIVES

logger = logging.getLogger(__name__)

# Decimals of a temperature and of Platt's coefficients.
CALIBRATION_DECIMALS = 4
# Fewer rows than this tell nothing about probabilities: 15 bins would hold three each.
CALIBRATION_ROWS = 50
# Parts of the validation split; calibration is tried on each with what the others fitted.
FOLDS = 5
TEMPERATURES = (0.05, 20.0)
LEAST_SLOPE = 0.05


@dataclass(frozen=True)
class ValidationRows:
    """Validation rows for calibration.

    Attributes:
        draft: the manifest without any calibration.
        truth: booleans of shape (rows, labels).
        windows: how many windows each row has, shape (rows,).
        logits: shape (windows of all rows, labels).
    """

    draft: Manifest
    truth: np.ndarray
    windows: np.ndarray
    logits: FloatArray

    def take(self, chosen: np.ndarray) -> ValidationRows:
        """The rows at which the boolean `chosen` is true."""
        logits = self.logits[np.repeat(chosen, self.windows)]
        return ValidationRows(self.draft, self.truth[chosen], self.windows[chosen], logits)

    def probabilities(self, manifest: Manifest) -> FloatArray:
        """The package's probabilities with the calibration of `manifest`."""
        return text_probabilities(self.logits, self.windows.tolist(), manifest)


def with_calibration(
    draft: Manifest,
    truth: Sequence[tuple[str, ...]],
    windows: Sequence[int],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> Manifest:
    """The manifest with the calibration that lowers the log loss of rows it was not fitted on.

    A temperature for one label a row, Platt's coefficients for several. It is tried by
    cross-fitting and left out where it does not help; the manifest's `calibration` says which, why,
    and what it changes on the rows held out.

    Args:
        windows: how many windows each row has.
        logits: shape (windows of all rows, labels).
        groups: numbers of shape (rows,), equal where rows may not be parted; None where all may.
    """
    rows = ValidationRows(draft, label_matrix(truth, draft.labels), np.asarray(windows), logits)
    evidence: dict[str, Any] = {"method": None, "rows": len(truth)}
    if reason := _why_too_few(rows, groups):
        return draft.model_copy(update={"calibration": evidence | {"reason": reason}})
    several = draft.task == "multi_label"
    fit = with_platt if several else with_temperature
    fitted = fit(rows, draft)
    before, after = rows.probabilities(draft), _cross_fitted(rows, groups, fit, fitted)
    evidence["before"] = _without_bins(calibration_metrics(before, rows.truth, draft.task))
    evidence["after"] = _without_bins(calibration_metrics(after, rows.truth, draft.task))
    if evidence["after"]["log_loss"] >= evidence["before"]["log_loss"]:
        evidence["reason"] = "the log loss of rows held out does not fall"
        return draft.model_copy(update={"calibration": evidence})
    evidence["method"] = "platt" if several else "temperature"
    return fitted.model_copy(update={"calibration": evidence})


def _why_too_few(rows: ValidationRows, groups: np.ndarray | None) -> str | None:
    """Why nothing can be fitted to the rows; None where it can."""
    count = len(rows.truth)
    if count < CALIBRATION_ROWS:
        return f"{count} validation rows are fewer than {CALIBRATION_ROWS}"
    rarer = min(int(rows.truth.sum()), int((~rows.truth).sum()))
    if rows.draft.task == "multi_label" and rarer < FEW_POSITIVES:
        return f"fewer than {FEW_POSITIVES} labels are set, or not set, on validation"
    if groups is not None and len(np.unique(groups)) < FOLDS:
        return f"the validation rows are fewer than {FOLDS} groups"
    return None


# Rows, and a manifest whose calibration is near the wanted one → the manifest with that one.
Fit = Callable[[ValidationRows, Manifest], Manifest]


def fold_numbers(rows: int, groups: np.ndarray | None) -> np.ndarray:
    """The fold of each row, the same at each call; rows of a group have the same fold."""
    names, places = np.unique(np.arange(rows) if groups is None else groups, return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(names)) % FOLDS)[places])


def _cross_fitted(
    rows: ValidationRows, groups: np.ndarray | None, fit: Fit, whole: Manifest
) -> FloatArray:
    """Probabilities of every row by a calibration that was fitted on the other folds' groups.

    Args:
        whole: with the calibration of all rows.
    """
    folds = fold_numbers(len(rows.truth), groups)
    probs = np.empty(rows.truth.shape, dtype=np.float32)
    for fold in range(FOLDS):
        held = folds == fold
        probs[held] = rows.take(held).probabilities(fit(rows.take(~held), whole))
    return probs


def with_temperature(rows: ValidationRows, _: Manifest) -> Manifest:
    """The temperature with the lowest log loss (Guo et al. 2017, section 4.2)."""
    from scipy.optimize import minimize_scalar

    def at_temperature(logarithm: float) -> Manifest:
        temperature = round(float(np.exp(logarithm)), CALIBRATION_DECIMALS)
        return rows.draft.model_copy(update={"temperature": temperature})

    def loss(logarithm: float) -> float:
        probs = rows.probabilities(
            rows.draft.model_copy(update={"temperature": float(np.exp(logarithm))})
        )
        return float(-np.log(np.maximum(probs[rows.truth], 1e-12)).mean())

    bounds = np.log(TEMPERATURES)
    return at_temperature(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def with_platt(rows: ValidationRows, near: Manifest) -> Manifest:
    """Slope and intercept of each label; labels with fewer than FEW_POSITIVES rows share theirs."""
    labels = rows.draft.labels
    scores = scores_of(rows.logits, rows.windows, rows.draft.window_aggregation)
    begin = np.asarray(list(near.platt.values())).T if near.platt else None
    counts = rows.truth.sum(axis=0)
    own = np.minimum(counts, len(rows.truth) - counts) >= FEW_POSITIVES
    coefficients = np.zeros((2, len(labels)))
    start = None if begin is None else begin[:, own]
    coefficients[:, own] = fit_platt(scores.take(own), rows.truth[:, own], start)
    # A label whose logits tell nothing would get a constant, which no threshold can use.
    sharing = coefficients[0] <= LEAST_SLOPE
    if sharing.any():
        # The first of them has what they shared before.
        start = None if begin is None else begin[:, sharing][:, :1]
        coefficients[:, sharing] = fit_platt(scores, rows.truth, start, shared=True)
    slopes = np.maximum(coefficients[0].round(CALIBRATION_DECIMALS), LOWEST_SLOPE).tolist()
    intercepts = coefficients[1].round(CALIBRATION_DECIMALS).tolist()
    platt = dict(zip(labels, zip(slopes, intercepts, strict=True), strict=True))
    return rows.draft.model_copy(update={"platt": platt})


def _without_bins(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "bins"}
