"""Logits → calibrated log-odds of every label, exact where a probability rounds to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.inference.decisions import FloatArray, calibrated
from service.package.manifest import InferenceConfig

Doubles = npt.NDArray[np.float64]


def log_odds(logits: FloatArray, windows: Sequence[int], config: InferenceConfig) -> Doubles:
    """The logarithm of p / (1 - p) for the probability p of each label, as the package decides.

    A float32 probability near 1 has no usable odds. Therefore both p and 1 - p are computed from
    the logits, as logarithms.

    Args:
        logits: shape (windows of all texts, labels), in the order of the texts.
        windows: how many windows each text has; at least one.
        config: calibration, task and aggregation.

    Returns:
        Shape (texts, labels).
    """
    scores = calibrated(logits, config).astype(np.float64)
    single = config.task == "single_label"
    yes, no = _log_softmax(scores) if single else _log_sigmoid(scores)
    if config.window_aggregation is None:
        return np.asarray(yes - no)
    starts = np.concatenate([[0], np.cumsum(windows)[:-1]])
    if config.window_aggregation == "mean":
        # The number of windows cancels out.
        return np.asarray(
            np.logaddexp.reduceat(yes, starts, axis=0) - np.logaddexp.reduceat(no, starts, axis=0)
        )
    largest = np.maximum.reduceat(yes, starts, axis=0)
    if single:
        return np.asarray(largest - _log_sum_of_others(largest))
    return np.asarray(largest - np.minimum.reduceat(no, starts, axis=0))


def _log_softmax(scores: Doubles) -> tuple[Doubles, Doubles]:
    """The logarithms of p and of 1 - p, each of shape (windows, labels)."""
    total = np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    return scores - total, _log_sum_of_others(scores) - total


def _log_sigmoid(scores: Doubles) -> tuple[Doubles, Doubles]:
    return -np.logaddexp(0, -scores), -np.logaddexp(0, scores)


def _log_sum_of_others(scores: Doubles) -> Doubles:
    """For each label, the logarithm of the sum of the exponentials of all others.

    The sum over all minus the label's own share would lose all digits of a small rest. Therefore
    the sums before and after each label are added.
    """
    rows = len(scores)
    nothing = np.full((rows, 1), -np.inf)
    before = np.hstack([nothing, np.logaddexp.accumulate(scores, axis=-1)[:, :-1]])
    backwards = np.logaddexp.accumulate(scores[:, ::-1], axis=-1)[:, ::-1]
    return np.asarray(np.logaddexp(before, np.hstack([backwards[:, 1:], nothing])))
