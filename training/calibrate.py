"""What is fitted on the validation split: calibration, then thresholds, then abstention.

Every choice is made on the logits of the very graph that ships.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.classifier import Prediction, predictions
from service.decisions import FloatArray, text_probabilities
from service.inference.tokenizing import EncodedText
from service.model_package import Manifest
from training.config import ExportArguments
from training.data.dataset import LabelledData
from training.errors import ExportError, RecipeError
from training.metrics import calibration_metrics, label_matrix

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
# A threshold fitted to fewer rows with the label than this fits their noise: on CUAD's clause
# types, with one to four validation rows a label, it cost 25 points of micro-F1.
FEW_POSITIVES = 5
# F1s that differ by less are equal.
TIE = 1e-12
# Decimals of a threshold: finer than any score means anything.
DECIMALS = 6
# Of a temperature and of Platt's coefficients.
CALIBRATION_DECIMALS = 4
# Fewer rows than this say nothing of probabilities: 15 bins would hold three each.
CALIBRATION_ROWS = 50
# Parts of the validation split that calibration is tried on, each with what the others fitted.
FOLDS = 5
TEMPERATURES = (0.05, 20.0)
LEAST_SLOPE = 0.05


def check_choices(arguments: ExportArguments, data: LabelledData) -> None:
    """Refuse, before any training, choices that this data cannot be asked for.

    Raises:
        RecipeError: a key does not fit the task or the labels.
    """
    positive, labels = arguments.positive_label, data.labels
    if positive is not None and data.task == "multi_label":
        raise RecipeError(
            "positive_label is for two labels of which a row has one; with several labels a row "
            "each has its threshold anyway: leave it out"
        )
    if positive is not None and (positive not in labels or len(labels) != 2):
        raise RecipeError(
            f"positive_label {positive!r} must be one of two labels, the data has "
            f"{', '.join(labels)}"
        )
    if (
        arguments.threshold_precision is not None
        and positive is None
        and data.task == "single_label"
    ):
        raise RecipeError(
            "threshold_precision needs positive_label, or several labels a row: without a "
            "threshold the most probable label is answered"
        )
    if arguments.abstain_precision is not None and data.task == "multi_label":
        raise RecipeError(
            "abstain_precision is for one label a row: with several, a row past no threshold "
            "gets none, which says as much"
        )


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
            manifest = plain.model_copy(update={"calibration": found})
            answers = plain_answers
    manifest = with_abstention(manifest, arguments, truth, answers)
    return manifest, predictions(manifest, encoded, logits)


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
    before, after = rows.probabilities(draft), _cross_fitted(rows, groups, fit)
    found["before"] = _without_bins(calibration_metrics(before, rows.truth, draft.task))
    found["after"] = _without_bins(calibration_metrics(after, rows.truth, draft.task))
    if found["after"]["log_loss"] >= found["before"]["log_loss"]:
        found["reason"] = "the log loss of rows held out does not fall"
        return draft.model_copy(update={"calibration": found})
    found["method"] = "platt" if several else "temperature"
    return fit(rows).model_copy(update={"calibration": found})


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


def _cross_fitted(rows: _Rows, groups: np.ndarray, fit: Callable[[_Rows], Manifest]) -> FloatArray:
    """Probabilities of every row by a calibration that was fitted on the other folds' groups."""
    names, places = np.unique(groups, return_inverse=True)
    folds = (np.random.default_rng(0).permutation(len(names)) % FOLDS)[places]
    probs = np.empty(rows.truth.shape, dtype=np.float32)
    for fold in range(FOLDS):
        held = folds == fold
        probs[held] = rows.take(held).probabilities(fit(rows.take(~held)))
    return probs


def _fit_temperature(rows: _Rows) -> Manifest:
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


def _fit_platt(rows: _Rows) -> Manifest:
    """Slope and intercept of each label; labels with fewer than FEW_POSITIVES rows share theirs."""
    shared = _platt(rows, np.arange(rows.truth.shape[1]))
    platt = {}
    for column, label in enumerate(rows.draft.labels):
        count = int(rows.truth[:, column].sum())
        few = min(count, len(rows.truth) - count) < FEW_POSITIVES
        own = shared if few else _platt(rows, np.asarray([column]))
        # A label whose logits say nothing would get a constant, which no threshold can use.
        platt[label] = own if own[0] > LEAST_SLOPE else shared
    return rows.draft.model_copy(update={"platt": platt})


