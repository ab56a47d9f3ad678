"""From logits to answers: the rules that training and server share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.inference.decisions import (
    aggregate_windows,
    calibrated,
    decide,
    margin,
    probabilities,
    sigmoid,
    text_probabilities,
)
from service.package.manifest import InferenceConfig

SEVERAL: dict[str, Any] = {
    "task": "multi_label",
    "labels": ("a", "b", "c"),
    "max_length": 8,
    "thresholds": {"a": 0.5, "b": 0.2, "c": 0.9},
}
BINARY: dict[str, Any] = {"labels": ("ham", "spam"), "max_length": 8, "thresholds": {"spam": 0.3}}


def array(*rows: list[float]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float32)


def test_sigmoid_is_exact_at_the_ends_and_in_the_middle() -> None:
    assert sigmoid(array([-1e4, 0.0, 1e4])).tolist() == [[0.0, 0.5, 1.0]]
    assert sigmoid(array([2.0]))[0, 0] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_only_single_label_probabilities_sum_to_one() -> None:
    logits = array([2.0, 1.0, 3.0])
    assert probabilities(logits, "single_label").sum() == pytest.approx(1)
    assert probabilities(logits, "multi_label").sum() > 1.5


def test_a_temperature_softens_before_the_softmax() -> None:
    config = InferenceConfig(labels=("a", "b"), max_length=8, temperature=2.0)
    logits = array([4.0, 0.0])
    assert calibrated(logits, config).tolist() == [[2.0, 0.0]]
    expected = np.exp(2) / (np.exp(2) + 1)
    assert text_probabilities(logits, [1], config)[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(labels=("a", "b"), max_length=8),
        InferenceConfig(labels=("a", "b"), max_length=8, temperature=0.1),
        InferenceConfig(
            task="multi_label",
            labels=("a", "b"),
            max_length=8,
            thresholds={"a": 0.5, "b": 0.5},
            platt={"a": (10.0, 1.0), "b": (10.0, -1.0)},
        ),
    ],
    ids=["uncalibrated", "temperature", "platt"],
)
def test_the_largest_finite_logits_have_finite_probabilities(config: InferenceConfig) -> None:
    logits = array([3e38, -3e38], [3e38, 1.0], [-3e38, 3e38])
    probs = text_probabilities(logits, [1, 1, 1], config)
    assert np.isfinite(probs).all()
    assert probs.argmax(axis=1).tolist() == [0, 0, 1]


def test_each_label_has_its_slope_and_intercept_by_name() -> None:
    platt = {"c": (0.5, 0.0), "a": (1.0, -1.0), "b": (2.0, 0.5)}
    config = InferenceConfig(**SEVERAL, platt=platt)
    probs_of_texts = text_probabilities(array([1.0, 1.0, 4.0]), [1], config)
    np.testing.assert_allclose(probs_of_texts, sigmoid(array([0.0, 2.5, 2.0])), rtol=1e-6)


def test_windows_are_calibrated_before_they_are_aggregated() -> None:
    config = InferenceConfig(
        labels=("a", "b"),
        max_length=8,
        temperature=2.0,
        long_text="window",
        window_stride=1,
        window_aggregation="mean",
    )
    logits = array([4.0, 0.0], [0.0, 8.0])
    expected = probabilities(array([2.0, 0.0], [0.0, 4.0]), "single_label").mean(axis=0)
    np.testing.assert_allclose(text_probabilities(logits, [2], config)[0], expected, rtol=1e-6)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.sampled_from(["mean", "max"]),
    st.sampled_from(["single_label", "multi_label"]),
)
def test_windows_are_aggregated_text_by_text(windows: list[int], how: Any, task: Any) -> None:
    random = np.random.default_rng(sum(windows))
    probs = probabilities(random.normal(size=(sum(windows), 3)).astype(np.float32), task)
    probs_of_texts = aggregate_windows(probs, windows, task, how)
    start = 0
    for row, count in enumerate(windows):
        own = probs[start : start + count]
        expected = own.mean(axis=0) if how == "mean" else own.max(axis=0)
        if how == "max" and task == "single_label":
            expected = expected / expected.sum()
        assert probs_of_texts[row] == pytest.approx(expected, abs=1e-6)
        start += count
    assert aggregate_windows(probs, windows, task, None) is probs


def test_multi_label_answers_are_the_labels_at_their_thresholds() -> None:
    one, none, edge = decide(
        array([0.6, 0.7, 0.8], [0.4, 0.1, 0.5], [0.5, 0.1, 0.8]), InferenceConfig(**SEVERAL)
    )
    # `label` is the most probable label, even below its threshold.
    assert (one.label, one.labels) == ("c", ("b", "a"))
    assert one.score == pytest.approx(0.8)
    assert (none.label, none.labels, none.abstained) == ("c", (), None)
    # A label exactly at its threshold is answered.
    assert edge.labels == ("a",)


def test_the_positive_label_is_answered_from_its_threshold_on() -> None:
    answers = decide(array([0.65, 0.35], [0.75, 0.25], [0.1, 0.9]), InferenceConfig(**BINARY))
    assert [answer.label for answer in answers] == ["spam", "ham", "spam"]
    # The score is the answer's probability, although the other label's is larger.
    assert answers[0].score == pytest.approx(0.35)
    assert all(answer.labels is None for answer in answers)


def test_the_positive_label_is_decided_in_the_precision_of_its_threshold() -> None:
    # The float32 of 0.7 is slightly less; the threshold lies between it and the next float32.
    below = np.float32(0.7)
    above = np.nextafter(below, np.float32(1))
    config = InferenceConfig(**BINARY | {"thresholds": {"spam": 0.7}})
    answers = decide(array([1 - above, above], [1 - below, below]), config)
    assert [answer.label for answer in answers] == ["spam", "ham"]


def test_an_answer_below_the_abstain_threshold_keeps_its_label() -> None:
    config = InferenceConfig(labels=("a", "b"), max_length=8, abstain_threshold=0.8)
    sure, unsure = decide(array([0.1, 0.9], [0.7, 0.3]), config)
    assert (sure.label, sure.abstained) == ("b", False)
    assert (unsure.label, unsure.abstained) == ("a", True)


def test_the_margin_is_the_distance_to_another_answer() -> None:
    plain = InferenceConfig(labels=("a", "b", "c"), max_length=8)
    assert margin(array([0.2, 0.5, 0.3])[0], plain) == pytest.approx(0.2)
    assert margin(array([0.6, 0.4])[0], InferenceConfig(**BINARY)) == pytest.approx(0.1)
    assert margin(array([0.1, 0.25, 0.1])[0], InferenceConfig(**SEVERAL)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (SEVERAL, {"thresholds": {"a": 0.5}}, "a threshold for every label"),
        (SEVERAL, {"thresholds": {"a": 0.5, "b": 0.2, "d": 0.9}}, "an unknown label"),
        (SEVERAL, {"abstain_threshold": 0.5}, "no abstain threshold"),
        (BINARY, {"thresholds": {"ham": 0.3, "spam": 0.3}}, "for one of two labels"),
        (BINARY, {"labels": ("ham", "spam", "eggs")}, "for one of two labels"),
        (BINARY, {"thresholds": {"spam": 1.5}}, "less than or equal to 1"),
        (BINARY, {"long_text": "window"}, "window_stride"),
        (BINARY, {"window_stride": 2}, "window_stride"),
        (BINARY, {"long_text": "window", "window_stride": 2}, "window_aggregation"),
        (
            BINARY,
            {
                "long_text": "window",
                "window_stride": 2,
                "window_aggregation": "max",
                "text_columns": ("text", "text_pair"),
            },
            "single texts, not pairs",
        ),
    ],
)
def test_contradictory_settings_are_refused(
    base: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    InferenceConfig(**base)
    with pytest.raises(ValidationError, match=message):
        InferenceConfig(**{**base, **change})
