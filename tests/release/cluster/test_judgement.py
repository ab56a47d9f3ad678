"""A canary and the old pods over the same minutes: what undoes a release, and what does not."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from release.cluster.health import ABSTAINED, TEXTS, Sample, read_sample
from release.cluster.judgement import SIGNIFICANCE_OF_A_LOOK, find_difference, judge

EDGES = (0.5, 0.8, 1.0, math.inf)


def sample(
    labels: dict[str, int],
    *,
    errors: int = 0,
    refused: int = 0,
    abstained: int = 0,
    certain: float = 0.9,
    texts_a_request: int = 1,
    slow: int = 0,
) -> Sample:
    """Counters of so many answered texts by label; `certain` is the share of scores over 0.8."""
    texts = sum(labels.values())
    requests = texts // texts_a_request
    low = round(texts * (1 - certain))
    return Sample(
        Counter({200: requests, 500: errors, 429: refused}),
        Counter({0.1: requests - slow, math.inf: requests}),
        Counter(labels),
        Counter(dict(zip(EDGES, (0, low, texts, texts), strict=True))),
        Counter({TEXTS: texts, ABSTAINED: abstained}),
    )


EVEN = {"a": 1000, "b": 1000}


def test_equal_answers_are_no_trouble() -> None:
    judgement = judge(sample({"a": 480, "b": 520}), sample(EVEN), 2)
    assert (judgement.trouble, judgement.undecided) == (None, None)
    names = {"the share of abstentions", "confidence"}
    # The other label follows from one of two.
    assert {each.name for each in judgement.differences} == {*names, "the share of label 'b'"}
    three = judge(sample(EVEN | {"c": 1000}), sample(EVEN | {"c": 1000}), 2)
    labels = {f"the share of label {name!r}" for name in "abc"}
    assert {each.name for each in three.differences} == {*names, *labels, "the mix of labels"}


def test_a_mix_of_labels_that_changes_a_little_everywhere_is_trouble() -> None:
    names = [f"label {number}" for number in range(40)]
    even = sample(dict.fromkeys(names, 2500))
    changed = {name: 2000 if number % 2 else 3000 for number, name in enumerate(names)}
    trouble = judge(sample(changed), even, 2).trouble
    assert trouble == "the mix of labels differs by 10%"


def test_several_labels_a_text_are_each_compared() -> None:
    # Every text has both labels, or one of them.
    old, new = sample({"a": 1000, "b": 1000}), sample({"a": 1000, "b": 1000})
    for each in (old, new):
        each.answers[TEXTS] = 1500
        each.statuses[200] = 1500
    new.labels["b"] = 1300
    trouble = judge(new, old, 2).trouble
    assert trouble is not None
    assert "the share of label 'b' is 86.7%, of the old pods 66.7%" in trouble
    assert "the mix" not in {each.name for each in judge(new, old, 2).differences}


@pytest.mark.parametrize(
    ("canary", "expected"),
    [
        (sample({"a": 800, "b": 1200}), "the share of label 'b' is 60.0%, of the old pods 50.0%"),
        (sample(EVEN, abstained=200), "the share of abstentions is 10.0%, of the old pods 0.0%"),
        (sample(EVEN, certain=0.7), "confidence differs by 20%"),
        (
            sample(EVEN, errors=80),
            "80 of 2,080 requests to the canary failed, of the old pods 0 of 2,000",
        ),
        (
            sample(EVEN, refused=400),
            "400 of 2,400 requests to the canary were refused (429), of the old pods 0 of 2,000",
        ),
        (sample(EVEN, slow=400), "p99 is"),
    ],
)
def test_each_difference_is_trouble(canary: Sample, expected: str) -> None:
    trouble = judge(canary, sample(EVEN), 2).trouble
    assert trouble is not None
    assert expected in trouble


def test_labels_are_compared_only_where_both_models_have_the_same() -> None:
    other = sample({"a": 200, "c": 1800})
    assert judge(other, sample(EVEN), 1).trouble is not None
    assert judge(other, sample(EVEN), 1, same_labels=False).trouble is None


def test_a_difference_that_is_large_by_chance_or_sure_and_small_is_no_trouble() -> None:
    few = {"a": 130, "b": 90}
    assert judge(sample(few), sample({"a": 110, "b": 110}), 2).trouble is None
    many = sample({"a": 505_000, "b": 495_000})
    judgement = judge(many, sample({"a": 500_000, "b": 500_000}), 2)
    assert min(each.p for each in judgement.differences) < 1e-6
    assert judgement.trouble is None
    shifted = sample({"a": 525_000, "b": 475_000})
    stable = sample({"a": 500_000, "b": 500_000})
    assert judge(shifted, stable, 2).trouble is not None
    assert judge(shifted, stable, 2, most_shift=0.04).trouble is None


def test_too_few_answers_decide_nothing_about_predictions() -> None:
    judgement = judge(sample({"a": 150}), sample({"b": 2000}), 2)
    assert judgement.trouble is None
    assert judgement.undecided == "fewer than 200 answers decide nothing about predictions"


def test_the_texts_of_a_request_count_as_one_answer() -> None:
    labels = {"a": 1100, "b": 900}
    alone = judge(sample(labels), sample(EVEN), 1)
    together = judge(sample(labels, texts_a_request=8), sample(EVEN, texts_a_request=8), 1)
    assert alone.trouble is not None
    assert together.trouble is None
    assert together.undecided is None


def test_more_steps_need_more_evidence() -> None:
    first, second = (judge(sample({"a": 540, "b": 460}), sample(EVEN), n) for n in (1, 4))
    by_name = {each.name: each.p for each in first.differences}
    for each in second.differences:
        assert each.p == pytest.approx(min(1.0, 4 * by_name[each.name]))


def test_errors_that_the_old_pods_have_as_well_are_no_difference() -> None:
    failing = sample(EVEN, errors=100)
    assert find_difference(failing, failing, SIGNIFICANCE_OF_A_LOOK) is None
    assert find_difference(failing, sample(EVEN), SIGNIFICANCE_OF_A_LOOK) is not None
    # Of many requests a small share of errors is no chance. It is no trouble either.
    many = {"a": 100_000}
    assert find_difference(sample(many, errors=500), sample(many), 0.01) is None
    # Nobody has asked the old pods: they may fail as often.
    assert find_difference(failing, Sample(), SIGNIFICANCE_OF_A_LOOK) is None


def test_bins_without_a_text_change_no_comparison() -> None:
    # A counter drops zeros when it is subtracted, so the two sides have different edges.
    start = sample({"a": 0})
    old = sample({"a": 1000}, certain=1.0).since(start)
    new = sample({"a": 1000}, certain=0.85).since(start)
    assert old.confidence.keys() != new.confidence.keys()
    (difference,) = (d for d in judge(new, old, 1).differences if d.name == "confidence")
    assert difference.size == pytest.approx(0.15)


def test_the_answers_are_read_from_the_page_of_metrics() -> None:
    page = """
