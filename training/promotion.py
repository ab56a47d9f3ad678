"""Whether a retrained package may replace the one that runs: the rules, without any package.

    difference, reasons = against_champion(truth, before, after, labels, Bounds())
    outcome = decide(reasons)

Refused: macro-F1 is significantly lower (the 95 % paired bootstrap interval lies below zero), or
lower by more than `max_macro_f1_drop`, however few the rows; a label is significantly worse (exact
McNemar, Holm-corrected); the labels change without leave; a floor is missed. Inconclusive: the rows
are too few to tell, half the interval is wider than `max_half_width`, and its lower end does not
show that no more than `max_macro_f1_drop` can be lost. Otherwise promoted.

How often each verdict falls is simulated by `benchmarks/promotion.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.gates import drop_reason, label_reason, parse_bounds, significance_reason
from training.significance import Difference, paired_difference

Outcome = Literal["promote", "refuse", "inconclusive"]
Rule = Literal["labels", "min_macro_f1", "max_ece", "significance", "label", "drop", "rows"]
# The one rule that refuses nothing.
UNDECIDED: Rule = "rows"


@dataclass(frozen=True)
class Bounds:
    """The bounds, each a key of the recipe's `compare:`; floors of 0 and 1 ask nothing."""

    max_macro_f1_drop: float = 0.01
    max_half_width: float = 0.02
    min_macro_f1: float = 0.0
    max_ece: float = 1.0

    @property
    def has_floor(self) -> bool:
        """Whether anything is asked of a package that replaces none."""
        return self.min_macro_f1 > 0 or self.max_ece < 1


def parse_compare(value: object) -> Bounds:
    """The recipe's key `compare` as bounds; what it does not name keeps its default.

    Raises:
        RecipeError: it is not a mapping of bounds to numbers from 0 to 1.
    """
    return parse_bounds("compare", value, Bounds())


def missed_floors(macro_f1: float, ece: float, bounds: Bounds) -> dict[Rule, str]:
    """A sentence for each floor that the challenger misses."""
    reasons: dict[Rule, str] = {}
    # `not >=` also refuses NaN.
    if not macro_f1 >= bounds.min_macro_f1:
        reasons["min_macro_f1"] = (
            f"macro-F1 is {macro_f1:.4f}, below the floor of {bounds.min_macro_f1:g}"
        )
    if not ece <= bounds.max_ece:
        reasons["max_ece"] = (
            f"the calibration error is {ece:.4f}, above the bound of {bounds.max_ece:g}"
        )
    return reasons


def changed_labels(gone: Sequence[str], come: Sequence[str]) -> dict[Rule, str]:
    """A sentence where the challenger answers with other labels than the champion."""
    parts = [
        f"{word} {', '.join(map(repr, labels))}"
        for word, labels in (("without", gone), ("with new", come))
        if labels
    ]
    if not parts:
        return {}
    return {
        "labels": f"the labels change ({' and '.join(parts)}): give --allow_label_change if that "
        "is meant"
    }


def against_champion(
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    labels: Sequence[str],
    bounds: Bounds,
    counted: np.ndarray | None = None,
) -> tuple[Difference, dict[Rule, str]]:
    """How the challenger's answers compare with the champion's on the same rows.

    Args:
        truth, before, after: booleans of shape (rows, labels).
        counted: the labels that are compared, booleans of shape (labels,); all by default. One
            that only one side can answer would count 0 whoever is compared.

    Returns:
        The difference of macro-F1, and a sentence for each rule that speaks against promoting.
    """
    if counted is not None:
        labels = [label for label, known in zip(labels, counted, strict=True) if known]
        truth, before, after = truth[:, counted], before[:, counted], after[:, counted]
    difference = paired_difference(truth, before, after, "macro_f1")
    reasons: dict[Rule, str] = {}
    wide = difference.half_width > bounds.max_half_width
    needed = difference.rows_needed(bounds.max_half_width)
    few = (
        f"{len(truth)} rows tell it to ±{difference.half_width:.3f} only, about {needed} rows of "
        f"this kind to ±{bounds.max_half_width:g}"
    )
    if difference.high < 0:
        reasons["significance"] = significance_reason(difference)
    if worse := label_reason(truth, before, after, labels):
        reasons["label"] = worse
    if not -difference.point <= bounds.max_macro_f1_drop:
        reasons["drop"] = drop_reason(difference, bounds.max_macro_f1_drop)
        if wide and "significance" not in reasons:
            reasons["drop"] += f" ({few})"
    # However wide: whoever surely loses no more than is allowed has shown enough.
    if not reasons and wide and difference.surely_above < -bounds.max_macro_f1_drop:
        reasons[UNDECIDED] = f"the rows are too few: of the change of macro-F1 {few}"
    return difference, reasons


def decide(reasons: Mapping[Rule, str]) -> Outcome:
    """What follows from the rules that spoke up."""
    if set(reasons) - {UNDECIDED}:
        return "refuse"
    return "inconclusive" if reasons else "promote"
