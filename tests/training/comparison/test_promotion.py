"""Who may replace the champion: each rule, and how often the verdicts err."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.promotion import simulate
from training.common.errors import RecipeError
from training.comparison.paired import PairedAnswers
from training.comparison.promotion import (
    changed_labels,
    decide,
    missed_floors,
    reasons_against,
)
from training.evaluation.significance import Difference
from training.recipe.bounds import PromotionBounds, parse_compare

DEFAULTS = PromotionBounds()
LABELS = ("a", "b", "c", "d")
TRUTH = np.arange(2000) % 4
# Wrong in a tenth of the rows.
BEFORE = np.where(np.arange(2000) % 10 == 9, (TRUTH + 1) % 4, TRUTH)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(len(LABELS), dtype=bool)[labels]


def paired(*matrices: np.ndarray, labels: Sequence[str], shared: int) -> PairedAnswers:
    """Truth, the champion's and the challenger's answers; the first labels are shared."""
    return PairedAnswers(tuple(labels), *matrices, shared=np.arange(len(labels)) < shared)


def difference_and_reasons(
    answers: PairedAnswers, bounds: PromotionBounds
) -> tuple[Difference, dict[str, str]]:
    difference = answers.of_shared_labels().difference("macro_f1")
    reasons = reasons_against(answers, difference, bounds)
    return difference, {str(rule): reason for rule, reason in reasons.items()}


def judged(
    after: np.ndarray, rows: int = 2000, bounds: PromotionBounds = DEFAULTS
) -> tuple[str, dict[str, str]]:
    """Verdict and reasons of answers `after`, of the first rows."""
    matrices = [one_hot(labels[:rows]) for labels in (TRUTH, BEFORE, after)]
    answers = paired(*matrices, labels=LABELS, shared=len(LABELS))
    reasons = reasons_against(answers, answers.difference("macro_f1"), bounds)
    return decide(reasons), {str(rule): reason for rule, reason in reasons.items()}


def changed(lost: int, gained: int) -> np.ndarray:
    """BEFORE with so many right answers lost and so many wrong ones mended, over all labels."""
    after = BEFORE.copy()
    right, wrong = np.flatnonzero(BEFORE == TRUTH), np.flatnonzero(BEFORE != TRUTH)
    random = np.random.default_rng(0)
    chosen = random.permutation(right)[:lost]
    after[chosen] = (TRUTH[chosen] + 1 + random.integers(0, 3, lost)) % 4
    mended = random.permutation(wrong)[:gained]
    after[mended] = TRUTH[mended]
    return after


def test_an_equally_good_challenger_is_promoted() -> None:
    assert judged(changed(30, 30)) == ("promote", {})


def test_significantly_worse_is_refused_within_the_bound() -> None:
    verdict, reasons = judged(changed(15, 0))
    assert verdict == "refuse"
    assert "drop" not in reasons
    assert "-0.00" in reasons["significance"]


def test_a_drop_beyond_the_bound_is_refused() -> None:
    verdict, reasons = judged(changed(70, 40))
    assert verdict == "refuse"
    assert "more than 0.01" in reasons["drop"]
    loose = PromotionBounds(max_macro_f1_drop=0.5)
    assert "drop" not in judged(changed(70, 40), bounds=loose)[1]


def test_a_drop_that_few_rows_show_says_so() -> None:
    """Of 100 rows two more are wrong: refused, as a guard, and said to be hardly known."""
    after = BEFORE.copy()
    after[[0, 1, 2, 3, 4]] = (TRUTH[[0, 1, 2, 3, 4]] + 1) % 4
    after[[9, 19]] = TRUTH[[9, 19]]
    verdict, reasons = judged(after, rows=100)
    assert verdict == "refuse"
    assert "100 rows tell it to ±0.0" in reasons["drop"]
    assert "rows" not in reasons


def test_one_label_may_not_pay_for_the_others() -> None:
    after = BEFORE.copy()
    lost = np.flatnonzero((TRUTH == 2) & (BEFORE == 2))[:30]
    after[lost] = 3
    gained = np.flatnonzero((TRUTH != 2) & (BEFORE != 2) & (BEFORE != TRUTH))[:40]
    after[gained] = TRUTH[gained]
    verdict, reasons = judged(after)
    assert verdict == "refuse"
    assert "label 'c'" in reasons["label"]


def test_few_rows_are_inconclusive_and_say_how_many_would_do() -> None:
    verdict, reasons = judged(BEFORE, rows=100)
    assert verdict == "inconclusive"
    assert "about 150 rows" in reasons["rows"]
    assert judged(BEFORE, rows=400)[0] == "promote"


def test_a_surely_better_challenger_needs_no_narrow_interval() -> None:
    """60 rows: the champion is right in 12 of them, the challenger in all."""
    truth, before = TRUTH[:60], np.where(np.arange(60) % 5 == 0, TRUTH[:60], (TRUTH[:60] + 1) % 4)
    matrices = one_hot(truth), one_hot(before), one_hot(truth)
    answers = paired(*matrices, labels=LABELS, shared=len(LABELS))
    difference = answers.difference("macro_f1")
    assert difference.half_width > 0.02
    assert decide(reasons_against(answers, difference, PromotionBounds())) == "promote"


def test_labels_that_only_one_side_knows_do_not_dilute() -> None:
    """Four labels that both know, twelve that are new and occur nowhere."""
    wide = [np.pad(one_hot(rows), ((0, 0), (0, 12))) for rows in (TRUTH, BEFORE, changed(70, 40))]
    labels = [*LABELS, *(f"new {number}" for number in range(12))]
    # Some of the answers that the challenger has wrong are new labels.
    wrong = np.flatnonzero((wide[2] & ~wide[0]).any(axis=1))[:24]
    wide[2][wrong] = np.eye(16, dtype=bool)[4 + np.arange(24) % 12]
    known, reasons = difference_and_reasons(paired(*wide, labels=labels, shared=4), DEFAULTS)
    diluted, _ = difference_and_reasons(paired(*wide, labels=labels, shared=16), DEFAULTS)
    assert known.after > 0.85 > diluted.after
    # A label that the champion could not answer did not become worse.
    assert "new" not in reasons.get("label", "")


def test_floors_are_asked_of_the_challenger_alone() -> None:
    assert missed_floors(0.1, 0.9, PromotionBounds()) == {}
    floors = PromotionBounds(min_macro_f1=0.8, max_ece=0.05)
    assert missed_floors(0.8, 0.05, floors) == {}
    missed = missed_floors(0.79, 0.06, floors)
    assert missed == {
        "min_macro_f1": "macro-F1 is 0.7900, below the floor of 0.8",
        "max_ece": "the calibration error is 0.0600, above the bound of 0.05",
    }
    assert decide(missed) == "refuse"
    assert set(missed_floors(float("nan"), float("nan"), floors)) == {"min_macro_f1", "max_ece"}


def test_other_labels_are_named() -> None:
    assert changed_labels([], []) == {}
    reason = changed_labels(["refund"], ["praise", "other"])["labels"]
    assert "without 'refund' and with new 'praise', 'other'" in reason
    assert "--allow_label_change" in reason


def test_bounds_come_from_a_mapping() -> None:
    assert parse_compare(None) == PromotionBounds()
    assert parse_compare("{min_macro_f1: 0.9}") == PromotionBounds(min_macro_f1=0.9)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.9", "give a mapping"),
        ("{min_f1: 0.9}", "did you mean 'min_macro_f1'"),
        ("{max_ece: 2}", "between 0 and 1"),
        ("{max_ece: high}", "no number"),
        ("{max_half_width: 0}", "no number of rows reaches"),
    ],
)
def test_impossible_bounds_are_refused(value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"compare.*{said}"):
        parse_compare(value)


def test_how_often_the_verdicts_err() -> None:
    """60 challengers a case; `benchmarks/promotion.py` is the long table."""
    same, rules = simulate(1000, 0.0, 60, PromotionBounds())
    assert same["promote"] >= 0.75
    assert rules["significance"] <= 0.1
    assert simulate(1000, -0.03, 60, PromotionBounds())[0]["promote"] <= 0.02
    assert simulate(1000, 0.02, 60, PromotionBounds())[0]["promote"] >= 0.95
    few = {points: simulate(200, points, 60, PromotionBounds())[0] for points in (-0.03, 0.0, 0.02)}
    assert few[-0.03]["promote"] <= 0.02
    assert few[0.0]["promote"] <= 0.2
    assert few[0.02]["refuse"] <= 0.05
