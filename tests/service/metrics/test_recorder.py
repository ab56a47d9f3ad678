"""Metrics: what is counted, sampled and exported, by one worker and by two."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.inference.capacity import Capacity
from service.inference.classifier import Classifier, Prediction
from service.inference.engine import Engine
from service.metrics.definitions import COUNTED_LABELS, METRICS
from service.metrics.recorder import Metrics
from service.package.manifest import Profile, read_manifest
from tests.conftest import example_rows
from tests.servers import SERVICE, classify, get, samples, serving
from tests.service.inference.engines import Caller, Gate, window

SECONDS = 60


@contextmanager
def metrics_of(package: Path, gate: Gate, **fields: object) -> Iterator[tuple[Metrics, Engine]]:
    """Metrics of an engine in this process."""
    engine = Engine(gate, Capacity(threads=1))
    manifest = read_manifest(package).model_copy(update=fields)
    registry = CollectorRegistry()
    metrics = Metrics(manifest, engine, registry)
    metrics.registry = registry  # type: ignore[attr-defined]
    try:
        yield metrics, engine
    finally:
        gate.open()
        metrics.close()
        engine.close(SECONDS)


def shown(metrics: Metrics) -> dict[tuple[str, ...], float]:
    metrics.write()
    return samples(generate_latest(metrics.registry).decode())  # type: ignore[attr-defined]


def prediction(label: str, score: float, **fields: object) -> Prediction:
    probs = np.asarray([score, 1 - score], dtype=np.float32)
    values = {"labels": None, "abstained": None, "tokens": 5, "windows": 1, "truncated": False}
    return Prediction(label=label, score=score, probs=probs, **{**values, **fields})  # type: ignore[arg-type]


def test_answers_are_counted_by_label_score_and_length(tiny_package: Path) -> None:
    with metrics_of(tiny_package, Gate()) as (metrics, _):
        answers = [
            prediction("praise", 0.93),
            prediction("praise", 0.41, abstained=True),
            prediction("returns", 0.62, truncated=True, tokens=32),
            prediction("returns", 0.7, labels=("returns", "delivery")),
            prediction("returns", 0.2, labels=()),
        ]
        metrics.answered(answers, {"tokenize": 0.001, "queue": 0.3})
        metrics_now = shown(metrics)
    assert metrics_now["whetstone_texts_total",] == 5
    assert metrics_now["whetstone_tokens_total",] == 52
    assert metrics_now["whetstone_predictions_total", "praise"] == 2
    assert metrics_now["whetstone_predictions_total", "returns"] == 2
    assert metrics_now["whetstone_predictions_total", "delivery"] == 1
    assert metrics_now["whetstone_abstained_texts_total",] == 1
    assert metrics_now["whetstone_truncated_texts_total",] == 1
    assert metrics_now["whetstone_confidence_bucket", "0.65"] == 3
    assert metrics_now["whetstone_stage_duration_seconds_sum", "queue"] == pytest.approx(0.3)


def test_the_engine_is_sampled(tiny_package: Path) -> None:
    gate = Gate(is_open=False)
    with metrics_of(tiny_package, gate) as (metrics, engine):
        caller = Caller(engine)
        caller.ask(window(0, 4))
        gate.wait_until_busy()
        caller.ask(window(1, 20), window(2, 19))
        time.sleep(0.05)
        metrics.sample()
        before = shown(metrics)
        gate.open()
        caller.wait_for(2)
        metrics.sample()
        after = shown(metrics)
    assert before["whetstone_queue_texts",] == 2
    assert before["whetstone_queue_tokens",] == 39
    assert before["whetstone_queue_age_seconds",] >= 0.05
    assert before["whetstone_last_progress_timestamp_seconds",] <= time.time() - 0.05
    assert before["whetstone_batch_tokens_total",] == 0
    assert after["whetstone_batches_total",] == 2
    assert after["whetstone_batch_tokens_total",] == 43
    assert after["whetstone_batch_padding_tokens_total",] == 1
    assert after["whetstone_queue_tokens",] == 0
    assert after["whetstone_resident_memory_bytes",] > 10e6


def test_the_number_of_series_is_bounded_for_any_number_of_labels(tiny_package: Path) -> None:
    labels = tuple(f"label {number}" for number in range(COUNTED_LABELS + 300))
    with metrics_of(tiny_package, Gate(), labels=labels) as (metrics, _):
        metrics.answered([prediction(label, 0.5) for label in labels], {})
        metrics_now = shown(metrics)
    series = [key for key in metrics_now if key[0] == "whetstone_predictions_total"]
    assert len(series) == COUNTED_LABELS + 1
    assert metrics_now["whetstone_predictions_total", "other"] == 300


PROFILE = Profile(
    label_priors={"a": 0.5, "b": 0.5},
    answer_shares={"a": 0.75, "b": 0.25},
    confidence_edges=[0.0, 0.5, 1.0],
    confidence_counts=[1, 3],
)


def trained(
    package: Path, profile: Profile, labels: tuple[str, ...]
) -> dict[tuple[str, ...], float]:
    with metrics_of(package, Gate(), labels=labels, profile=profile, version="v") as (metrics, _):
        found = shown(metrics)
    return {key: value for key, value in found.items() if key[0].startswith("whetstone_training")}


def test_the_answers_of_the_training_are_shown_beside_those_of_now(tiny_package: Path) -> None:
    assert trained(tiny_package, PROFILE, ("a", "b", "c")) == {
        ("whetstone_training_label_share", "a"): 0.75,
        ("whetstone_training_label_share", "b"): 0.25,
        ("whetstone_training_label_share", "c"): 0.0,
        ("whetstone_training_confidence", "v"): (0.25 + 3 * 0.75) / 4,
    }
    # An older package knows the labels of its training rows, and no scores.
    older = Profile(label_priors=PROFILE.label_priors)
    assert trained(tiny_package, older, ("a", "b")) == {
        ("whetstone_training_label_share", "a"): 0.5,
        ("whetstone_training_label_share", "b"): 0.5,
    }


def test_labels_that_share_a_series_share_what_the_training_says(tiny_package: Path) -> None:
    labels = tuple(f"label {number}" for number in range(COUNTED_LABELS + 2))
    shares = {**dict.fromkeys(labels, 0.0), labels[-1]: 0.25, labels[-2]: 0.5, labels[0]: 0.25}
    found = trained(tiny_package, Profile(answer_shares=shares), labels)
    assert found["whetstone_training_label_share", "other"] == 0.75
    assert len(found) == COUNTED_LABELS + 1


def test_each_of_two_workers_shows_the_sum_of_both(tiny_package: Path, tmp_path: Path) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_WORKERS": "2"}
    texts = [row["text"] for row in example_rows("test")][:60]
    log = tmp_path / "log"
    with serving(SERVICE, environment, log=log) as address, ThreadPoolExecutor(8) as callers:
        deadline = time.monotonic() + SECONDS
        while log.read_text("utf-8").count("golden texts answered as recorded") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answers = list(callers.map(lambda text: classify(address, {"input": text}), texts))
        time.sleep(1.2)
        metrics_now = [samples(get(address, "/metrics")[1]) for _ in range(6)]
    labels = Counter(answer["data"][0]["label"] for answer in answers)
    for seen in metrics_now:
        assert seen["whetstone_requests_total", "/classify", "200"] == len(texts)
        assert seen["whetstone_texts_total",] == len(texts)
        assert seen["whetstone_confidence_count",] == len(texts)
        for label, count in labels.items():
            assert seen["whetstone_predictions_total", label] == count
        tokens = sum(answer["usage"]["total_tokens"] for answer in answers)
        assert seen["whetstone_tokens_total",] == tokens
        assert seen["whetstone_ready",] == 2
        # Two processes, each with a model.
        assert seen["whetstone_resident_memory_bytes",] > 150e6


def test_exactly_the_defined_metrics_are_exported(tiny_package: Path) -> None:
    with serving(SERVICE, {"WHETSTONE_PACKAGE": str(tiny_package)}) as address:
        classify(address, {"input": "hello"})
        exposed = get(address, "/metrics")[1]
    families = {
        family.name: family.type
        for family in text_string_to_metric_families(exposed)
        if family.name.startswith("whetstone")
    }
    assert families == {metric.name.removesuffix("_total"): metric.kind for metric in METRICS}


def test_refusals_are_counted_by_reason(tiny_package: Path) -> None:
    classifier = Classifier.load(tiny_package, threads=1)
    tokens = sum(map(len, classifier.encode(["a b c"])[0].windows))
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_THREADS": "1",
        "WHETSTONE_QUEUE_TOKENS": str(tokens),
    }
    with serving(SERVICE, environment) as address, ThreadPoolExecutor(32) as callers:

        def ask(_: int) -> int:
            try:
                classify(address, {"input": "a b c"})
            except OSError as error:
                return int(getattr(error, "code", 0))
            return 200

        statuses = Counter(callers.map(ask, range(400)))
        metrics_now = samples(get(address, "/metrics")[1])
    assert statuses[429] > 0
    assert statuses[200] + statuses[429] == 400
    assert metrics_now["whetstone_refusals_total", "queue_full"] == statuses[429]
    assert metrics_now["whetstone_refusals_total", "too_long"] == 0
