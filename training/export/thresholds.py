"""Thresholds and abstention, chosen on the validation split.

    threshold, promise = choose_threshold(truth, probs, 0.9)

`training.export.promises` says which precision new rows keep from a threshold on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from service.inference.classifier import Prediction
from service.inference.decisions import FloatArray
from service.package.manifest import Manifest
from training.common.errors import ExportError, RecipeError
from training.data.dataset import LabeledData
from training.evaluation.metrics import label_matrix
from training.export.promises import (
    Promise,
    floored,
    last_proven_cut,
    most_promised,
    promise_of,
    rows_for,
    safest_cut,
    with_promises,
)
from training.recipe.arguments import ExportArguments

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
# A threshold fitted to fewer rows with the label than this fits their noise: on CUAD's clause
# types, with one to four validation rows a label, it cost 25 points of micro-F1.
FEW_POSITIVES = 5
# F1s that differ by less are equal.
TIE = 1e-12
# Decimals of a threshold, more than any score carries.
DECIMALS = 6


def check_choices(arguments: ExportArguments, data: LabeledData) -> None:
    """Refuse, before any training, choices that do not fit the data.

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


def warn_of_few_rows(arguments: ExportArguments, data: LabeledData) -> None:
    """Warn, before any training, of a wanted precision that the validation rows cannot prove."""
    truth = data.validation.labels
    if (wanted := arguments.abstain_precision) is not None:
        _warn_of_few("abstain_precision", wanted, {"": len(truth)})
    if (wanted := arguments.threshold_precision) is not None:
        names = data.labels if arguments.positive_label is None else [arguments.positive_label]
        counts = {name: sum(name in labels for labels in truth) for name in names}
        _warn_of_few("threshold_precision", wanted, counts)


def _warn_of_few(key: str, wanted: float, counts: dict[str, int]) -> None:
    few = {name: count for name, count in counts.items() if most_promised(count) < wanted}
    if not few:
        return
    name, count = min(few.items(), key=lambda item: item[1])
    whose = f" of label {name!r}" if name else ""
    others = f" (and of {len(few) - 1} more)" if len(few) > 1 else ""
    logger.warning(
        "%s %g cannot be promised%s%s: %d validation rows can promise %s at most, %d are needed",
        *(key, wanted, whose, others, count, floored(most_promised(count)), rows_for(wanted)),
    )


def with_thresholds(
    draft: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    answers: Sequence[Prediction],
) -> Manifest:
    """The manifest with thresholds for its answers on validation; abstention comes after them.

    Among several labels, those with fewer than FEW_POSITIVES rows share one threshold, chosen over
    all rows and labels together; no precision is promised of them.

    Args:
        draft: the manifest that gave `answers`, before thresholds are chosen.
        truth: the labels of the validation rows.
    """
    if draft.task == "single_label" and arguments.positive_label is None:
        return draft
    names, wanted = list(draft.labels), arguments.threshold_precision
    chosen_for = names if draft.task == "multi_label" else [arguments.positive_label or ""]
    probs = np.stack([answer.probs for answer in answers])
    matrix = label_matrix(truth, names)
    shared, _ = choose_threshold(matrix.ravel(), probs.ravel(), wanted)
    thresholds, promises = {}, {}
    for label in chosen_for:
        column = names.index(label)
        true, scores = matrix[:, column], probs[:, column]
        if draft.task == "multi_label" and true.sum() < FEW_POSITIVES:
            thresholds[label] = shared
            promises[label] = None if wanted is None else promise_of(true, scores >= shared, wanted)
        else:
            thresholds[label], promises[label] = choose_threshold(true, scores, wanted)
    manifest = draft.model_copy(update={"thresholds": thresholds})
    return with_promises(manifest, {"labels": {n: asdict(p) for n, p in promises.items() if p}})