# TYPE whetstone_requests_total counter
whetstone_requests_total{route="/classify",status="200"} 3.0
# TYPE whetstone_texts_total counter
whetstone_texts_total 5.0
# TYPE whetstone_abstained_texts_total counter
whetstone_abstained_texts_total 1.0
# TYPE whetstone_predictions_total counter
whetstone_predictions_total{label="a"} 4.0
whetstone_predictions_total{label="b"} 1.0
# TYPE whetstone_confidence histogram
whetstone_confidence_bucket{le="0.5"} 2.0
whetstone_confidence_bucket{le="+Inf"} 5.0
"""
    read = read_sample(page)
    assert read.labels == {"a": 4, "b": 1}
    assert read.answers == {TEXTS: 5, ABSTAINED: 1}
    assert read.confidence == {0.5: 2, math.inf: 5}
    assert (read + read).labels == {"a": 8, "b": 2}
    assert (read + read).since(read).labels == read.labels


def test_an_equal_canary_is_hardly_ever_undone() -> None:
    chance = np.random.default_rng(0)
    shares = chance.dirichlet(np.full(8, 3.0))

    def draw(rows: int) -> Sample:
        counts = chance.multinomial(rows, shares)
        labels = {f"label {number}": int(count) for number, count in enumerate(counts)}
        return sample(labels, certain=chance.binomial(rows, 0.8) / rows)

    undone = sum(judge(draw(1000), draw(3000), 2).trouble is not None for _ in range(200))
    assert undone <= 4
