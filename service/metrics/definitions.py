"""All metrics. Routes, statuses, reasons and labels of the model bound the number of series."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from service.capture.writer import DropReason
from service.inference.errors import Reason

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CONFIDENCES = tuple(step / 20 for step in range(1, 21))
# The first labels of a model have a series each; all others share the series OTHER.
COUNTED_LABELS = 200
OTHER = "other"
# Why a request is answered with 429.
REFUSAL_REASONS: tuple[str, ...] = get_args(Reason)

# Whether an explanation has words whose removal changes the label.
COUNTERFACTUALS = ("found", "none")

DROP_REASONS: tuple[str, ...] = get_args(DropReason)

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """A metric as Prometheus shows it.

    `workers` is how the values of a gauge in several workers become one value, as
    `prometheus_client` names it.
    """

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
        "requests; status 499 means that the caller left",
        ("route", "status"),
    ),
    Metric(
        "whetstone_request_duration_seconds",
        "histogram",
        "time from a request's arrival to its answer",
        ("route",),
        SECONDS,
    ),
    Metric(
        "whetstone_stage_duration_seconds",
        "histogram",
        "its parts: tokenize, queue (until the first batch), inference (until the last batch ends)",
        ("stage",),
        SECONDS,
    ),
    Metric(
        "whetstone_refusals_total",
        "counter",
        "answers with 429: queue_full, deadline (cannot be met), too_long (not even alone)",
        ("reason",),
    ),
    Metric(
        "whetstone_failures_total",
        "counter",
        "requests whose computation failed: error, not_finite (the model computed NaN or infinity)",
        ("reason",),
    ),
    Metric(
        "whetstone_ignored_fields_total",
        "counter",
        "unknown fields of requests, which are ignored",
    ),
    Metric("whetstone_texts_total", "counter", "answered texts"),
    Metric("whetstone_tokens_total", "counter", "tokens of answered texts"),
    Metric("whetstone_truncated_texts_total", "counter", "texts of which only a part was read"),
    Metric("whetstone_abstained_texts_total", "counter", "answers below the abstain threshold"),
    Metric(
        "whetstone_predictions_total",
        "counter",
        f"texts by answered label; the labels after the first {COUNTED_LABELS} count as {OTHER}",
        ("label",),
    ),
    Metric(
        "whetstone_confidence",
        "histogram",
        "score of each text: the probability of its label",
        buckets=CONFIDENCES,
    ),
    Metric(
        "whetstone_training_label_share",
        "gauge",
        "share of the validation rows that the served model answers with a label; of an older "
        "package, the share of the training rows that have it",
        ("label",),
        workers="livemax",
    ),
    Metric(
        "whetstone_training_confidence",
        "gauge",
        "mean score of the validation rows; absent where the package does not know it",
        ("version",),
        workers="livemax",
    ),
    Metric(
        "whetstone_explanations_total",
        "counter",
        "explained texts; whether words were found whose removal changes the label: found, none",
        ("counterfactual",),
    ),
    Metric(
        "whetstone_explanation_windows_total",
        "counter",
        "windows that the model read for explanations",
    ),
    Metric("whetstone_captured_total", "counter", "lines of answers and feedback that were kept"),
    Metric(
        "whetstone_capture_dropped_total",
        "counter",
        "lines that were not kept: queue (too many wait), store (away until the end), error",
        ("reason",),
    ),
    Metric("whetstone_batches_total", "counter", "batches that the model computed"),
    Metric("whetstone_batch_tokens_total", "counter", "tokens in these batches, without padding"),
    Metric("whetstone_batch_padding_tokens_total", "counter", "padding tokens in these batches"),
    Metric(
        "whetstone_queue_texts",
        "gauge",
        "texts that wait; a long text counts once for each of its windows",
        workers="livesum",
    ),
    Metric("whetstone_queue_tokens", "gauge", "tokens that wait", workers="livesum"),
    Metric(
        "whetstone_queue_tokenizing_seconds",
        "gauge",
        "estimated time on one thread to tokenize the long texts that wait",
        workers="livesum",
    ),
    Metric(
        "whetstone_queue_age_seconds",
        "gauge",
        "how long the oldest waiting request has waited",
        workers="livemax",
    ),
    Metric(
        "whetstone_last_progress_timestamp_seconds",
        "gauge",
        "when the oldest running batch began; the present where none runs",
        workers="livemin",
    ),
    Metric("whetstone_resident_memory_bytes", "gauge", "memory of the workers", workers="livesum"),
    Metric("whetstone_ready", "gauge", "workers that accept requests", workers="livesum"),
    Metric(
        "whetstone_model_info",
        "gauge",
        "always 1; its labels describe the served model",
        ("name", "version", "precision", "task", "labels"),
        workers="livemax",
    ),
)


def metrics_table() -> str:
    """All metrics as a table in Markdown."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.about} |")
    return "\n".join(lines)
