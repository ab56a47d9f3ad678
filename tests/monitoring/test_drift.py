"""What is called a drift, and what is not."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from monitoring.accuracy import Feedbacks, with_feedback
from monitoring.drift import Check, Reference, drift, mean_interval, overall
from monitoring.window import Share, Window, window_of, windows_of
from service.capture.records import CapturedAnswer, Feedback
from tests.monitoring.made import LABELS, START, VERSION, answers, manifest
from training.evaluation.significance import holm


def found(window: Window, rows: int = 1000) -> dict[str, Check]:
    return {check.name: check for check in drift(Reference.of_package(manifest(rows)), window)}


def test_the_same_traffic_is_steady() -> None:
    checks = drift(Reference.of_package(manifest()), window_of(manifest(), answers(2000)))
    assert overall(checks) == "steady"
    assert {check.verdict for check in checks} == {"steady"}


def test_a_label_that_became_more_frequent_is_named_with_its_shares() -> None:
    checks = found(window_of(manifest(), answers(2000, (0.4, 0.4, 0.2))))
    assert checks["label 'delivery'"].verdict == "drift"
    assert checks["label 'delivery'"].before == 0.3
    assert checks["label 'delivery'"].after == pytest.approx(0.4, abs=0.03)
    assert checks["label 'refund'"].verdict == "steady"


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("confidence", answers(1000, score=(0.5, 0.9))),
        ("tokens", answers(1000, tokens=(8, 60))),
    ],
)
def test_other_scores_and_other_lengths_are_seen(name: str, window: list[CapturedAnswer]) -> None:
    checks = found(window_of(manifest(), window))
    assert checks[name].verdict == "drift"
    assert all(check.verdict == "steady" for key, check in checks.items() if key != name)


def test_truncation_and_unknown_tokens_are_compared_with_an_earlier_window() -> None:
    before = Reference.of_window(window_of(manifest(), answers(1000)))
    changed = [
        line.model_copy(update={"truncated": number % 5 == 0, "unknown": line.tokens // 2})
        for number, line in enumerate(answers(1000, seed=1))
    ]
    checks = {c.name: c for c in drift(before, window_of(manifest(), changed))}
    assert checks["truncated"].verdict == checks["unknown tokens"].verdict == "drift"
    assert checks["truncated"].after == pytest.approx(0.2)
    assert "abstained" not in checks


def test_few_rows_decide_nothing() -> None:
    checks = drift(
        Reference.of_package(manifest()), window_of(manifest(), answers(50, (0.1, 0.1, 0.8)))
    )
    assert overall(checks) == "too few rows"
    assert overall([]) == "too few rows"


def test_a_difference_that_matters_to_nobody_is_none_however_many_the_rows() -> None:
    window = window_of(manifest(), [])
    window.every = Share(1e6, 1e6, 1e6)
    window.label_weights = np.array([0.51, 0.3, 0.19]) * 1e6
    reference = Reference.of_package(manifest(1_000_000))
    label = next(c for c in drift(reference, window) if c.name == "label 'billing'")
    assert label.p < 1e-6
    assert label.verdict == "steady"


def test_rows_that_were_kept_less_often_count_for_more() -> None:
    often = answers(500, (1.0, 0.0, 0.0), rate=1.0)
    seldom = answers(500, (0.0, 1.0, 0.0), seed=1, rate=0.1)
    window = window_of(manifest(), [*often, *seldom])
    assert window.rows == 1000
    assert [share.value for share in window.labels] == pytest.approx([1 / 11, 10 / 11, 0])
    # (500 + 5000) squared through 500 + 500 * 100.
    assert window.every.effective == pytest.approx(5500**2 / 50_500)


def alike(requests: int, texts: int, seed: int) -> list[CapturedAnswer]:
    """Requests of texts that all have one label."""
    return [
        line.model_copy(update={"index": index})
        for line in answers(requests, seed=seed)
        for index in range(texts)
    ]


def test_the_rows_of_a_request_count_as_one() -> None:
    window = window_of(manifest(), alike(300, 20, seed=0))
    assert window.rows == 6000
    assert window.every.effective == window.truncated.effective == pytest.approx(300)
    once = window_of(manifest(), answers(300))
    assert [share.value for share in window.labels] == [share.value for share in once.labels]
    checks = drift(Reference.of_package(manifest()), window_of(manifest(), alike(50, 20, seed=0)))
    assert overall(checks) == "too few rows"


def test_requests_of_texts_that_are_alike_raise_no_alarm() -> None:
    """As independent rows, of which there would be 8,000, half of these windows would be drifts."""
    reference = Reference.of_package(manifest(10_000))
    verdicts = [
        overall(drift(reference, window_of(manifest(), alike(400, 20, seed=seed))))
        for seed in range(30)
    ]
    assert verdicts.count("drift") <= 2


def test_groups_are_counted_apart() -> None:
    made = [*answers(10, group="app"), *answers(5, seed=1, group="mail"), *answers(3, seed=2)]
    windows = windows_of(manifest(), made)
    assert {name: window.rows for name, window in windows.items()} == {
        None: 18,
        "app": 10,
        "mail": 5,
    }


def test_expected_accuracy_is_the_mean_of_calibrated_scores() -> None:
    made = answers(400, score=(0.6, 1.0))
    window = window_of(manifest(), made)
    assert window.expected.value == pytest.approx(np.mean([line.score for line in made]))
    low, high = mean_interval(window.expected)
    assert low < window.expected.value < high
    assert mean_interval(Share()) == (0.0, 1.0)


def test_expected_f1_of_several_labels_is_of_their_probabilities() -> None:
    line = answers(1)[0].model_copy(
        update={
            "labels": ("billing", "refund"),
            # Of the labels that are set, and of all.
            "expected_right": 1.6,
            "expected_set": 2.0,
        }
    )
    assert window_of(manifest(), [line]).expected_f1 == pytest.approx(2 * 1.6 / (2 + 2.0))
    assert math.isnan(window_of(manifest(), []).expected_f1)


def test_feedback_measures_the_answers_that_it_meets() -> None:
    made = answers(4, (1.0, 0.0, 0.0))
    says = {
        0: ("billing",),
        1: ("refund",),
        2: ("nonsense",),
    }
    feedback = {
        (made[number].id, 0): Feedback(id="", time=START, version=VERSION, labels=labels)
        for number, labels in says.items()
    }
    feedback["never", 0] = Feedback(id="", time=START, version=VERSION, labels=("refund",))
    feedback["older", 0] = Feedback(id="", time=START, version="f" * 12, labels=("refund",))
    met = Feedbacks(frozenset(LABELS), VERSION)
    assert list(with_feedback(made, feedback, met)) == made
    assert met.right.value == pytest.approx(1 / 3)
    assert (met.missing, met.other_versions, met.unknown_labels) == (1, 1, {"nonsense": 1})
    assert met.micro_f1 == pytest.approx(1 / 3)


def test_of_labels_that_callers_made_up_a_few_are_shown_and_shortened() -> None:
    names = ["often", *(f"{number} {'x' * 150}" for number in range(30))]
    met = Feedbacks(frozenset(LABELS), VERSION)
    met.unknown_labels = dict.fromkeys(names, 1) | {"often": 2}
    assert len(met.shown_labels) == 10 and met.shown_labels["often"] == 2
    assert max(map(len, met.shown_labels)) == 61


def test_feedback_is_of_the_last_answer_before_it() -> None:
    first, again, later = (
        line.model_copy(update={"id": "twice", "label": label, "time": START + timedelta(hours=n)})
        for n, (line, label) in enumerate(zip(answers(3), LABELS, strict=True))
    )
    said = Feedback(
        id="twice", time=START + timedelta(minutes=90), version=VERSION, labels=(again.label,)
    )
    for order in ([first, again, later], [later, again, first]):
        met = Feedbacks(frozenset(LABELS), VERSION)
        list(with_feedback(order, {("twice", 0): said}, met))
        assert (met.rows, met.right.value, met.repeated) == (1, 1.0, 1)


def test_the_profile_is_enough_to_check_pieces_truncation_and_abstention() -> None:
    shares = {
        "truncated_share": 0.0,
        "unknown_share": 0.01,
        "continued_share": 0.1,
        "abstained_share": 0.05,
    }
    older = manifest()
    package = older.model_copy(update={"profile": older.profile.model_copy(update=shares)})
    made = [
        line.model_copy(
            update={
                "tokens": 10,
                "continued": 5,
                "unknown": number % 2,
                "truncated": number % 5 == 0,
                "abstained": number % 3 == 0,
            }
        )
        for number, line in enumerate(answers(1000))
    ]
    window = window_of(package, made)
    checks = {check.name: check for check in drift(Reference.of_package(package), window)}
    for name in ("truncated", "unknown tokens", "continuation pieces", "abstained"):
        assert checks[name].verdict == "drift", name
    assert "truncated" not in found(window)
    # Lines of earlier versions do not say which tokens continue a word.
    before = [line.model_copy(update={"continued": None}) for line in made]
    names = {c.name for c in drift(Reference.of_package(package), window_of(package, before))}
    assert "continuation pieces" not in names


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrected_p_values_keep_their_order_and_are_no_smaller(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(a >= b for a, b in zip(corrected, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)
    # Holm's are never below those of Benjamini and Hochberg.
    assert np.all(np.array(corrected) >= false_discovery_control(p_values) - 1e-12)


def test_a_shift_that_is_spread_over_many_labels_is_seen() -> None:
    names = tuple(f"label {number}" for number in range(60))
    package = manifest().model_copy(update={"labels": names})
    package.profile.label_priors.clear()
    package.profile.label_priors.update(dict.fromkeys(names, 1 / 60))
    window = window_of(package, answers(10))
    window.every = Share(1e5, 1e5, 1e5)
    shares = [1 / 40 if number < 30 else 1 / 120 for number in range(60)]
    window.label_weights = np.array(shares) * 1e5
    checks = {check.name: check for check in drift(Reference.of_package(package), window)}
    assert checks["labels together"].verdict == "drift"
    assert {c.verdict for name, c in checks.items() if name.startswith("label '")} == {"steady"}


def test_answers_are_compared_with_answers_where_the_profile_has_them() -> None:
    package = manifest(shares=(0.5, 0.3, 0.2))
    shares = dict(zip(LABELS, (0.6, 0.3, 0.1), strict=True))
    newer = package.model_copy(
        update={"profile": package.profile.model_copy(update={"answer_shares": shares})}
    )
    window = window_of(package, answers(2000, (0.6, 0.3, 0.1)))
    assert overall(drift(Reference.of_package(package), window)) == "drift"
    assert overall(drift(Reference.of_package(newer), window)) == "steady"
