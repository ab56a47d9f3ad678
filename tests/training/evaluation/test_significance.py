"""Intervals hold what they should as often as they say; tests of labels are exact."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from training.evaluation import significance
from training.evaluation.significance import (
    RESAMPLES,
    Difference,
    Metric,
    holm,
    interval,
    label_changes,
    label_f1,
    mcnemar,
    paired_difference,
)


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    return np.eye(count, dtype=bool)[labels]


def answers(random: np.random.Generator, truth: np.ndarray, right: float, count: int) -> np.ndarray:
    """Answers of which a share is right."""
    wrong = (truth + random.integers(1, count, len(truth))) % count
    return np.where(random.random(len(truth)) < right, truth, wrong)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "micro_f1"])
def test_the_interval_holds_the_true_value_as_often_as_it_says(metric: Metric) -> None:
    random = np.random.default_rng(0)
    # Four labels alike, so accuracy, micro- and macro-F1 are all 0.8 in the long run.
    held = 0
    for _ in range(100):
        truth = random.integers(0, 4, 300)
        low, high = interval(one_hot(truth, 4), one_hot(answers(random, truth, 0.8, 4), 4), metric)
        held += low <= 0.8 <= high
    # Of 100 intervals at 95 %, fewer than 88 hold in one of 400 tries.
    assert held >= 88


def test_the_difference_is_scikit_learns() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 5, 400)
    before, after = (answers(random, truth, right, 5) for right in (0.7, 0.9))
    found = paired_difference(one_hot(truth, 5), one_hot(before, 5), one_hot(after, 5), "macro_f1")
    expected = f1_score(truth, after, average="macro") - f1_score(truth, before, average="macro")
    assert found.point == pytest.approx(expected, abs=1e-5)
    assert 0 < found.low < found.point < found.high


def test_pairing_makes_the_interval_narrow() -> None:
    """Two that differ in few rows are compared far better than two apart."""
    random = np.random.default_rng(2)
    truth = random.integers(0, 3, 500)
    before = answers(random, truth, 0.8, 3)
    after = before.copy()
    after[:5] = truth[:5]
    paired = paired_difference(one_hot(truth, 3), one_hot(before, 3), one_hot(after, 3), "accuracy")
    alone = interval(one_hot(truth, 3), one_hot(after, 3), "accuracy")
    assert paired.high - paired.low < (alone[1] - alone[0]) / 5


def test_no_difference_in_few_rows_is_no_certainty() -> None:
    truth = one_hot(np.arange(30) % 3, 3)
    same = paired_difference(truth, truth, truth, "macro_f1")
    assert (same.point, same.low, same.high) == (0, 0, 0)
    assert same.half_width == pytest.approx(0.1)
    assert same.rows_needed(0.02) == 150


def test_rows_needed_grow_with_the_square() -> None:
    found = Difference(before=0.5, after=0.5, low=-0.04, high=0.04, rows=1000)
    assert found.half_width == pytest.approx(0.04)
    assert found.rows_needed(0.02) == pytest.approx(4000, abs=1)


def test_what_few_rows_could_have_missed_is_not_surely_above() -> None:
    """No answer differs: the bootstrap's interval is a point, which ten rows do not prove."""
    same = Difference(before=0.5, after=0.5, low=0.0, high=0.0, rows=10)
    assert same.surely_above == pytest.approx(-0.3)
    known = Difference(before=0.5, after=0.6, low=0.05, high=0.15, rows=10_000)
    assert known.surely_above == 0.05


def test_mcnemar_is_the_textbooks() -> None:
    """All ten of ten changed rows one way: twice a half to the tenth."""
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)
    assert mcnemar(0, 10) == pytest.approx(2 * 0.5**10)
    # The approval ratings of Agresti 2013, "Categorical Data Analysis", chapter 11.
    assert mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.1)
    assert mcnemar(7, 7) == 1
    assert mcnemar(0, 0) == 1


def test_several_labels_a_row() -> None:
    truth = np.asarray([[1, 1, 0], [0, 0, 0], [0, 1, 1]] * 50, dtype=bool)
    half = truth.copy()
    half[::3, 0] = False
    found = paired_difference(truth, truth, half, "micro_f1")
    assert found.point == pytest.approx(2 * 150 / (200 + 150) - 1, abs=1e-5)
    assert paired_difference(truth, truth, half, "accuracy").point == pytest.approx(
        -1 / 3, abs=1e-5
    )
    assert label_f1(truth, half).tolist() == [0, 1, 1]


