"""What is fitted on the validation split: calibration, then thresholds, then abstention.

Every choice is made on the logits of the very graph that ships; what is said of them rests on rows
that they were not fitted on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.classifier import Prediction, predictions
from service.decisions import FloatArray, text_probabilities
from service.inference.tokenizing import EncodedText
from service.model_package import Manifest
from training.config import ExportArguments
from training.errors import ExportError
from training.metrics import calibration_metrics, label_matrix
from training.platt import LOWEST_SLOPE, fit_platt, scores_of
from training.thresholds import (
    DEFAULT_THRESHOLD,
    FEW_POSITIVES,
    with_abstention,
    with_choices,
)

logger = logging.getLogger(__name__)

# Of a temperature and of Platt's coefficients.
CALIBRATION_DECIMALS = 4
# Fewer rows than this say nothing of probabilities: 15 bins would hold three each.
CALIBRATION_ROWS = 50
# Parts of the validation split that calibration is tried on, each with what the others fitted.
FOLDS = 5
TEMPERATURES = (0.05, 20.0)
LEAST_SLOPE = 0.05


def finish(
    draft: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> tuple[Manifest, list[Prediction]]:
    """Calibrate, then choose thresholds, then abstention: as it ships, and its answers.

    A calibration with which fewer rows are answered rightly is left out.

    Args:
        draft: a manifest without any of them.
        truth: the labels of the validation rows.
        logits: shape (windows of `encoded`, labels).
        groups: as for `with_calibration`.

    Raises:
        ExportError: no abstain threshold reaches the wanted precision.
    """

    def decided(manifest: Manifest) -> tuple[Manifest, list[Prediction], int]:
        """With thresholds, the answers they give, and how many of those are right."""
        answers = predictions(manifest, encoded, logits)
        manifest = with_choices(manifest, arguments, truth, answers)
        answers = predictions(manifest, encoded, logits)
        pairs = zip(answers, truth, strict=True)
        return manifest, answers, sum(answer.answer == set(labels) for answer, labels in pairs)

    windows = [len(text.windows) for text in encoded]
    calibrated = with_calibration(draft, truth, windows, logits, groups)
    manifest, answers, right = decided(calibrated)
    if calibrated.calibration["method"] is not None:
        plain, plain_answers, plain_right = decided(draft)
        if right < plain_right:
            reason = f"{plain_right - right} rows more would be answered wrongly"
            found = {**calibrated.calibration, "method": None, "reason": reason}
            # With what its own thresholds promise.
            manifest = plain.model_copy(update={"calibration": found | plain.calibration})
            answers = plain_answers
    manifest = with_abstention(manifest, arguments, truth, answers)
    return manifest, predictions(manifest, encoded, logits)


def out_of_fold(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> list[Prediction]:
    """Answers to each validation row by what the rows of the other folds choose.

    What `manifest` itself answers to the rows that it was fitted on flatters it.

    Args:
        manifest: finished: whether it is calibrated stays as it is, and is tried no more.
        truth: the labels of the validation rows.
        logits: shape (windows of `encoded`, labels).
        groups: as for `with_calibration`.
    """
    windows = np.asarray([len(text.windows) for text in encoded])
    folds, places = _folds(len(truth), groups), np.arange(len(truth))
    draft = _without_choices(manifest)
    rows = _Rows(draft, label_matrix(truth, draft.labels), windows, logits)
    answers: dict[int, Prediction] = {}
    for fold in np.unique(folds):
        held, others = places[folds == fold], places[folds != fold]
        part = draft
        if manifest.platt:
            part = _fit_platt(rows.take(folds != fold), manifest)
        elif manifest.temperature != 1:
            part = _fit_temperature(rows.take(folds != fold), manifest)
        seen = [encoded[row] for row in others], rows.take(folds != fold).logits
        known = [truth[row] for row in others]
        part = with_choices(part, arguments, known, predictions(part, *seen))
        with contextlib.suppress(ExportError):
            part = with_abstention(part, arguments, known, predictions(part, *seen))
        unseen = [encoded[row] for row in held], rows.take(folds == fold).logits
        answers |= zip(held.tolist(), predictions(part, *unseen), strict=True)
    return [answers[row] for row in places.tolist()]


def _without_choices(manifest: Manifest) -> Manifest:
    """The manifest as it was before anything was fitted on validation."""
    several = manifest.task == "multi_label"
    thresholds = dict.fromkeys(manifest.labels, DEFAULT_THRESHOLD) if several else {}
    fresh = {"temperature": 1.0, "platt": {}, "thresholds": thresholds, "abstain_threshold": None}
    return manifest.model_copy(update=fresh)


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
    several = draft.task == "multi_label"
    found: dict[str, Any] = {"method": None, "rows": len(truth)}
    if len(truth) < CALIBRATION_ROWS:
        found["reason"] = f"{len(truth)} validation rows are fewer than {CALIBRATION_ROWS}"
        return draft.model_copy(update={"calibration": found})
    rows = _Rows(draft, label_matrix(truth, draft.labels), np.asarray(windows), logits)
    if several and min(int(rows.truth.sum()), int((~rows.truth).sum())) < FEW_POSITIVES:
        found["reason"] = f"fewer than {FEW_POSITIVES} labels are set, or not set, on validation"
        return draft.model_copy(update={"calibration": found})
    if groups is None:
        groups = np.arange(len(truth))
    if len(np.unique(groups)) < FOLDS:
        found["reason"] = f"the validation rows are fewer than {FOLDS} groups"
        return draft.model_copy(update={"calibration": found})
    fit = _fit_platt if several else _fit_temperature
    fitted = fit(rows, draft)
    before, after = rows.probabilities(draft), _cross_fitted(rows, groups, fit, fitted)
    found["before"] = _without_bins(calibration_metrics(before, rows.truth, draft.task))
    found["after"] = _without_bins(calibration_metrics(after, rows.truth, draft.task))
    if found["after"]["log_loss"] >= found["before"]["log_loss"]:
        found["reason"] = "the log loss of rows held out does not fall"
        return draft.model_copy(update={"calibration": found})
    found["method"] = "platt" if several else "temperature"
    return fitted.model_copy(update={"calibration": found})


class _Rows:
    """Validation rows as calibration sees them: truth of shape (rows, labels), logits, windows."""

    def __init__(
        self, draft: Manifest, truth: np.ndarray, windows: np.ndarray, logits: FloatArray
    ) -> None:
        self.draft, self.truth, self.windows, self.logits = draft, truth, windows, logits

    def take(self, chosen: np.ndarray) -> _Rows:
        """The rows at which the boolean `chosen` is true."""
        logits = self.logits[np.repeat(chosen, self.windows)]
        return _Rows(self.draft, self.truth[chosen], self.windows[chosen], logits)

    def probabilities(self, manifest: Manifest) -> FloatArray:
        """As the package gives them with the calibration of `manifest`."""
        return text_probabilities(self.logits, self.windows.tolist(), manifest)


# Rows, and a manifest whose calibration is near the one that is sought → that one.
Fit = Callable[[_Rows, Manifest], Manifest]


def _folds(rows: int, groups: np.ndarray | None) -> np.ndarray:
    """The fold of each row; always alike, and rows of a group have the same."""
    names, places = np.unique(np.arange(rows) if groups is None else groups, return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(names)) % FOLDS)[places])


def _cross_fitted(rows: _Rows, groups: np.ndarray, fit: Fit, whole: Manifest) -> FloatArray:
    """Probabilities of every row by a calibration that was fitted on the other folds' groups.

    Args:
        whole: with the calibration of all rows.
    """
    folds = _folds(len(rows.truth), groups)
    probs = np.empty(rows.truth.shape, dtype=np.float32)
    for fold in range(FOLDS):
        held = folds == fold
        probs[held] = rows.take(held).probabilities(fit(rows.take(~held), whole))
    return probs


def _fit_temperature(rows: _Rows, _: Manifest) -> Manifest:
    """The temperature with the lowest log loss (Guo et al. 2017, section 4.2)."""
    from scipy.optimize import minimize_scalar

    def with_temperature(logarithm: float) -> Manifest:
        temperature = round(float(np.exp(logarithm)), CALIBRATION_DECIMALS)
        return rows.draft.model_copy(update={"temperature": temperature})

    def loss(logarithm: float) -> float:
        probs = rows.probabilities(
            rows.draft.model_copy(update={"temperature": float(np.exp(logarithm))})
        )
        return float(-np.log(np.maximum(probs[rows.truth], 1e-12)).mean())

    bounds = np.log(TEMPERATURES)
    return with_temperature(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def _fit_platt(rows: _Rows, near: Manifest) -> Manifest:
    """Slope and intercept of each label; labels with fewer than FEW_POSITIVES rows share theirs."""
    labels = rows.draft.labels
    scores = scores_of(rows.logits, rows.windows, rows.draft.window_aggregation)
    begin = np.asarray(list(near.platt.values())).T if near.platt else None
    counts = rows.truth.sum(axis=0)
    own = np.minimum(counts, len(rows.truth) - counts) >= FEW_POSITIVES
    found = np.zeros((2, len(labels)))
    start = None if begin is None else begin[:, own]
    found[:, own] = fit_platt(scores.take(own), rows.truth[:, own], start)
    # A label whose logits say nothing would get a constant, which no threshold can use.
    sharing = found[0] <= LEAST_SLOPE
    if sharing.any():
        # The first of them has what they shared before.
        start = None if begin is None else begin[:, sharing][:, :1]
        found[:, sharing] = fit_platt(scores, rows.truth, start, shared=True)
    slopes = np.maximum(found[0].round(CALIBRATION_DECIMALS), LOWEST_SLOPE).tolist()
    intercepts = found[1].round(CALIBRATION_DECIMALS).tolist()
    platt = dict(zip(labels, zip(slopes, intercepts, strict=True), strict=True))
    return rows.draft.model_copy(update={"platt": platt})


def _without_bins(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "bins"}
