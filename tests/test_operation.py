"""What operators live by: metrics of several workers, draining, and a wedge that is noticed."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.classifier import Classifier, Prediction
from service.inference.engine import Engine
from service.metrics import COUNTED_LABELS, METRICS, Metrics
from service.model_package import read_manifest
from tests.conftest import example_rows
from tests.inference.test_engine import Caller, Gate, window
from tests.servers import classify, get, serving, serving_process

SERVICE = "service.service:TextClassifier"
BODY = json.dumps({"input": "where is my parcel"}).encode()
REQUEST = (
    b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY
SECONDS = 60


def samples(exposed: str) -> dict[tuple[str, ...], float]:
    """Values by name and the values of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


@contextmanager
def metrics_of(package: Path, gate: Gate, **fields: object) -> Iterator[tuple[Metrics, Engine]]:
    """Metrics of an engine in this process."""
    engine = Engine(gate, threads=1)
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


def test_answers_are_counted_by_what_they_are(tiny_package: Path) -> None:
    with metrics_of(tiny_package, Gate()) as (metrics, _):
        answers = [
            prediction("praise", 0.93),
            prediction("praise", 0.41, abstained=True),
            prediction("returns", 0.62, truncated=True, tokens=32),
            prediction("returns", 0.7, labels=("returns", "delivery")),
            prediction("returns", 0.2, labels=()),
        ]
        metrics.answered(answers, {"tokenize": 0.001, "queue": 0.3})
        found = shown(metrics)
    assert found["whetstone_texts_total",] == 5
    assert found["whetstone_tokens_total",] == 52
    assert found["whetstone_predictions_total", "praise"] == 2
    assert found["whetstone_predictions_total", "returns"] == 2
    assert found["whetstone_predictions_total", "delivery"] == 1
    assert found["whetstone_abstained_texts_total",] == 1
    assert found["whetstone_truncated_texts_total",] == 1
    assert found["whetstone_confidence_bucket", "0.65"] == 3
    assert found["whetstone_stage_duration_seconds_sum", "queue"] == pytest.approx(0.3)


def test_the_engine_is_looked_at(tiny_package: Path) -> None:
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


def test_series_are_bounded_however_many_labels_a_model_has(tiny_package: Path) -> None:
    labels = tuple(f"label {number}" for number in range(COUNTED_LABELS + 300))
    with metrics_of(tiny_package, Gate(), labels=labels) as (metrics, _):
        metrics.answered([prediction(label, 0.5) for label in labels], {})
        found = shown(metrics)
    series = [key for key in found if key[0] == "whetstone_predictions_total"]
    assert len(series) == COUNTED_LABELS + 1
    assert found["whetstone_predictions_total", "other"] == 300


def test_what_two_workers_count_is_one_sum_whoever_is_asked(
    tiny_package: Path, tmp_path: Path
) -> None:
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
        found = [samples(get(address, "/metrics")[1]) for _ in range(6)]
    labels = Counter(answer["data"][0]["label"] for answer in answers)
    for seen in found:
        assert seen["whetstone_requests_total", "/classify", "200"] == len(texts)
        assert seen["whetstone_texts_total",] == len(texts)
        assert seen["whetstone_confidence_count",] == len(texts)
        for label, count in labels.items():
            assert seen["whetstone_predictions_total", label] == count
        tokens = sum(answer["usage"]["total_tokens"] for answer in answers)
        assert seen["whetstone_tokens_total",] == tokens
        assert seen["whetstone_ready",] == 2
        # Two processes with a model each.
        assert seen["whetstone_resident_memory_bytes",] > 150e6


def test_every_metric_is_exported_and_no_other(tiny_package: Path) -> None:
    with serving(SERVICE, {"WHETSTONE_PACKAGE": str(tiny_package)}) as address:
        classify(address, {"input": "hello"})
        exposed = get(address, "/metrics")[1]
    families = {
        family.name: family.type
        for family in text_string_to_metric_families(exposed)
        if family.name.startswith("whetstone")
    }
    assert families == {metric.name.removesuffix("_total"): metric.kind for metric in METRICS}


class Client(threading.Thread):
    """A caller in a closed loop; `lost` are requests that nobody answered though they had to be.

    They had to where they were written before the signal, or on a connection that had answered.
    """

    def __init__(self, address: str, signalled: list[float]) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self.closes = 0
        self.lost: list[str] = []
        self._address = urlsplit(address)
        self._signalled = signalled

    def run(self) -> None:
        while self._use_one_connection():
            pass

    def _use_one_connection(self) -> bool:
        with closing(http.client.HTTPConnection(self._address.netloc, timeout=SECONDS)) as opened:
            try:
                opened.connect()
            except OSError:
                return False
            return self._ask_again_and_again(opened)

    def _ask_again_and_again(self, connection: http.client.HTTPConnection) -> bool:
        """Whether the server asked for a new connection."""
        has_answered = False
        while True:
            written = 0.0
            try:
                connection.request("POST", "/classify", BODY, {"Content-Type": "application/json"})
                written = time.monotonic()
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                before = written and not (self._signalled and written > self._signalled[0])
                if has_answered or before:
                    self.lost.append(repr(error))
                return False
            self.statuses[answer.status] += 1
            has_answered = True
            if answer.getheader("connection") == "close":
                self.closes += 1
                return True


