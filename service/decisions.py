"""Logits → probabilities → labels: every rule that turns a model's numbers into an answer.

Training's metrics and the server use these functions alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.model_package import Aggregation, Behaviour, Task

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the probabilities of one text come to.

    `probs` is in the manifest's label order: it sums to 1 in a single-label package and holds
    independent probabilities in a multi-label one. `label` and `score` are the answer and its
    probability (of several labels the most probable one), `labels` those past their thresholds,
    most probable first (None in a single-label package). `abstained` says that the score is
    below the abstain threshold (None where the package has none).
    """

    label: str
    score: float
    probs: FloatArray
    labels: tuple[str, ...] | None
    abstained: bool | None

    @property
    def answer(self) -> frozenset[str]:
        """The answered label or labels, for comparing answers."""
        return frozenset([self.label] if self.labels is None else self.labels)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities of logits of shape (texts, labels), row by row."""
    # The ufuncs themselves: of a small batch the methods that call them take longer than they do.
    shifted = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    return np.asarray(shifted / np.add.reduce(shifted, axis=-1, keepdims=True), dtype=np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Independent probabilities of logits of any shape; of a form that cannot overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)


def probabilities(logits: FloatArray, task: Task) -> FloatArray:
    """Softmax of a single-label model's logits, sigmoid of a multi-label one's."""
    return softmax(logits) if task == "single_label" else sigmoid(logits)


def calibrated(logits: FloatArray, behaviour: Behaviour) -> FloatArray:
    """Logits of shape (windows, labels) as the package's calibration has them.

    One temperature for all labels (Guo et al. 2017, "On Calibration of Modern Neural Networks",
    section 4.2), or a slope and an intercept for each (Platt 1999, "Probabilistic Outputs for
    Support Vector Machines").
    """
    if behaviour.platt:
        slopes, intercepts = np.asarray(
            [behaviour.platt[label] for label in behaviour.labels], dtype=np.float32
        ).T
        return np.asarray(logits * slopes + intercepts, dtype=np.float32)
    if behaviour.temperature == 1:
        return logits
    return np.asarray(logits / np.float32(behaviour.temperature), dtype=np.float32)


def text_probabilities(
    logits: FloatArray, windows: Sequence[int], behaviour: Behaviour
) -> FloatArray:
    """Logits of all windows, of shape (windows, labels), as calibrated probabilities of texts."""
    probs = probabilities(calibrated(logits, behaviour), behaviour.task)
    return aggregate_windows(probs, windows, behaviour.task, behaviour.window_aggregation)


def aggregate_windows(
    probs: FloatArray, windows: Sequence[int], task: Task, how: Aggregation | None
) -> FloatArray:
    """Probabilities of windows as those of texts.

    Args:
        probs: shape (windows of all texts, labels), the windows of a text one after another.
        windows: how many windows each text has; at least one.
        how: the mean over a text's windows, or the largest probability of each label, which for
            a single-label model is scaled to sum to 1 again. None where every text has one.
    """
    if how is None:
        return probs
    starts = np.concatenate([[0], np.cumsum(windows)[:-1]])
    if how == "mean":
        sums = np.add.reduceat(probs, starts, axis=0, dtype=np.float64)
        return np.asarray(sums / np.asarray(windows)[:, None], dtype=np.float32)
    largest = np.maximum.reduceat(probs, starts, axis=0)
    if task == "single_label":
        largest = largest / largest.sum(axis=-1, keepdims=True)
    return np.asarray(largest, dtype=np.float32)


def decide(probs: FloatArray, behaviour: Behaviour) -> list[Decision]:
    """Answers of probabilities of shape (texts, labels), in order."""
    names = behaviour.labels
    chosen = probs.argmax(axis=-1)
    passed = None
    if behaviour.task == "multi_label":
        passed = probs >= np.asarray([behaviour.thresholds[name] for name in names])
    elif behaviour.positive_label is not None:
        positive = names.index(behaviour.positive_label)
        # In float64, as the threshold was chosen: in float32 it may equal the score below it.
        threshold = np.float64(behaviour.thresholds[behaviour.positive_label])
        is_positive = probs[:, positive] >= threshold
        chosen = np.where(is_positive, positive, 1 - positive)
    decisions = []
    for row, best in enumerate(chosen):
        score = float(probs[row, best])
        labels = None
        if passed is not None:
            ranked = np.argsort(-probs[row], kind="stable")
            labels = tuple(names[index] for index in ranked if passed[row, index])
        lowest = behaviour.abstain_threshold
        abstained = None if lowest is None else score < lowest
        decisions.append(Decision(names[best], score, probs[row], labels, abstained))
    return decisions


def margin(probs: FloatArray, behaviour: Behaviour) -> float:
    """How far one text's probabilities, of shape (labels,), are from another answer."""
    if behaviour.task == "multi_label":
        thresholds = np.asarray([behaviour.thresholds[name] for name in behaviour.labels])
        return float(np.abs(probs - thresholds).min())
    if behaviour.positive_label is not None:
        positive = behaviour.labels.index(behaviour.positive_label)
        return abs(float(probs[positive]) - behaviour.thresholds[behaviour.positive_label])
    second, first = np.sort(probs)[-2:]
    return float(first - second)
