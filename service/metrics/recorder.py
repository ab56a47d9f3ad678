"""Record what the service does: counts of requests, and samples of the engine and the process.

The counts of this process are written to the files that all workers share a few times a second. The
engine is sampled once a second. Both also happen whenever somebody asks for `/metrics`, which
BentoML shows for all workers together.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psutil

from service.inference.engine import Engine
from service.inference.totals import FAILURES
from service.metrics.counting import Counting, Key
from service.metrics.definitions import (
    COUNTED_LABELS,
    COUNTERFACTUALS,
    DROP_REASONS,
    METRICS,
    OTHER,
    REFUSAL_REASONS,
    Kind,
)
from service.metrics.shared_files import forget_dead_workers, reserve_room
from service.package.manifest import Manifest, Profile

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger("bentoml.service")

SAMPLE_SECONDS = 1.0
# How often counts are written: each time costs as much as a request.
WRITE_SECONDS = 0.25


class Metrics:
    """All metrics of one worker.

    It must be made in the worker: `prometheus_client` looks for the folder that the workers share
    when it is imported, and BentoML sets this folder only there.
    """

    def __init__(
        self, manifest: Manifest, engine: Engine, registry: CollectorRegistry | None = None
    ) -> None:
        import prometheus_client

        forget_dead_workers()
        # Before the files are opened: prometheus_client maps them at their present size.
        reserve_room()
        self._metrics = _make_metrics(registry or prometheus_client.REGISTRY)
        self._children: dict[Key, Any] = {}
        label_series = {
            label: label if place < COUNTED_LABELS else OTHER
            for place, label in enumerate(manifest.labels)
        }
        self._counting = Counting(label_series)
        # The methods themselves: a call in between would cost as much as they do.
        self.request = self._counting.request
        self.answered = self._counting.answered
        self.refused = self._counting.refused
        self._begin_series(manifest, label_series)
        self._show_profile(manifest, label_series)
        self.ready = True
        self._engine = engine
        self._process = psutil.Process()
        self._sampling = threading.Lock()
        self._sampled = engine.state()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_sampling, name="metrics", daemon=True).start()

    def ignored(self, fields: int) -> None:
        """Count ignored fields of a request, without their names: those are the caller's."""
        self._series("whetstone_ignored_fields_total").inc(fields)

    def explained(self, *, found: bool, windows: int) -> None:
        """Count an explained text, and the windows that were read for it."""
        outcome = COUNTERFACTUALS[0 if found else 1]
        self._series("whetstone_explanations_total", outcome).inc()
        self._series("whetstone_explanation_windows_total").inc(windows)

    def captured(self, lines: int) -> None:
        """Count lines that were kept; from any thread."""
        self._series("whetstone_captured_total").inc(lines)

    def capture_dropped(self, reason: str, lines: int) -> None:
        """Count lines that were not kept; from any thread."""
        self._series("whetstone_capture_dropped_total", reason).inc(lines)

    def write(self) -> None:
        """Write the counts to the files that all workers share."""
        counts = self._counting.take()
        for key, count in counts.counters.items():
            self._series(*key).inc(count)
        for key, (total, *buckets) in counts.histograms.items():
            self._series(*key).add(total, buckets)

    def sample(self) -> None:
        """Sample the engine and the process."""
        with self._sampling:
            before, state = self._sampled, self._engine.state()
            self._sampled = state
            tokens = state.tokens - before.tokens
            padded = state.padded_tokens - before.padded_tokens
            self._series("whetstone_batches_total").inc(state.batches - before.batches)
            self._series("whetstone_batch_tokens_total").inc(tokens)
            self._series("whetstone_batch_padding_tokens_total").inc(padded - tokens)
            for reason, count in state.failed_jobs.items():
                new = count - before.failed_jobs[reason]
                self._series("whetstone_failures_total", reason).inc(new)
            gauges = {
                "whetstone_queue_texts": state.waiting_windows,
                "whetstone_queue_tokens": state.waiting_tokens,
                "whetstone_queue_tokenizing_seconds": state.waiting_seconds,
                "whetstone_queue_age_seconds": state.oldest_seconds,
                "whetstone_last_progress_timestamp_seconds": time.time() - state.running_seconds,
                "whetstone_ready": self.ready,
                "whetstone_resident_memory_bytes": self._process.memory_info().rss,
            }
            for name, value in gauges.items():
                self._series(name).set(value)

    def update(self) -> None:
        """`write` and `sample`; a failure is only logged, because requests must be answered."""
        try:
            forget_dead_workers()
            self.write()
            self.sample()
        except Exception as error:  # noqa: BLE001 - such as no file descriptor left
            logger.warning("metrics could not be sampled: %s", type(error).__name__)

    def close(self) -> None:
        """Write the last counts, and sample no more."""
        self._ended.set()
        self.update()

    def _show_profile(self, manifest: Manifest, label_series: Mapping[str, str]) -> None:
        """Show what the answers looked like when the model was trained, to compare them with."""
        profile = manifest.profile
        shares = profile.label_shares
        totals = dict.fromkeys(label_series.values(), 0.0)
        for label, series in label_series.items():
            totals[series] += shares.get(label, 0.0)
        for series, share in totals.items():
            self._series("whetstone_training_label_share", series).set(share)
        mean = mean_confidence(profile)
        # Where nothing is known there is no series: 0 would be an answer.
        if mean is not None:
            self._series("whetstone_training_confidence", manifest.version).set(mean)

    def _begin_series(self, manifest: Manifest, label_series: Mapping[str, str]) -> None:
        """Start series at 0, so that the rate of the first event can be computed."""
        for label in label_series.values():
            self._series("whetstone_predictions_total", label)
        for reason in REFUSAL_REASONS:
            self._series("whetstone_refusals_total", reason)
        for outcome in COUNTERFACTUALS:
            self._series("whetstone_explanations_total", outcome)
        for reason in DROP_REASONS:
            self._series("whetstone_capture_dropped_total", reason)
        for reason in FAILURES:
            self._series("whetstone_failures_total", reason)
        self._series(
            "whetstone_model_info",
            manifest.name,
            manifest.version,
            manifest.precision,
            manifest.task,
            str(len(manifest.labels)),
        ).set(1)

    def _keep_sampling(self) -> None:
        sampled = time.monotonic()
        while not self._ended.wait(WRITE_SECONDS):
            if time.monotonic() - sampled >= SAMPLE_SECONDS:
                sampled = time.monotonic()
                self.update()
            else:
                # `update` logs a full disk and the like.
                with contextlib.suppress(Exception):
                    self.write()

    def _series(self, name: str, *labels: str) -> Any:
        """The series of a metric, cached: to look it up by its labels costs more."""
        child = self._children.get((name, *labels))
        if child is None:
            metric = self._metrics[name]
            child = metric.labels(*labels) if labels else metric
            self._children[name, *labels] = child
        return child


