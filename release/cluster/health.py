"""The metrics of the pods over some seconds: errors, refusals, and the 99th percentile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.http.schemas import PREDICT_FAULT
from training.evaluation.significance import wilson

REQUESTS = "whetstone_requests_total"
BUCKETS = "whetstone_request_duration_seconds_bucket"
PREDICTIONS = "whetstone_predictions_total"
CONFIDENCE = "whetstone_confidence_bucket"
TEXTS = "whetstone_texts_total"
ABSTAINED = "whetstone_abstained_texts_total"
CLASSIFYING_ROUTES = ("/classify", "/v1/classify", "/predict")
# Of fewer requests the 99th percentile is a single request.
LEAST_FOR_P99 = 100
# Up to two failed requests may be chance, and so may up to one in a hundred.
MOST_ERRORS = 2
MOST_ERROR_SHARE = 0.01
MOST_REFUSED_INCREASE = 0.05
MOST_P99_RATIO = 2.0
MOST_P99_INCREASE_SECONDS = 0.05
# By definition, one request in a hundred is slower than the 99th percentile.
SLOW_SHARE = 0.01


@dataclass
class Sample:
    """Counters: requests by status, durations by upper edge (cumulative, seconds), and answers.

    Of the answered texts: how many there are, how many abstained, how many have each label, and
    their scores by upper edge (cumulative).
    """

    statuses: Counter[int] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    confidence: Counter[float] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Sample) -> Sample:
        pairs = zip(self._counters, other._counters, strict=True)
        return Sample(*(own + others for own, others in pairs))

    def since(self, earlier: Sample) -> Sample:
        """The requests after `earlier`; all of them if the container was restarted since."""
        pairs = list(zip(self._counters, earlier._counters, strict=True))
        if not all(before <= now for now, before in pairs):
            return self
        return Sample(*(now - before for now, before in pairs))

    @property
    def _counters(self) -> tuple[Counter[Any], ...]:
        return self.statuses, self.buckets, self.labels, self.confidence, self.answers

    @property
    def requests(self) -> int:
        """The number of requests."""
        return self.statuses.total()

    @property
    def errors(self) -> int:
        """The number of requests that failed in the service or passed their deadline."""
        return sum(
            count
            for status, count in self.statuses.items()
            if status >= 500 or status == PREDICT_FAULT
        )

    @property
    def refused(self) -> float:
        """The share of requests that were answered 429."""
        return self.statuses[429] / self.requests if self.requests else 0.0

    @property
    def p99(self) -> float | None:
        """Seconds, interpolated within a bucket as Prometheus' histogram_quantile does."""
        total = self.buckets[math.inf]
        if total < LEAST_FOR_P99:
            return None
        rank, lower_edge, lower_count = 0.99 * total, 0.0, 0
        for edge in sorted(self.buckets | {math.inf: 0}):
            count = self.buckets[edge]
            if count >= rank:
                if math.isinf(edge):
                    return lower_edge
                share = (rank - lower_count) / (count - lower_count)
                return lower_edge + (edge - lower_edge) * share
            lower_edge, lower_count = edge, count
        return lower_edge

    def slower_than(self, seconds: float) -> float:
        """How many requests took longer, interpolated within a bucket."""
        total, lower_edge, lower_count = self.buckets[math.inf], 0.0, 0
        for edge in sorted(self.buckets | {math.inf: 0}):
            count = self.buckets[edge]
            if edge >= seconds:
                if math.isinf(edge):
                    return float(total - lower_count)
                share = (seconds - lower_edge) / (edge - lower_edge)
                return total - (lower_count + (count - lower_count) * share)
            lower_edge, lower_count = edge, count
        return 0.0


@dataclass(frozen=True)
class Baseline:
    """The requests to the pods that ran before, and since when they were counted."""

    sample: Sample
    since: str


def read_sample(text: str) -> Sample:
    """Read the counters of a `/metrics` page.

    Raises:
        ValueError: it is not a page of metrics.
    """
    sample = Sample()
    for family in text_string_to_metric_families(text):
        for metric in family.samples:
            _count(sample, metric.name, metric.labels, int(metric.value))
    return sample


def _count(sample: Sample, name: str, labels: Mapping[str, str], value: int) -> None:
    """Count a line of `/metrics`, if it is one of those that are compared."""
    if name == PREDICTIONS:
        sample.labels[labels["label"]] += value
    elif name == CONFIDENCE:
        sample.confidence[float(labels["le"])] += value
    elif name in (TEXTS, ABSTAINED):
        sample.answers[name] += value
    elif labels.get("route") not in CLASSIFYING_ROUTES:
        return
    elif name == REQUESTS:
        sample.statuses[int(labels["status"])] += value
    elif name == BUCKETS:
        sample.buckets[float(labels["le"])] += value


def total_since(first: dict[str, Sample], latest: dict[str, Sample]) -> Sample:
    """The requests to all pods after `first`; for a new pod, since it started."""
    return sum(
        (sample.since(first.get(name, Sample())) for name, sample in latest.items()), Sample()
    )


def choose_baseline(first: dict[str, Sample], latest: dict[str, Sample]) -> Baseline:
    """What the new pods are compared with: the requests to the old pods since the release began.

    All requests since the old pods started are from other hours and another load. They are used
    only if too few came since the release began.
    """
    # For a pod that was not ready when the release began, the counters of that time are unknown.
    known = {name: sample for name, sample in latest.items() if name in first}
    recent = total_since(first, known)
    if recent.requests >= LEAST_FOR_P99:
        return Baseline(recent, "the release began")
    return Baseline(total_since({}, latest), "the pods started")


def describe_sample(now: Sample, before: Sample) -> str:
    """The numbers that `find_trouble` judges, on a line."""
    words = [
        f"{now.requests:,} requests",
        f"{now.errors:,} errors",
        f"{now.refused:.1%} refused (before {before.refused:.1%})",
    ]
    if now.p99 is None:
        words.append(f"p99 needs {LEAST_FOR_P99} requests")
    else:
        known = "not known" if before.p99 is None else f"{before.p99 * 1000:.0f} ms"
        words.append(f"p99 {now.p99 * 1000:.0f} ms (before {known})")
    return ", ".join(words)


def find_trouble(now: Sample, before: Sample) -> str | None:
    """Why the release must be undone; None if nothing speaks against it."""
    if now.errors > max(MOST_ERRORS, MOST_ERROR_SHARE * now.requests):
        return f"{now.errors:,} of {now.requests:,} requests were answered 5xx or {PREDICT_FAULT}"
    if now.requests >= LEAST_FOR_P99 and now.refused > before.refused + MOST_REFUSED_INCREASE:
        return f"{now.refused:.0%} of the requests were refused (429), before {before.refused:.0%}"
    return find_slowness(now, before)


def find_slowness(now: Sample, before: Sample) -> str | None:
    """Whether p99 is surely worse; None as well if too few requests can decide that.

    The share of requests that are slower than the bound must be above one in a hundred with its
    whole 95 % interval (Wilson's). One or two slow requests of a few hundred prove nothing.
    """
    if now.p99 is None or before.p99 is None:
        return None
    bound = MOST_P99_RATIO * before.p99 + MOST_P99_INCREASE_SECONDS
    slow = now.slower_than(bound)
    lowest, _ = wilson(slow, now.buckets[math.inf])
    if lowest <= SLOW_SHARE:
        return None
    return (
        f"p99 is {now.p99 * 1000:.0f} ms, before {before.p99 * 1000:.0f} ms: at least "
        f"{lowest:.1%} of the requests took longer than {bound * 1000:.0f} ms"
    )
