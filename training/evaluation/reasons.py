"""A sentence for each rule by which one model is worse than another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluation.significance import Difference, label_changes, label_f1

SIGNIFICANCE = 0.05


def significance_reason(difference: Difference) -> str:
    """Why a difference of macro-F1 that is surely below zero refuses."""
    return (
        f"macro-F1 is significantly lower: {difference.point:+.4f}, 95 % interval "
        f"{difference.low:+.4f} to {difference.high:+.4f}"
    )


def drop_reason(difference: Difference, bound: float) -> str:
    """Why a difference of macro-F1 below the bound refuses."""
    return f"macro-F1 drops by {-difference.point:.4f}, more than {bound:g}"


def label_reason(
    truth: np.ndarray, before: np.ndarray, after: np.ndarray, labels: Sequence[str]
) -> str | None:
    """A sentence for the labels that became significantly worse; None where none did."""
    p_values = label_changes(truth, before, after, SIGNIFICANCE)
    worse = [int(index) for index in np.flatnonzero(p_values < SIGNIFICANCE)]
    if not worse:
        return None
    first = min(worse, key=lambda index: p_values[index])
    old, new = (
        "none" if np.isnan(f1 := label_f1(truth, answered)[first]) else f"{f1:.3f}"
        for answered in (before, after)
    )
    others = f" (and {len(worse) - 1} more)" if len(worse) > 1 else ""
    return (
        f"label {labels[first]!r}{others} is significantly worse: F1 {old} to {new}, "
        f"p = {p_values[first]:.2g}"
    )