def _platt(rows: _Rows, columns: np.ndarray) -> tuple[float, float]:
    """The slope and intercept with the lowest log loss over the labels at `columns`.

    Targets are smoothed as by Platt 1999, section 2.2, so that labels which separate perfectly do
    not run away. The slope stays positive: a higher logit is a higher probability.
    """
    from scipy.optimize import minimize

    truth = rows.truth[:, columns]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    names = [rows.draft.labels[column] for column in columns]
    part = rows.draft.model_copy(update={"labels": tuple(names), "platt": {}})
    logits = rows.logits[:, columns]

    def loss(parameters: np.ndarray) -> float:
        pair = (float(np.exp(parameters[0])), float(parameters[1]))
        manifest = part.model_copy(update={"platt": dict.fromkeys(names, pair)})
        probs = text_probabilities(logits, rows.windows.tolist(), manifest).astype(np.float64)
        probs = np.clip(probs, 1e-7, 1 - 1e-7)
        return float(-(targets * np.log(probs) + (1 - targets) * np.log1p(-probs)).mean())

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4}).x
    slope = max(round(float(np.exp(best[0])), CALIBRATION_DECIMALS), 10.0**-CALIBRATION_DECIMALS)
    return slope, round(float(best[1]), CALIBRATION_DECIMALS)


def _without_bins(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "bins"}


def with_choices(
    draft: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    answers: Sequence[Prediction],
) -> Manifest:
    """The manifest with thresholds for its answers on validation; abstention comes after them.

    Of several labels, those with fewer than FEW_POSITIVES rows share one threshold, chosen over
    all rows and labels together.

    Args:
        draft: the manifest that `answers` were given by, without thresholds of its own choosing.
        truth: the labels of the validation rows.
    """
    if draft.task == "single_label" and arguments.positive_label is None:
        return draft
    names = list(draft.labels)
    chosen_for = names if draft.task == "multi_label" else [arguments.positive_label or ""]
    probs = np.stack([answer.probs for answer in answers])
    matrix = label_matrix(truth, names)
    shared = choose_threshold(matrix.ravel(), probs.ravel(), arguments.threshold_precision)
    thresholds = {}
    for label in chosen_for:
        column = names.index(label)
        if draft.task == "multi_label" and matrix[:, column].sum() < FEW_POSITIVES:
            thresholds[label], _ = shared
        else:
            thresholds[label], _ = choose_threshold(
                matrix[:, column], probs[:, column], arguments.threshold_precision
            )
    return draft.model_copy(update={"thresholds": thresholds})


def warn_of_low_precision(
    manifest: Manifest,
    wanted: float | None,
    truth: Sequence[tuple[str, ...]],
    answers: Sequence[Prediction],
) -> None:
    """Say which labels are answered on validation with less precision than the recipe wants.

    Once, of what ships: thresholds are chosen for every candidate.
    """
    if wanted is None:
        return
    low = []
    for label in manifest.thresholds:
        right = [
            label in labels
            for answer, labels in zip(answers, truth, strict=True)
            if label in answer.answer
        ]
        if right and np.mean(right) < wanted:
            low.append(label)
    if low:
        logger.warning(
            "no threshold gives precision %g on validation to %d labels, such as %r: they got the "
            "best there was",
            wanted,
            len(low),
            low[0],
        )


