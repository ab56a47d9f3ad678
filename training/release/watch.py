"""What a service's own metrics say of some seconds: errors, refusals, and the 99th percentile."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from service.schemas import PREDICT_FAULT

REQUESTS = "whetstone_requests_total"
BUCKETS = "whetstone_request_duration_seconds_bucket"
ANSWERING = ("/classify", "/v1/classify", "/predict")
# So few requests say nothing of a hundredth of them.
LEAST_FOR_P99 = 100
# One or two failed requests of a few are chance; more than these and this share are not.
ERRORS = 2
ERROR_SHARE = 0.01
REFUSED_MORE = 0.05
SLOWER = 2.0
SLOWER_BY_SECONDS = 0.05


@dataclass
class Sample:
    """Counters: requests by status, and durations by upper edge (cumulative, seconds)."""

    statuses: Counter[int] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.statuses + other.statuses, self.buckets + other.buckets)

    def since(self, earlier: Sample) -> Sample:
        """What came after `earlier`; all of it where the container was restarted since."""
        if not (earlier.statuses <= self.statuses and earlier.buckets <= self.buckets):
            return self
        return Sample(self.statuses - earlier.statuses, self.buckets - earlier.buckets)

    @property
    def requests(self) -> int:
        return self.statuses.total()

    @property
    def errors(self) -> int:
        """Faults of the service, or deadlines that passed."""
        return sum(
            count
            for status, count in self.statuses.items()
            if status >= 500 or status == PREDICT_FAULT
        )

    @property
    def refused(self) -> float:
        """Share of 429."""
        return self.statuses[429] / self.requests if self.requests else 0.0

    @property
    def p99(self) -> float | None:
        """Seconds, interpolated within a bucket as Prometheus' histogram_quantile does."""
        total = self.buckets[math.inf]
        if total < LEAST_FOR_P99:
            return None
        rank, below, before = 0.99 * total, 0.0, 0
        for edge in sorted(self.buckets | {math.inf: 0}):
            count = self.buckets[edge]
            if count >= rank:
                if math.isinf(edge):
                    return below
                return below + (edge - below) * (rank - before) / (count - before)
            below, before = edge, count
        return below


def read_sample(text: str) -> Sample:
    """The counters of a `/metrics` page.

    Raises:
        ValueError: it is none.
    """
    sample = Sample()
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.labels.get("route") not in ANSWERING:
                continue
            if one.name == REQUESTS:
                sample.statuses[int(one.labels["status"])] += int(one.value)
            elif one.name == BUCKETS:
                sample.buckets[float(one.labels["le"])] += int(one.value)
    return sample


def between(first: dict[str, Sample], latest: dict[str, Sample]) -> Sample:
    """What came to all pods; of one that is new since it started."""
    return sum((one.since(first.get(name, Sample())) for name, one in latest.items()), Sample())


def compared_with(first: dict[str, Sample], latest: dict[str, Sample]) -> tuple[Sample, str]:
    """What the release is compared with: what came to the old pods since it began; and since when.

    All since they started knows other hours and another load, and is taken where little came.
    """
    # Of a pod that was not ready when the release began nobody knows what came before.
    recent = between(first, {name: one for name, one in latest.items() if name in first})
    if recent.requests >= LEAST_FOR_P99:
        return recent, "the release began"
    return between({}, latest), "the pods started"


def trouble(now: Sample, before: Sample) -> str | None:
    """Why the release must not stay; None where nothing speaks against it."""
    if now.errors > max(ERRORS, ERROR_SHARE * now.requests):
        return f"{now.errors:,} of {now.requests:,} requests were answered 5xx or {PREDICT_FAULT}"
    if now.requests >= LEAST_FOR_P99 and now.refused > before.refused + REFUSED_MORE:
        return f"{now.refused:.0%} of the requests were refused (429), before {before.refused:.0%}"
    if (
        now.p99 is not None
        and before.p99 is not None
        and now.p99 > SLOWER * before.p99 + SLOWER_BY_SECONDS
    ):
        return f"p99 is {now.p99 * 1000:.0f} ms, before {before.p99 * 1000:.0f} ms"
    return None
