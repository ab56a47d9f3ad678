"""Prometheus metrics of our routes; BentoML's `/metrics` shows them, of all workers together.

What a request does is counted when it is answered, in this process, and written to the files that
the workers share a few times a second; what the engine holds is looked at once a second. Both
happen, too, whenever somebody asks. Every series is bounded: by routes, statuses, reasons, and
labels of the model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psutil

from service.counting import CONFIDENCES, SECONDS, Counting, Key
from service.inference.engine import Engine
from service.inference.totals import FAILURES
from service.model_package import Manifest

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger("bentoml.service")

# Labels with a series of their own; what comes after them in the model's order is OTHER.
COUNTED_LABELS = 200
OTHER = "other"
SAMPLE_SECONDS = 1.0
# What was counted is written so often: each time costs as much as answering a request does.
WRITE_SECONDS = 0.25
# Why a request is answered 429.
REASONS = ("queue_full", "deadline", "too_long")
# Bytes of each file that a worker has for its metrics, by the kinds that prometheus_client has
# files for. Every route of ours and of BentoML's with seven statuses took 134 KB of histograms; 200
# labels of a hundred characters would take 120 KB of counters. `all` is BentoML's own.
ROOM = {
    "counter": 1 << 19,
    "histogram": 1 << 19,
    **{f"gauge_{mode}": 1 << 16 for mode in ("all", "livemax", "livemin", "livesum")},
}


Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """A metric as Prometheus shows it; of a gauge how the workers' values become one."""

    name: str
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    workers: str = ""


METRICS = (
    Metric(
        "whetstone_requests_total",
        "counter",
        "requests; 499 stands for a caller who left",
        ("route", "status"),
    ),
    Metric(
        "whetstone_request_duration_seconds",
        "histogram",
        "from a request's arrival to its answer",
        ("route",),
        SECONDS,
    ),
    Metric(
        "whetstone_stage_duration_seconds",
        "histogram",
        "parts of that: tokenize, queue (to the first batch), inference (to the last one's end)",
        ("stage",),
        SECONDS,
    ),
    Metric(
        "whetstone_refusals_total",
        "counter",
        "429: queue_full, deadline (not to be met), too_long (even alone)",
        ("reason",),
    ),
    Metric(
        "whetstone_failures_total",
        "counter",
        "requests whose computation failed: error, not_finite (NaN or infinity for a logit)",
        ("reason",),
    ),
    Metric(
        "whetstone_ignored_fields_total",
        "counter",
        "fields of requests that no server known here has: ignored",
    ),
    Metric("whetstone_texts_total", "counter", "texts answered"),
    Metric("whetstone_tokens_total", "counter", "tokens of texts answered"),
    Metric("whetstone_truncated_texts_total", "counter", "texts of which only a part was read"),
    Metric("whetstone_abstained_texts_total", "counter", "answers below the abstain threshold"),
    Metric(
        "whetstone_predictions_total",
        "counter",
        f"texts by label answered; past the first {COUNTED_LABELS} labels of the model {OTHER}",
        ("label",),
    ),
    Metric(
        "whetstone_confidence",
        "histogram",
        "score of each text: the probability of its label",
        buckets=CONFIDENCES,
    ),
    Metric("whetstone_batches_total", "counter", "batches that the model ran"),
    Metric("whetstone_batch_tokens_total", "counter", "tokens in them, without padding"),
    Metric("whetstone_batch_padding_tokens_total", "counter", "padding in them"),
    Metric(
        "whetstone_queue_texts",
        "gauge",
        "texts that wait, of long ones their windows",
        workers="livesum",
    ),
    Metric("whetstone_queue_tokens", "gauge", "tokens that wait", workers="livesum"),
    Metric(
        "whetstone_queue_tokenizing_seconds",
        "gauge",
        "what the long texts that wait to be tokenized are likely to take one thread",
        workers="livesum",
    ),
    Metric(
        "whetstone_queue_age_seconds",
        "gauge",
        "how long the one that came first has waited",
        workers="livemax",
    ),
    Metric(
        "whetstone_last_progress_timestamp_seconds",
        "gauge",
        "now, less the time that the batch longest under way has taken",
        workers="livemin",
    ),
    Metric("whetstone_resident_memory_bytes", "gauge", "memory of the workers", workers="livesum"),
    Metric("whetstone_ready", "gauge", "workers that take requests", workers="livesum"),
    Metric(
        "whetstone_model_info",
        "gauge",
        "1; what is served",
        ("name", "version", "precision", "task", "labels"),
        workers="livemax",
    ),
)


