"""What is chosen on the validation split once the package answers: thresholds and abstention.

Every choice is made on the probabilities of the very package that ships.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from service.classifier import Prediction
from service.decisions import FloatArray
from service.model_package import Manifest
from training.config import ExportArguments
from training.data import LabelledData
from training.errors import ExportError, RecipeError
from training.metrics import label_matrix

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
# A threshold fitted to fewer rows with the label than this fits their noise: on CUAD's clause
# types, with one to four validation rows a label, it cost 25 points of micro-F1.
FEW_POSITIVES = 5
# Decimals of a threshold: finer than any score means anything.
DECIMALS = 6


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
    unreached = []
    for label in chosen_for:
        column = names.index(label)
        if draft.task == "multi_label" and matrix[:, column].sum() < FEW_POSITIVES:
            threshold, reached = shared
        else:
            threshold, reached = choose_threshold(
                matrix[:, column], probs[:, column], arguments.threshold_precision
            )
        thresholds[label] = threshold
        if not reached:
            unreached.append(label)
    if unreached:
        logger.warning(
            "no threshold reaches precision %g on validation for %d labels, such as %r: they got "
            "the one with the highest precision",
            arguments.threshold_precision,
            len(unreached),
            unreached[0],
        )
    return draft.model_copy(update={"thresholds": thresholds})


def choose_threshold(
    truth: np.ndarray, probs: FloatArray, precision: float | None
) -> tuple[float, bool]:
    """The threshold with the best F1, or with the best recall at a wanted precision.

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
    if precision is None:
        best = int(np.argmax(2 * hits[cuts] / (answered + truth.sum())))
    elif (precisions >= precision).any():
        best = int(np.argmax(np.where(precisions >= precision, recalls, -1.0)))
    else:
        reached = False
        best = int(np.lexsort((recalls, precisions))[-1])
    above = ranked[cuts[best]]
    below = ranked[cuts[best] + 1] if cuts[best] + 1 < len(ranked) else 0.0
    middle = round((above + below) / 2, DECIMALS)
    # Rounding may step over two that are closer than that.
    return (middle if below < middle <= above else float(above)), reached


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
