"""Logits → probabilities → labels: every rule that turns a model's numbers into an answer.

The metrics of training and the server use the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.package.manifest import Aggregation, InferenceConfig, Task

FloatArray = npt.NDArray[np.float32]

LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one text, decided from its probabilities.

    `probs` is in the manifest's label order. It sums to 1 in a single-label package, and holds
    independent probabilities in a multi-label one. `label` and `score` are the answer and its
    probability; in a multi-label package, the most probable label. `labels` are the labels that
    reach their thresholds, most probable first; None in a single-label package. `abstained` says
    that the score is below the abstain threshold; None where the package has no such threshold.
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
    # The ufuncs themselves: with a small batch, the overhead of numpy's methods exceeds the work.
    # A difference that overflows is -infinity, and its probability 0.
    with np.errstate(over="ignore"):
        shifted = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    return np.asarray(shifted / np.add.reduce(shifted, axis=-1, keepdims=True), dtype=np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Independent probabilities of logits of any shape, by a formula that cannot overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)


def probabilities(logits: FloatArray, task: Task) -> FloatArray:
    """The softmax of a single-label model's logits, or the sigmoid of a multi-label model's."""
    return softmax(logits) if task == "single_label" else sigmoid(logits)


def calibrated(logits: FloatArray, config: InferenceConfig) -> FloatArray:
    """Logits of shape (windows, labels) after the package's calibration.

    One temperature for all labels (Guo et al. 2017, "On Calibration of Modern Neural Networks",
    section 4.2), or a slope and an intercept for each (Platt 1999, "Probabilistic Outputs for
    Support Vector Machines").
    """
    if config.platt:
        slopes, intercepts = np.asarray(
            [config.platt[label] for label in config.labels], dtype=np.float32
        ).T
        with np.errstate(over="ignore"):
            return _within_range(logits * slopes + intercepts)
    if config.temperature == 1:
        return logits
    with np.errstate(over="ignore"):
        return _within_range(logits / np.float32(config.temperature))


def _within_range(logits: FloatArray) -> FloatArray:
    """`logits` without infinity, of which no probability could be computed.

    A finite logit may leave the range of float32 when it is calibrated.
    """
    return np.clip(logits, -LARGEST, LARGEST)


def text_probabilities(
    logits: FloatArray, windows: Sequence[int], config: InferenceConfig
) -> FloatArray:
    """Calibrated probabilities of texts, from their windows' logits of shape (windows, labels)."""
    probs = probabilities(calibrated(logits, config), config.task)
    return aggregate_windows(probs, windows, config.task, config.window_aggregation)


def aggregate_windows(
    probs: FloatArray, windows: Sequence[int], task: Task, how: Aggregation | None
) -> FloatArray:
    """Probabilities of texts from those of their windows.

    Args:
        probs: shape (windows of all texts, labels), in the order of the texts.
        windows: how many windows each text has; at least one.
        how: `mean` over a text's windows, or `max`, the largest probability of each label, which
            is scaled to sum to 1 again for a single-label model. None where every text has one
            window.
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


def decide(probs: FloatArray, config: InferenceConfig) -> list[Decision]:
    """The answer of each row of probabilities, of shape (texts, labels), in order."""
    names = config.labels
    chosen = probs.argmax(axis=-1)
    passed = None
    if config.task == "multi_label":
        passed = probs >= np.asarray([config.thresholds[name] for name in names])
    elif config.positive_label is not None:
        positive = names.index(config.positive_label)
        # In float64, as the threshold was chosen. In float32 it might equal the next lower score.
        threshold = np.float64(config.thresholds[config.positive_label])
        is_positive = probs[:, positive] >= threshold
        chosen = np.where(is_positive, positive, 1 - positive)
    decisions = []
    for row, best in enumerate(chosen):
        score = float(probs[row, best])
        labels = None
        if passed is not None:
            ranked = np.argsort(-probs[row], kind="stable")
            labels = tuple(names[index] for index in ranked if passed[row, index])
        lowest = config.abstain_threshold
        abstained = None if lowest is None else score < lowest
        decisions.append(Decision(names[best], score, probs[row], labels, abstained))
    return decisions


def margin(probs: FloatArray, config: InferenceConfig) -> float:
    """How far the probabilities of one text, of shape (labels,), are from another answer."""
    if config.task == "multi_label":
        thresholds = np.asarray([config.thresholds[name] for name in config.labels])
        return float(np.abs(probs - thresholds).min())
    if config.positive_label is not None:
        positive = config.labels.index(config.positive_label)
        return abs(float(probs[positive]) - config.thresholds[config.positive_label])
    second, first = np.sort(probs)[-2:]
    return float(first - second)
