"""Thresholds and abstention: the best that validation offers, and never between equal scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.classifier import Prediction
from service.model_package import Manifest
from training.calibrate import choose_threshold, with_abstention, with_choices
from training.config import ExportArguments
from training.errors import ExportError

# Few different scores, so that many rows tie.
ROWS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40)


def counts(truth: np.ndarray, probs: np.ndarray, threshold: float) -> tuple[int, int]:
    """How many are answered, and how many of them rightly."""
    answered = probs >= threshold
    return int(answered.sum()), int((answered & truth).sum())


def possible(truth: np.ndarray, probs: np.ndarray) -> list[tuple[int, int]]:
    """What every threshold that answers anything would give."""
    return [counts(truth, probs, value) for value in sorted(set(probs.tolist()))]


@given(ROWS, st.sampled_from([None, 0.5, 0.8, 0.95]))
def test_no_other_threshold_is_better(
    rows: list[tuple[int, bool]], precision: float | None
) -> None:
    probs = np.asarray([score / 13 + 0.01 for score, _ in rows], dtype=np.float32)
    truth = np.asarray([true for _, true in rows])
    threshold, reached = choose_threshold(truth, probs, precision)
    if not truth.any():
        assert threshold == 0.5
        return
    answered, hits = counts(truth, probs, threshold)
    options = possible(truth, probs)
    assert (answered, hits) in options
    assert np.abs(probs - threshold).min() > 1e-3
    if precision is None:
        best = max(2 * h / (a + truth.sum()) for a, h in options)
        assert 2 * hits / (answered + truth.sum()) == pytest.approx(best)
        return
    good = [h for a, h in options if h / a >= precision]
    assert reached == bool(good)
    if good:
        assert hits / answered >= precision
        assert hits == max(good)
    else:
        assert hits / answered == pytest.approx(max(h / a for a, h in options))


def answers(scores: list[float]) -> list[Prediction]:
    return [
        Prediction("a", score, np.asarray([score, 1 - score]), None, None, 3, 1, False)
        for score in scores
    ]


def manifest() -> Manifest:
    return Manifest.model_construct(labels=("a", "b"), max_length=8)


def test_labels_with_few_rows_share_a_threshold() -> None:
    names = ("many", "few", "none")
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    probs = np.full((40, 3), 0.05, dtype=np.float32)
    probs[:20, 0] = 0.7
    # The one row of `few` scores low; alone it would draw its threshold down to 0.15.
    probs[0, 1] = 0.2
    probs[1:10, 2] = 0.1
    truth = [("many", "few")] + [("many",)] * 19 + [()] * 20
    given_answers = [
        Prediction("many", 0.7, row, (), None, tokens=3, windows=1, truncated=False)
        for row in probs
    ]
    chosen = with_choices(draft, ExportArguments(), truth, given_answers).thresholds
    truths = np.asarray([["many" in x, "few" in x, False] for x in truth])
    shared, _ = choose_threshold(truths.ravel(), probs.ravel(), None)
    assert chosen["few"] == chosen["none"] == shared
    assert chosen["many"] == choose_threshold(truths[:, 0], probs[:, 0], None)[0] != shared


def test_abstention_keeps_as_many_answers_as_the_precision_allows() -> None:
    truth = [("a",), ("a",), ("b",), ("a",), ("b",)]
    given_answers = answers([0.95, 0.9, 0.8, 0.7, 0.6])
    arguments = ExportArguments(abstain_precision=0.75)
    chosen = with_abstention(manifest(), arguments, truth, given_answers)
    # The first four are right in three cases.
    assert chosen.abstain_threshold == pytest.approx(0.65, abs=1e-5)
    arguments = ExportArguments(abstain_precision=0.9)
    chosen = with_abstention(manifest(), arguments, truth, given_answers)
    assert chosen.abstain_threshold == pytest.approx(0.85, abs=1e-5)
    arguments = ExportArguments(abstain_precision=0.6)
    assert with_abstention(manifest(), arguments, truth, given_answers).abstain_threshold == 0
    assert with_abstention(manifest(), ExportArguments(), truth, given_answers) == manifest()


def test_a_precision_that_no_threshold_reaches_is_refused() -> None:
    truth = [("b",), ("a",), ("a",)]
    with pytest.raises(ExportError, match="is not reached on the 3 validation rows"):
        with_abstention(
            manifest(), ExportArguments(abstain_precision=0.9), truth, answers([0.9, 0.8, 0.7])
        )
