"""Whether a retrained package may replace the one that runs: the rules, without any package.

    reasons = reasons_against(answers, answers.difference("macro_f1"), PromotionBounds())
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
from typing import Literal

from training.comparison.paired import PairedAnswers
from training.evaluation.reasons import drop_reason, label_reason, significance_reason
from training.evaluation.significance import Difference
from training.recipe.bounds import PromotionBounds

Outcome = Literal["promote", "refuse", "inconclusive"]
Rule = Literal["labels", "min_macro_f1", "max_ece", "significance", "label", "drop", "rows"]
# The only rule that refuses nothing.
UNDECIDED: Rule = "rows"


def missed_floors(macro_f1: float, ece: float, bounds: PromotionBounds) -> dict[Rule, str]:
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


def changed_labels(removed: Sequence[str], added: Sequence[str]) -> dict[Rule, str]:
    """A sentence where the challenger answers with other labels than the champion."""
    parts = [
        f"{word} {', '.join(map(repr, labels))}"
        for word, labels in (("without", removed), ("with new", added))
        if labels
    ]
    if not parts:
        return {}
    return {
        "labels": f"the labels change ({' and '.join(parts)}): give --allow_label_change if that "
        "is meant"
    }


def reasons_against(
    answers: PairedAnswers, difference: Difference, bounds: PromotionBounds
) -> dict[Rule, str]:
    """A sentence for each rule by which the challenger's answers are worse than the champion's.

    Args:
        difference: of macro-F1 over the labels that both packages know.
    """
    shared = answers.of_shared_labels()
    reasons: dict[Rule, str] = {}
    is_wide = difference.half_width > bounds.max_half_width
    if difference.high < 0:
        reasons["significance"] = significance_reason(difference)
    if worse := label_reason(shared.truth, shared.before, shared.after, shared.labels):
        reasons["label"] = worse
    # `not <=` also refuses NaN.
    if not -difference.point <= bounds.max_macro_f1_drop:
        reasons["drop"] = drop_reason(difference, bounds.max_macro_f1_drop)
        if is_wide and "significance" not in reasons:
            reasons["drop"] += f" ({_precision_of(difference, bounds)})"
    # However wide: a challenger that surely loses no more than is allowed has shown enough.
    if not reasons and is_wide and difference.surely_above < -bounds.max_macro_f1_drop:
        reasons[UNDECIDED] = (
            f"the rows are too few: of the change of macro-F1 {_precision_of(difference, bounds)}"
        )
    return reasons


def _precision_of(difference: Difference, bounds: PromotionBounds) -> str:
    """How exactly the rows tell a difference, and how many rows would tell it well enough."""
    needed = difference.rows_needed(bounds.max_half_width)
    return (
        f"{difference.rows} rows tell it to ±{difference.half_width:.3f} only, about {needed} rows "
        f"of this kind to ±{bounds.max_half_width:g}"
    )


def decide(reasons: Mapping[Rule, str]) -> Outcome:
    """The verdict of the rules that spoke against the challenger."""
    if set(reasons) - {UNDECIDED}:
        return "refuse"
    return "inconclusive" if reasons else "promote"