def choose_threshold(
    truth: np.ndarray, probs: FloatArray, precision: float | None
) -> tuple[float, bool]:
    """The threshold with the best F1 that rows can tell, or the best recall at a wanted precision.

    It lies half-way between two probabilities that occur, so that a change of a last digit does
    not change an answer. Without any true row there is nothing to choose by: 0.5.

    Args:
        truth: booleans of shape (rows,).
        probs: the label's probabilities, of shape (rows,).
        precision: the wanted precision, or None for F1.

    Returns:
        The threshold, and whether it reaches the wanted precision.
    """
    if not truth.any():
        return DEFAULT_THRESHOLD, precision is None
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order].astype(np.float64)
    hits = np.cumsum(truth[order])
    # A threshold cannot separate equal probabilities: only the last of each can be a cut.
    cuts = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    answered = cuts + 1
    precisions = hits[cuts] / answered
    recalls = hits[cuts] / truth.sum()
    reached = True
    above, below = ranked[cuts], np.append(ranked[cuts[:-1] + 1], 0.0)
    if precision is None:
        best = _best_f1(hits[cuts], answered, len(truth), above, below)
    elif (precisions >= precision).any():
        best = int(np.argmax(np.where(precisions >= precision, recalls, -1.0)))
    else:
        reached = False
        best = int(np.lexsort((recalls, precisions))[-1])
    middle = round((above[best] + below[best]) / 2, DECIMALS)
    # Rounding may step over two that are closer than that.
    return (middle if below[best] < middle <= above[best] else float(above[best])), reached


def _best_f1(
    hits: np.ndarray, answered: np.ndarray, rows: int, above: np.ndarray, below: np.ndarray
) -> int:
    """Of the cuts whose F1 is within one standard error of the best, the most plausible one.

    With few rows the best is where two or three of them happen to lie, often at a probability of
    almost 0 or 1, and worse on others. So rows decide as far as they can tell (the rule of one
    standard error: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3), and of what
    they cannot tell apart the cut is taken that is nearest to half of the best F1, which is where
    it lies if the probabilities are right (Lipton et al. 2014, arXiv:1402.1892).

    Args:
        hits, answered: of all cuts, rightly answered rows and answered rows.
        above, below: the probabilities on both sides of each cut.
    """
    true = int(hits[-1])
    found = 2 * hits / (answered + true)
    best = int(np.argmax(found))
    at = np.arange(len(found))
    fewer, more = np.minimum(at, best), np.maximum(at, best)

    def influence(cut: np.ndarray | int, is_true: int, is_answered: np.ndarray | int) -> np.ndarray:
        """By how much F1 at a cut would change with one more such row, to first order."""
        rightly = 2 * is_true * is_answered
        return (rightly - found[cut] * (is_true + is_answered)) / (answered[cut] + true)

    # The variance of the difference is the sum of its squared influences (Hampel 1974, "The
    # Influence Curve and Its Role in Robust Estimation"): of rows that both cuts answer, that
    # neither does, and that the one with the lower threshold does.
    variance = np.zeros(len(found))
    lower = (at > best).astype(int)
    for is_true, count in ((1, hits), (0, answered - hits)):
        both, either = count[fewer], count[more]
        neither = (true if is_true else rows - true) - either
        kinds = ((both, 1, 1), (neither, 0, 0), (either - both, lower, 1 - lower))
        for number, here, there in kinds:
            change = influence(at, is_true, here) - influence(best, is_true, there)
            variance += number * change**2
    close = np.flatnonzero(found[best] - found <= np.sqrt(variance) + TIE)
    wanted = found[best] / 2
    distance = np.maximum(np.maximum(below - wanted, wanted - above), 0.0)
    return int(close[np.lexsort((-found[close], distance[close]))[0]])


def with_abstention(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    answers: Sequence[Prediction],
) -> Manifest:
    """The manifest with the lowest abstain threshold that gives the wanted precision.

    Args:
        answers: the package's answers on validation, thresholds applied.

    Raises:
        ExportError: no threshold does.
    """
    wanted = arguments.abstain_precision
    if wanted is None:
        return manifest
    right = np.asarray(
        [answer.label == labels[0] for answer, labels in zip(answers, truth, strict=True)]
    )
    scores = np.asarray([answer.score for answer in answers], dtype=np.float32)
    if right.mean() >= wanted:
        return manifest.model_copy(update={"abstain_threshold": 0.0})
    threshold, reached = choose_threshold(right, scores, wanted)
    if not reached:
        raise ExportError(
            f"abstain_precision {wanted:g} is not reached on the {len(right)} validation rows, "
            "however few are answered: choose a lower one, or train a better model"
        )
    return manifest.model_copy(update={"abstain_threshold": threshold})