def test_nothing_that_came_before_the_signal_goes_unanswered(
    tiny_package: Path, tmp_path: Path
) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_DRAIN_MS": "2000"}
    log = tmp_path / "log"
    with serving_process(SERVICE, environment, log=log) as (address, process):
        signalled: list[float] = []
        clients = [Client(address, signalled) for _ in range(16)]
        for client in clients:
            client.start()
        # One that answered once and stays silent until the drain has begun.
        silent = http.client.HTTPConnection(urlsplit(address).netloc, timeout=SECONDS)
        silent.request("GET", "/readyz")
        assert silent.getresponse().read()
        time.sleep(1)
        # Some of these the worker has not accepted yet when the signal comes.
        waiting = []
        for _ in range(200):
            connection = socket.create_connection(
                (urlsplit(address).hostname, urlsplit(address).port), timeout=SECONDS
            )
            connection.sendall(REQUEST)
            waiting.append(connection)
        signalled.append(time.monotonic())
        process.send_signal(signal.SIGTERM)
        while "draining" not in log.read_text("utf-8"):
            assert time.monotonic() < signalled[0] + SECONDS
            time.sleep(0.01)
        silent.request("GET", "/readyz")
        answer = silent.getresponse()
        assert (answer.status, answer.getheader("connection")) == (503, "close")
        answer.read()
        silent.close()
        heads = []
        for connection in waiting:
            with connection:
                heads.append(connection.recv(12))
        assert set(heads) == {b"HTTP/1.1 200"}
        for client in clients:
            client.join(SECONDS)
        process.wait(SECONDS)
        took = time.monotonic() - signalled[0]
    assert [client.lost for client in clients if client.lost] == []
    assert {status for client in clients for status in client.statuses} == {200}
    assert all(client.closes for client in clients)
    # The drain, and what uvicorn and BentoML need to end.
    assert took < 2 + 20


def test_without_open_connections_there_is_nothing_to_wait_for(
    tiny_package: Path, tmp_path: Path
) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_DRAIN_MS": "60000"}
    with serving_process(SERVICE, environment, log=tmp_path / "log") as (address, process):
        classify(address, {"input": "hello"})
        process.terminate()
        process.wait(30)


def test_a_wedged_thread_fails_the_liveness_probe_and_does_not_keep_the_server(
    tiny_package: Path, tmp_path: Path
) -> None:
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_THREADS": "2",
        "WHETSTONE_STALL_MS": "700",
        "WHETSTONE_TIMEOUT_MS": "1500",
        "WHETSTONE_BODY_TIMEOUT_MS": "1500",
        "WHETSTONE_ACCESS_LOG": "1",
        "WEDGE": str(tmp_path / "wedge"),
    }
    target = "tests.wedged:TextClassifier"
    log = tmp_path / "log"
    with serving_process(target, environment, log=log) as (address, process):
        assert get(address, "/livez")[0] == 200
        (tmp_path / "wedge").touch()
        body = {"input": "a b c d " * 20}
        with pytest.raises(OSError, match="504"):
            classify(address, body)
        # The other thread still answers; the probe looks at the one that does not.
        classify(address, {"input": "hello"})
        assert get(address, "/livez")[0] == 503
        found = samples(get(address, "/metrics")[1])
        assert found["whetstone_last_progress_timestamp_seconds",] < time.time() - 1
        # What one looks for after the restart.
        assert found["whetstone_requests_total", "/livez", "200"] == 1
        assert found["whetstone_requests_total", "/livez", "503"] == 1
        lines = [line for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
        logged = [json.loads(line) for line in lines]
        assert [line["status"] for line in logged if line["route"] == "/livez"] == [503]
        assert {line["route"] for line in logged} >= {"/classify"}
        assert "/metrics" not in {line["route"] for line in logged}
        process.terminate()
        process.wait(30)


def test_the_first_line_says_what_is_served_and_within_which_limits(
    tiny_package: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_MAX_TEXTS": "7"}
    with serving(SERVICE, environment, log=log):
        pass
    manifest = read_manifest(tiny_package)
    (line,) = [line for line in log.read_text("utf-8").splitlines() if "serving tiny:" in line]
    expected = f"tiny:{manifest.version}, {manifest.precision}, 3 labels, no API key needed, on cpu"
    assert expected in line
    assert re.search(r"\d+ threads, batches of 128 tokens", line)
    assert "at most 7 texts of 100000 characters in 1048576 bytes" in line


def test_a_request_that_is_refused_is_counted_by_its_reason(tiny_package: Path) -> None:
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
        found = samples(get(address, "/metrics")[1])
    assert statuses[429] > 0
    assert statuses[200] + statuses[429] == 400
    assert found["whetstone_refusals_total", "queue_full"] == statuses[429]
    assert found["whetstone_refusals_total", "too_long"] == 0