class Metrics:
    """Everything that is counted.

    Made in the worker: `prometheus_client` looks for BentoML's multi-process folder when it is
    imported, and that is set only there.
    """

    def __init__(
        self, manifest: Manifest, engine: Engine, registry: CollectorRegistry | None = None
    ) -> None:
        import prometheus_client

        _forget_dead_workers()
        # Before the files are opened: prometheus_client maps as much as there is then.
        _reserve_room()
        kinds: dict[Kind, Any] = {
            "counter": prometheus_client.Counter,
            "gauge": prometheus_client.Gauge,
            "histogram": _histogram(),
        }
        self._made: dict[str, Any] = {}
        for metric in METRICS:
            more: dict[str, Any] = {"registry": registry or prometheus_client.REGISTRY}
            if metric.buckets:
                more["buckets"] = metric.buckets
            if metric.workers:
                more["multiprocess_mode"] = metric.workers
            make = kinds[metric.kind]
            self._made[metric.name] = make(metric.name, metric.about, metric.labels, **more)
        self._children: dict[Key, Any] = {}
        label_series = {
            label: label if place < COUNTED_LABELS else OTHER
            for place, label in enumerate(manifest.labels)
        }
        self._counting = Counting(label_series)
        # As they are: a call in between would cost as much as they do.
        self.request = self._counting.request
        self.answered = self._counting.answered
        self.refused = self._counting.refused
        # So that a rate can be taken of the first one, too.
        for label in label_series.values():
            self._of("whetstone_predictions_total", label)
        for reason in REASONS:
            self._of("whetstone_refusals_total", reason)
        for reason in FAILURES:
            self._of("whetstone_failures_total", reason)
        self._of(
            "whetstone_model_info",
            manifest.name,
            manifest.version,
            manifest.precision,
            manifest.task,
            str(len(manifest.labels)),
        ).set(1)
        self.ready = True
        self._engine = engine
        self._process = psutil.Process()
        self._sampling = threading.Lock()
        self._seen = engine.state()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_sampling, name="metrics", daemon=True).start()

    def ignored(self, fields: int) -> None:
        """Count fields of a request that were ignored; their names are strangers'."""
        self._of("whetstone_ignored_fields_total").inc(fields)

    def write(self) -> None:
        """Write what was counted to where all workers' metrics are read."""
        counted = self._counting.take()
        for key, count in counted.counters.items():
            self._of(*key).inc(count)
        for key, (total, *counts) in counted.histograms.items():
            self._of(*key).add(total, counts)

    def sample(self) -> None:
        """Look at the engine and at the process."""
        with self._sampling:
            state = self._engine.state()
            tokens = state.tokens - self._seen.tokens
            padded = state.padded_tokens - self._seen.padded_tokens
            self._of("whetstone_batches_total").inc(state.batches - self._seen.batches)
            self._of("whetstone_batch_tokens_total").inc(tokens)
            self._of("whetstone_batch_padding_tokens_total").inc(padded - tokens)
            for reason, count in state.failed_jobs.items():
                new = count - self._seen.failed_jobs[reason]
                self._of("whetstone_failures_total", reason).inc(new)
            self._seen = state
            self._of("whetstone_queue_texts").set(state.waiting_windows)
            self._of("whetstone_queue_tokens").set(state.waiting_tokens)
            self._of("whetstone_queue_tokenizing_seconds").set(state.waiting_seconds)
            self._of("whetstone_queue_age_seconds").set(state.oldest_seconds)
            now = time.time()
            self._of("whetstone_last_progress_timestamp_seconds").set(now - state.running_seconds)
            self._of("whetstone_ready").set(self.ready)
            self._of("whetstone_resident_memory_bytes").set(self._process.memory_info().rss)

    def look(self) -> None:
        """`write` and `sample`, for those who have something else to do: a fault is only logged."""
        try:
            _forget_dead_workers()
            self.write()
            self.sample()
        except Exception as error:  # noqa: BLE001 - such as no file descriptor left
            logger.warning("metrics could not be sampled: %s", type(error).__name__)

    def close(self) -> None:
        """Sample no more; what was counted is written."""
        self._ended.set()
        self.look()

    def _keep_sampling(self) -> None:
        sampled = time.monotonic()
        while not self._ended.wait(WRITE_SECONDS):
            if time.monotonic() - sampled >= SAMPLE_SECONDS:
                sampled = time.monotonic()
                self.look()
            else:
                # A full disk and the like are said by `look`.
                with contextlib.suppress(Exception):
                    self.write()

    def _of(self, name: str, *labels: str) -> Any:
        """The series of a metric; looking it up by its labels each time would cost more."""
        child = self._children.get((name, *labels))
        if child is None:
            metric = self._made[name]
            child = metric.labels(*labels) if labels else metric
            self._children[name, *labels] = child
        return child


def _histogram() -> type[Any]:
    """prometheus_client's histogram, to which several values can be added at once."""
    from prometheus_client import Histogram

    class Added(Histogram):
        def add(self, total: float, counts: Sequence[float]) -> None:
            """Add the sum of values and how many fell into each bucket, the endless one last."""
            self._sum.inc(total)
            for bucket, count in zip(self._buckets, counts, strict=True):
                if count:
                    bucket.inc(count)

    return Added


def _reserve_room() -> None:
    """Let this worker's files have their room on the disk now, and as much as they come to need.

    prometheus_client makes files with holes and maps them, a larger one when the first is full. A
    write to a hole when the disk is full is no error but a signal, which ends the process.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None or not hasattr(os, "posix_fallocate"):
        return
    for kind, room in ROOM.items():
        path = Path(folder) / f"{kind}_{os.getpid()}.db"
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, room)
        except OSError as error:
            logger.warning("%s has no room reserved: %s", path, error.strerror)


def _forget_dead_workers() -> None:
    """Take the gauges of workers that are no more out of the sums: nobody else does."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return
    from prometheus_client import multiprocess

    pids = {file.stem.rpartition("_")[2] for file in Path(folder).glob("gauge_live*_*.db")}
    for pid in pids:
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            # Another worker may have been quicker.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


def metrics_table() -> str:
    """All metrics as a table in Markdown: `python -m service.metrics`, for the README."""
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.about} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(metrics_table())  # noqa: T201
