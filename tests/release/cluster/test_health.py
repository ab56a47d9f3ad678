"""The metrics of pods: how they are read, and what speaks against a release."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from release.cluster.health import (
    Baseline,
    Sample,
    choose_baseline,
    describe_sample,
    find_trouble,
    read_sample,
)

PAGE = """\
# TYPE whetstone_requests counter
whetstone_requests_total{route="/classify",status="200"} 180.0
whetstone_requests_total{route="/v1/classify",status="429"} 15.0
whetstone_requests_total{route="/predict",status="500"} 5.0
whetstone_requests_total{route="/info",status="500"} 70.0
# TYPE whetstone_request_duration_seconds histogram
whetstone_request_duration_seconds_bucket{le="0.01",route="/classify"} 100.0
whetstone_request_duration_seconds_bucket{le="0.1",route="/classify"} 190.0
whetstone_request_duration_seconds_bucket{le="+Inf",route="/classify"} 200.0
"""


def test_metrics_are_read_as_prometheus_reads_them() -> None:
    first = read_sample(PAGE)
    assert (first.requests, first.errors, first.refused) == (200, 5, 0.075)
    # The 198th is beyond the last edge: histogram_quantile then returns that edge.
    assert first.p99 == 0.1
    later = read_sample(PAGE.replace(" 190.0", " 200.0"))
    # The 198th of 200: 98 of the 100 between 0.01 and 0.1 s.
    assert later.p99 == pytest.approx(0.01 + 0.09 * 98 / 100)
    assert later.since(first) == Sample(Counter(), Counter({0.1: 10}))
    # A counter that is lower than before began again at zero after a restart.
    restarted = read_sample(PAGE.replace(" 180.0", " 300.0").replace(" 190.0", " 150.0"))
    assert restarted.since(first) == restarted
    assert sum([first, first], Sample()).requests == 400
    few = Sample(Counter({200: 99}), Counter({0.1: 99, math.inf: 99}))
    assert few.p99 is None


def sample(statuses: dict[int, int], edge: float = 0.05) -> Sample:
    """Requests by status, all with a duration just below an edge."""
    count = sum(statuses.values())
    return Sample(Counter(statuses), Counter({edge: count, math.inf: count}))


def partly_slow(count: int, slow: int) -> Sample:
    """Requests of which some took nearly five seconds."""
    buckets = {0.05: count - slow, 5.0: count, math.inf: count}
    return Sample(Counter({200: count}), Counter(buckets))


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (sample({200: 1000}), sample({200: 1000}), None),
        (sample({}), sample({200: 1000}), None),
        # Of few requests two errors may be chance, three are not; of many, one in a hundred.
        (sample({200: 20, 503: 2}), Sample(), None),
        (sample({200: 20, 503: 3}), Sample(), "3 of 23 requests were answered 5xx"),
        (sample({200: 1000, 500: 10}), Sample(), None),
        # The fault of the model at /predict.
        (sample({200: 20, 424: 3}), Sample(), "3 of 23 requests were answered 5xx or 424"),
        (sample({200: 1000, 500: 11}), Sample(), "11 of 1,011 requests"),
        # About as many were refused before.
        (sample({200: 900, 429: 100}), sample({200: 900, 429: 60}), None),
        (sample({200: 900, 429: 100}), sample({200: 1000}), "10% of the requests were refused"),
        (sample({200: 20, 429: 20}), sample({200: 1000}), None),
        (sample({200: 1000}, 0.15), sample({200: 1000}, 0.06), None),
        (sample({200: 1000}, 0.5), sample({200: 1000}), "p99 is"),
        # Two slow requests of 160 are no proof; twelve are.
        (partly_slow(160, 2), sample({200: 1000}), None),
        (partly_slow(160, 12), sample({200: 1000}), "p99 is"),
        # Nothing to compare with.
        (sample({200: 1000}, 0.5), Sample(), None),
    ],
)
def test_errors_refusals_and_a_slower_p99_speak_against_a_release(
    now: Sample, before: Sample, expected: str | None
) -> None:
    trouble = find_trouble(now, before)
    assert (trouble is None) if expected is None else (trouble and expected in trouble)


def test_what_is_judged_is_shown_with_what_was_before() -> None:
    now, before = sample({200: 1100, 429: 100, 503: 3}), sample({200: 1000})
    assert describe_sample(now, before) == (
        "1,203 requests, 3 errors, 8.3% refused (before 0.0%), p99 50 ms (before 50 ms)"
    )
    assert describe_sample(sample({200: 99}), before).endswith(", p99 needs 100 requests")
    assert describe_sample(before, Sample()).endswith("p99 50 ms (before not known)")


def test_the_baseline_is_the_requests_since_the_release_began() -> None:
    """An hour of long texts at night says nothing about the load now."""
    night, now = sample({200: 900}, 5.0), sample({200: 100})
    # The other pod was not ready when the release began, so its night cannot be subtracted.
    first, latest = {"a": night}, {"a": night + now, "b": night + now}
    assert choose_baseline(first, latest) == Baseline(now, "the release began")
    # Too few requests say nothing: then all requests count, as for pods that were not known.
    few = {"a": night + sample({200: 99})}
    assert choose_baseline(first, few) == Baseline(few["a"], "the pods started")
    assert choose_baseline({}, latest) == Baseline(night + now + night + now, "the pods started")
    assert choose_baseline({}, {}) == Baseline(Sample(), "the pods started")