def test_a_label_that_nobody_has_or_answers_has_no_f1() -> None:
    truth = np.asarray([[True, False], [True, False]])
    assert np.isnan(label_f1(truth, truth)[1])
    # Two rows, all right, say little.
    assert interval(truth, truth, "macro_f1") == (0, 1)


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_a_label_that_got_worse_is_found_and_noise_is_not() -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 20, 2000)
    before = answers(random, truth, 0.95, 20)
    noise = np.where(random.random(2000) < 0.02, answers(random, truth, 0.95, 20), before)
    changes = label_changes(one_hot(truth, 20), one_hot(before, 20), one_hot(noise, 20), 0.05)
    assert changes.min() > 0.05
    worse = before.copy()
    worse[(truth == 7) & (random.random(2000) < 0.4)] = 8
    changes = label_changes(one_hot(truth, 20), one_hot(before, 20), one_hot(worse, 20), 0.05)
    assert changes[7] < 1e-4
    assert set(np.flatnonzero(changes < 0.05)) <= {7, 8}


def test_labels_with_hardly_a_change_do_not_hide_one_that_lost_most_of_its_rows() -> None:
    """77 labels of 13 rows: one loses eight of them, nine rows elsewhere turn right."""
    truth = np.repeat(np.arange(77), 13)
    before = truth.copy()
    elsewhere = np.arange(20, 29) * 13
    before[elsewhere] += 1
    after = truth.copy()
    after[:8] = np.arange(40, 48)
    changes = label_changes(one_hot(truth, 77), one_hot(before, 77), one_hot(after, 77), 0.05)
    assert changes[0] < 0.05
    assert changes[1:].min() > 0.05


def test_resamples_of_many_rows_fit_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "WEIGHTS_AT_ONCE", 70)
    blocks = list(significance._resamples(10))
    assert {len(block) for block in blocks} <= {7, RESAMPLES % 7}
    assert sum(map(len, blocks)) == RESAMPLES
    assert all((block.sum(axis=1) == 10).all() for block in blocks)
    (one, *_) = significance._resamples(1000)
    assert one.shape == (1, 1000)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "micro_f1"])
@pytest.mark.parametrize("right", [True, False])
def test_an_interval_of_equal_rows_is_wider_than_a_point(metric: Metric, right: bool) -> None:
    """30 right of 30, or none: a bootstrap would say 1 to 1."""
    truth = one_hot(np.arange(30) % 3, 3)
    answered = truth if right else one_hot((np.arange(30) + 1) % 3, 3)
    low, high = interval(truth, answered, metric)
    # The rule of three says 0.9, Wilson's interval 0.89.
    assert (low, high) == pytest.approx((0.9, 1) if right else (0, 0.1), abs=0.02)


def test_a_rare_label_without_an_error_leaves_room_for_its_own() -> None:
    """One row of 500 has the label c: its recall may be anything."""
    labels = np.arange(500) % 2
    labels[0] = 2
    truth = one_hot(labels, 3)
    low, high = interval(truth, truth, "macro_f1")
    assert low < 1 - 1 / 3
    assert high == 1
    # Of micro-F1 each row counts alike.
    assert interval(truth, truth, "micro_f1")[0] == pytest.approx(1 - 3 / 500)


def test_intervals_of_very_good_answers_hold_the_true_value() -> None:
    """One error in 40: a bootstrap of 30 rows sees none in half of the samples."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        truth = random.integers(0, 3, 30)
        wrong = random.random(30) < 0.025
        answered = np.where(wrong, (truth + 1) % 3, truth)
        low, high = interval(one_hot(truth, 3), one_hot(answered, 3), "macro_f1")
        held += low <= 0.975 <= high
    assert held > 180


def test_the_ends_of_a_difference_that_nobody_saw_are_apart() -> None:
    truth = one_hot(np.arange(100) % 2, 2)
    same = paired_difference(truth, truth, truth, "macro_f1")
    assert (same.low, same.high) == (0, 0)
    assert same.ends == (-0.03, 0.03)
    after = one_hot(np.where(np.arange(100) < 30, 0, np.arange(100) % 2), 2)
    seen = paired_difference(truth, truth, after, "macro_f1")
    assert seen.ends == (seen.low, seen.high)
