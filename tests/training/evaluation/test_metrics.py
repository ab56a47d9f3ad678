"""Metrics of several labels, a positive label and abstention are those computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.inference.classifier import Prediction
from service.inference.decisions import decide
from service.package.manifest import InferenceConfig
from training.evaluation.evaluate import headline, summary
from training.evaluation.metrics import (
    all_metrics,
    calibration_metrics,
    coverage_table,
    validation_metrics,
)
from training.evaluation.output import print_metrics

SEVERAL = InferenceConfig(
    task="multi_label",
    labels=("a", "b", "c"),
    max_length=8,
    thresholds={"a": 0.5, "b": 0.5, "c": 0.5},
)
BINARY = InferenceConfig(
    labels=("ham", "spam"), max_length=8, thresholds={"spam": 0.3}, abstain_threshold=0.6
)
TRUTH = [("a",), ("a", "b"), (), ("b",), ()]
PROBS = [[0.9, 0.1, 0.1], [0.8, 0.4, 0.1], [0.2, 0.1, 0.1], [0.6, 0.7, 0.1], [0.1, 0.1, 0.1]]


def answers(behaviour: InferenceConfig, probs: list[list[float]]) -> list[Prediction]:
    decisions = decide(np.asarray(probs, dtype=np.float32), behaviour)
    return [
        Prediction(d.label, d.score, d.probs, d.labels, d.abstained, 3, 1, False) for d in decisions
    ]


def test_metrics_of_several_labels() -> None:
    metrics = all_metrics(SEVERAL, TRUTH, answers(SEVERAL, PROBS))
    # Answered: a | a | nothing | a and b | nothing.
    assert (metrics["rows"], metrics["rows_without_labels"]) == (5, 2)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    f1_a, f1_b = 2 * 2 / (3 + 2), 2 * 1 / (1 + 2)
    # c neither occurs nor is answered: it says nothing.
    assert metrics["macro_f1"] == pytest.approx((f1_a + f1_b) / 2)
    # A row that rightly gets nothing counts as right.
    assert metrics["samples_f1"] == pytest.approx((1 + 2 / 3 + 1 + 2 / 3 + 1) / 5)
    assert metrics["per_label"]["a"]["average_precision"] == pytest.approx(1)
    assert metrics["per_label"]["c"]["average_precision"] is None
    assert metrics["average_precision"] == pytest.approx(1)
    assert metrics["per_label"]["b"]["threshold"] == 0.5
    assert json.loads(json.dumps(metrics)) == metrics
    assert headline(metrics)["samples_f1"] == metrics["samples_f1"]
    assert "micro-F1 0.75" in summary(metrics)


def test_validation_metrics_of_several_labels_need_no_threshold_for_average_precision() -> None:
    probs = np.asarray([[0.1, 0.2], [0.3, 0.1], [0.2, 0.05]], dtype=np.float32)
    targets = np.asarray([[0, 1], [1, 0], [0, 0]], dtype=np.float32)
    found = validation_metrics(probs, targets, "multi_label")
    assert found["average_precision"] == pytest.approx(1)
    # Nothing reaches 0.5, which is right for one row of three.
    assert found["micro_f1"] == 0
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_metrics_of_a_positive_label_and_of_abstention() -> None:
    truth = [("spam",), ("spam",), ("ham",), ("ham",)]
    probs = [[0.05, 0.95], [0.65, 0.35], [0.6, 0.4], [0.9, 0.1]]
    metrics = all_metrics(BINARY, truth, answers(BINARY, probs))
    positive = metrics["positive"]
    assert (positive["label"], positive["threshold"]) == ("spam", 0.3)
    assert positive["precision"] == pytest.approx(2 / 3)
    assert positive["recall"] == 1
    # Ranked 0.95, 0.4 (wrong), 0.35: precision 1 at the first hit, 2/3 at the second.
    assert positive["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    # Two answers score 0.35 and 0.4: below 0.6.
    assert metrics["abstention"] == {"threshold": 0.6, "coverage": 0.5, "precision": 1.0}
    assert metrics["coverage"][0]["coverage"] == 1.0
    assert metrics["coverage"][0]["precision"] == pytest.approx(3 / 4)


def test_the_coverage_table_takes_the_most_confident_first() -> None:
    scores = np.asarray([0.9, 0.8, 0.7, 0.6] * 5)
    right = scores > 0.65
    table = coverage_table(right, scores)
    by_coverage = {row["coverage"]: row["precision"] for row in table}
    assert by_coverage == {1.0: 0.75, 0.75: 1.0, 0.5: 1.0, 0.25: 1.0}


def test_the_screen_shows_average_precision_and_thresholds_of_several_labels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = all_metrics(SEVERAL, TRUTH, answers(SEVERAL, PROBS))
    print_metrics(metrics, "tiny")
    shown = capsys.readouterr().out
    assert "average" in shown and "threshold" in shown


def test_calibration_is_weighted_by_rows_and_computed_by_hand() -> None:
    probs = np.asarray([[0.9, 0.1]] * 4 + [[0.5, 0.5]], dtype=np.float32)
    truth = np.asarray([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    found = calibration_metrics(probs, truth, "single_label")
    # Four at 0.9 of which three are right; one at 0.5 that is not.
    assert found["ece"] == pytest.approx(0.8 * 0.15 + 0.2 * 0.5)
    assert found["brier"] == pytest.approx((3 * 2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.5**2) / 5)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.9, 0.9, 0.1, 0.5]).mean(), rel=1e-5)
    filled = {round(b["high"] * 15): b["count"] for b in found["bins"] if b["count"]}
    assert filled == {8: 1, 14: 4}
    assert len(found["bins"]) == 15


def test_calibration_of_several_labels_counts_every_probability() -> None:
    probs = np.asarray([[1.0, 0.0], [0.2, 0.2]], dtype=np.float32)
    truth = np.asarray([[True, False], [True, False]])
    found = calibration_metrics(probs, truth, "multi_label")
    # At 0.2 one of two is true; at the ends all is as it says.
    assert found["ece"] == pytest.approx(0.5 * 0.3)
    assert found["brier"] == pytest.approx((0.8**2 + 0.2**2) / 4)
    expected = -(np.log(0.2) + np.log(0.8)) / 4
    assert found["log_loss"] == pytest.approx(expected, rel=1e-5)