def mean_confidence(profile: Profile) -> float | None:
    """The mean score of the validation rows, by the middle of each bin; None if it is not known."""
    counts, edges = profile.confidence_counts, profile.confidence_edges
    if not sum(counts) or len(edges) != len(counts) + 1:
        return None
    middles = ((low + high) / 2 for low, high in pairwise(edges))
    total: float = sum(map(operator.mul, middles, counts))
    return total / sum(counts)


def _make_metrics(registry: CollectorRegistry) -> dict[str, Any]:
    """The metrics of `prometheus_client`, by name."""
    import prometheus_client

    classes: dict[Kind, Any] = {
        "counter": prometheus_client.Counter,
        "gauge": prometheus_client.Gauge,
        "histogram": _histogram_class(),
    }
    metrics = {}
    for metric in METRICS:
        options: dict[str, Any] = {"registry": registry}
        if metric.buckets:
            options["buckets"] = metric.buckets
        if metric.workers:
            options["multiprocess_mode"] = metric.workers
        make = classes[metric.kind]
        metrics[metric.name] = make(metric.name, metric.about, metric.labels, **options)
    return metrics


def _histogram_class() -> type[Any]:
    """prometheus_client's histogram with a method that adds several values at once."""
    from prometheus_client import Histogram

    class BulkHistogram(Histogram):
        def add(self, total: float, counts: Sequence[float]) -> None:
            """Add the sum of values, and how many fell into each bucket.

            The last bucket has no upper bound.
            """
            self._sum.inc(total)
            for bucket, count in zip(self._buckets, counts, strict=True):
                if count:
                    bucket.inc(count)

    return BulkHistogram
