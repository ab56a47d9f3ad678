"""Prometheus metrics of our routes; BentoML's `/metrics` shows them, of all workers together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Requests by route and status, and how long they took.

    Made in the worker: `prometheus_client` looks for BentoML's multi-process folder when it is
    imported, and that is set only there. Unknown routes are one, so no stranger can make a series.
    """

    def __init__(self) -> None:
        import prometheus_client

        self._requests: Counter = prometheus_client.Counter(
            "whetstone_requests", "Requests by route and status", ["route", "status"]
        )
        self._seconds: Histogram = prometheus_client.Histogram(
            "whetstone_request_duration_seconds",
            "From a request's arrival to its answer",
            ["route"],
            buckets=SECONDS,
        )
        # Looking a child up by its labels costs more than counting.
        self._by_status: dict[tuple[str, int], Counter] = {}
        self._by_route: dict[str, Histogram] = {}

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count one request; 499 stands for a caller who left."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._requests.labels(route, str(status))
            self._by_status[route, status] = counter
        counter.inc()
        histogram = self._by_route.get(route)
        if histogram is None:
            histogram = self._seconds.labels(route)
            self._by_route[route] = histogram
        histogram.observe(seconds)