def choose_threshold(
    truth: np.ndarray, probs: FloatArray, precision: float | None
) -> tuple[float, Promise | None]:
    """The threshold with the best F1 that rows can tell, or the best recall at a proven precision.

    It lies half-way between two probabilities that occur, so that a change of a last digit does
    not change an answer. Without any true row there is nothing to choose by: 0.5.

    Args:
        truth: booleans of shape (rows,).
        probs: the label's probabilities, of shape (rows,).
        precision: the wanted precision, or None for F1.

    Returns:
        The threshold, and what it promises of a wanted precision.
    """
    if not truth.any():
        chosen = probs >= DEFAULT_THRESHOLD
        return DEFAULT_THRESHOLD, None if precision is None else promise_of(
            truth, chosen, precision
        )
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order].astype(np.float64)
    hits = np.cumsum(truth[order])
    # A threshold cannot separate equal probabilities: only the last of each can be a cut.
    cuts = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    answered = cuts + 1
    above, below = ranked[cuts], np.append(ranked[cuts[:-1] + 1], 0.0)
    promise = None
    if precision is None:
        best = _best_f1(hits[cuts], answered, len(truth), above, below)
    else:
        proven = last_proven_cut(hits[cuts], answered, precision)
        best = safest_cut(hits[cuts], answered, precision) if proven is None else proven
        promise = promise_of(truth, probs >= above[best], precision, promised=proven is not None)
    middle = round((above[best] + below[best]) / 2, DECIMALS)
    # Rounding may step over two that are closer than that.
    return (middle if below[best] < middle <= above[best] else float(above[best])), promise


def _best_f1(
    hits: np.ndarray, answered: np.ndarray, rows: int, above: np.ndarray, below: np.ndarray
) -> int:
    """The most plausible one of the cuts whose F1 is within one standard error of the best.

    With few rows the best cut is where two or three of them happen to lie, often at a probability
    of almost 0 or 1, and it is worse on other rows. Rows decide as far as they can tell (the rule
    of one standard error: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3).
    Among cuts that they cannot tell apart the one nearest to half of the best F1 is taken, which is
    where it lies if the probabilities are right (Lipton et al. 2014, arXiv:1402.1892).

    Args:
        hits, answered: of all cuts, rightly answered rows and answered rows.
        above, below: the probabilities on both sides of each cut.
    """
    true = int(hits[-1])
    f1 = 2 * hits / (answered + true)
    best = int(np.argmax(f1))
    close = np.flatnonzero(f1[best] - f1 <= _standard_errors(hits, answered, rows, best) + TIE)
    wanted = f1[best] / 2
    distance = np.maximum(np.maximum(below - wanted, wanted - above), 0.0)
    return int(close[np.lexsort((-f1[close], distance[close]))[0]])


def _standard_errors(hits: np.ndarray, answered: np.ndarray, rows: int, best: int) -> np.ndarray:
    """The standard error of the difference of F1 between each cut and the best one.

    The variance of the difference is the sum of its squared influences (Hampel 1974, "The
    Influence Curve and Its Role in Robust Estimation"): of rows that both cuts answer, that
    neither does, and that only the cut with the lower threshold does.
    """
    true = int(hits[-1])
    f1 = 2 * hits / (answered + true)
    at = np.arange(len(f1))
    fewer, more = np.minimum(at, best), np.maximum(at, best)

    def influence(cut: np.ndarray | int, is_true: int, is_answered: np.ndarray | int) -> np.ndarray:
        """By how much F1 at a cut would change with one more such row, to first order."""
        rightly = 2 * is_true * is_answered
        change = (rightly - f1[cut] * (is_true + is_answered)) / (answered[cut] + true)
        return np.asarray(change)

    variance = np.zeros(len(f1))
    lower = (at > best).astype(int)
    for is_true, count in ((1, hits), (0, answered - hits)):
        both, either = count[fewer], count[more]
        neither = (true if is_true else rows - true) - either
        kinds = ((both, 1, 1), (neither, 0, 0), (either - both, lower, 1 - lower))
        for number, here, there in kinds:
            change = influence(at, is_true, here) - influence(best, is_true, there)
            variance += number * change**2
    return np.asarray(np.sqrt(variance))


def with_abstention(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    answers: Sequence[Prediction],
) -> Manifest:
    """The manifest with the lowest abstain threshold that proves the wanted precision.

    Where no threshold is proven, the one with the best lower bound.

    Args:
        answers: the package's answers on validation, thresholds applied.

    Raises:
        ExportError: not even on these rows does any threshold have it.
    """
    wanted = arguments.abstain_precision
    if wanted is None:
        return manifest
    right = np.asarray(
        [answer.label == labels[0] for answer, labels in zip(answers, truth, strict=True)]
    )
    scores = np.asarray([answer.score for answer in answers], dtype=np.float32)
    threshold, promise = choose_threshold(right, scores, wanted)
    assert promise is not None  # noqa: S101 - a precision is wanted
    if promise.observed < wanted:
        raise ExportError(
            f"abstain_precision {wanted:g} is not reached on the {len(right)} validation rows, "
            "however few are answered: choose a lower one, or train a better model"
        )
    if (scores >= threshold).all():
        threshold = 0.0
    manifest = manifest.model_copy(update={"abstain_threshold": threshold})
    return with_promises(manifest, {"abstention": asdict(promise)})
