"""The gates: each rule refuses what it is for, and how often they err is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gates import simulate
from service.package.manifest import InferenceConfig, Task
from training.export.gates import Answers, Verdict, judge, probability_drift
from training.recipe.bounds import Gates, parse_gates

LABELS = ("a", "b", "c", "d")
BEHAVIOUR = InferenceConfig(labels=LABELS, max_length=8)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(len(LABELS), dtype=bool)[labels]


def verdict(truth: np.ndarray, before: np.ndarray, after: np.ndarray, drift: float = 0) -> Verdict:
    """Of a candidate that answers `after` where the reference answered `before`."""
    probs = np.full((len(truth), len(LABELS)), 0.25, dtype=np.float32)
    moved = probs + np.float32([drift, -drift, 0, 0])
    return judge(
        one_hot(truth),
        Answers(probs, one_hot(before)),
        Answers(moved, one_hot(after)),
        BEHAVIOUR,
        Gates(),
    )


TRUTH = np.arange(1000) % 4
BEFORE = np.where(np.arange(1000) % 10 == 9, (TRUTH + 1) % 4, TRUTH)


def changed(rows: slice, to: int = 1) -> np.ndarray:
    """BEFORE with other answers at `rows`: all wrong for 1, all right for 0."""
    after = BEFORE.copy()
    after[rows] = (TRUTH[rows] + to) % 4
    return after


def test_the_same_answers_pass() -> None:
    found = verdict(TRUTH, BEFORE, BEFORE)
    assert (found.outcome, found.reasons, found.agreement) == ("passed", (), 1)


def test_drift_is_refused_whatever_the_answers() -> None:
    assert verdict(TRUTH, BEFORE, BEFORE, drift=0.019).outcome == "passed"
    found = verdict(TRUTH, BEFORE, BEFORE, drift=0.021)
    assert found.outcome == "refused"
    assert found.reasons == ("probabilities drift by 0.0210 on average, more than 0.02",)


def test_nan_is_refused() -> None:
    assert verdict(TRUTH, BEFORE, BEFORE, drift=float("nan")).outcome == "refused"


def test_a_significant_loss_is_refused_even_within_the_bounds() -> None:
    """Nine answers lost and none gained is 0.9 points, below the bound, and no accident."""
    found = verdict(TRUTH, BEFORE, changed(slice(0, 9)))
    assert found.difference.point > -0.01
    assert found.agreement > 0.98
    assert [reason for reason in found.reasons if "significantly lower" in reason]


def test_much_disagreement_is_refused_though_nothing_is_lost() -> None:
    after = BEFORE.copy()
    after[0:40:2] = (TRUTH[0:40:2] + 1) % 4
    wrong = np.flatnonzero(BEFORE != TRUTH)[10:30]
    after[wrong] = TRUTH[wrong]
    found = verdict(TRUTH, BEFORE, after)
    assert found.outcome == "refused"
    assert [reason for reason in found.reasons if "of the answers agree" in reason]


def test_one_label_may_not_pay_for_the_others() -> None:
    """A label loses 30 answers, the others gain as many: the mean stays."""
    after = BEFORE.copy()
    lost = np.flatnonzero((TRUTH == 2) & (BEFORE == 2))[:30]
    after[lost] = 3
    gained = np.flatnonzero((TRUTH != 2) & (BEFORE != 2) & (BEFORE != TRUTH))[:40]
    after[gained] = TRUTH[gained]
    found = verdict(TRUTH, BEFORE, after)
    assert [reason for reason in found.reasons if "label 'c'" in reason]
    assert "significantly worse" in " ".join(found.reasons)


def test_few_rows_are_inconclusive_and_say_how_many_would_do() -> None:
    found = verdict(TRUTH[:100], BEFORE[:100], BEFORE[:100])
    assert found.outcome == "inconclusive"
    assert "about 150 rows" in found.reasons[0]
    bad = verdict(TRUTH[:100], BEFORE[:100], (TRUTH[:100] + 1) % 4)
    assert bad.outcome == "refused", "what is plainly worse needs no more rows"


def test_drift_of_independent_probabilities_is_their_mean_change() -> None:
    before, after = np.zeros((2, 4)), np.full((2, 4), 0.1)
    assert probability_drift(before, after, "multi_label") == pytest.approx([0.1, 0.1])
    assert probability_drift(before, after, "single_label") == pytest.approx([0.2, 0.2])


def test_bounds_come_from_a_mapping() -> None:
    assert parse_gates(None) == Gates()
    assert parse_gates('{"min_agreement": 0.99}') == Gates(min_agreement=0.99)
    assert parse_gates("{max_drift: 1e-2}") == Gates(max_drift=0.01)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_how_often_the_gates_err_is_what_the_docstring_says(task: Task) -> None:
    """1,000 rows, 100 candidates each; `benchmarks/gates.py` is the long table."""
    equal, rules = simulate(1000, 0.0, 100, Gates(), task)
    assert equal["refused"] <= 0.08
    assert equal["inconclusive"] == 0
    # What each rule refuses of equally good ones; a significant loss in 2.5 % by its definition.
    assert rules["significance"] <= 0.08
    assert rules["label"] <= 0.03
    assert rules["agreement"] <= 0.01
    assert rules["drop"] <= 0.02
    assert simulate(1000, 0.03, 100, Gates(), task)[0]["passed"] <= 0.02
    assert simulate(100, 0.0, 20, Gates(), task)[0]["passed"] == 0
