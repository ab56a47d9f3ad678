"""What HTTP costs: CPU-milliseconds of the server per request.

    make bench-http

Without a model: the routes of the service with a classifier that computes nothing (requests still
pass the checks, the queue and an inference thread; with API keys, request ids and metrics), beside
a bare uvicorn + Starlette route that parses and answers the same JSON, and BentoML's typed API with
its default settings. With one: the service over 1 and 16 connections, beside the classifier called
in a loop with the same texts, one at a time. Interleaved in rounds; the figures are the median
round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from benchmarks.bench_batching import texts_of
from benchmarks.load import (
    HOST,
    ROOT,
    cpu_seconds,
    drive,
    free_port,
    machine,
    post,
    server,
    write_result,
)
from service.inference.classifier import Classifier

CONNECTIONS = 16
TOKENS = 14
BODY = json.dumps({"input": "where is my parcel, it should have been here on Tuesday"}).encode()
BIN = Path(sys.executable).parent
# The service as it is; the others compute nothing.
MODEL = "whetstone with its model"


def commands(port: int) -> dict[str, list[str]]:
    """How each server is started."""
    bentoml = [str(BIN / "bentoml"), "serve"]
    where = ["--host", HOST, "--port", str(port)]
    quiet = ["--log-level", "warning", "--no-access-log"]
    return {
        MODEL: [*bentoml, "service.service:TextClassifier", *where],
        "whetstone": [*bentoml, "benchmarks.http_peers:Whetstone", *where],
        "bare": [str(BIN / "uvicorn"), "benchmarks.http_peers:bare", *where, *quiet],
        "bentoml": [*bentoml, "benchmarks.http_peers:Typed", *where],
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/http.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3000, help="of each server in a round")
    arguments = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    classifier = Classifier.load(arguments.package, threads=1)
    texts = texts_of([TOKENS] * 300)
    key = secrets.token_hex(32)
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "bench-http"}
    asked = [post("/classify", json.dumps({"input": text}).encode(), headers) for text in texts]
    same = [post("/classify", BODY, headers)] * arguments.requests
    cpu: dict[str, list[float]] = {}
    median: dict[str, list[float]] = {}

    def note(name: str, used: float, latency: float) -> None:
        cpu.setdefault(name, []).append(used * 1000)
        median.setdefault(name, []).append(latency * 1000)

    with ExitStack() as servers:
        folder = servers.enter_context(tempfile.TemporaryDirectory(prefix="whetstone-bench-"))
        keys = Path(folder) / "keys"
        keys.write_text(f"sha256:{hashlib.sha256(key.encode()).hexdigest()} bench-http\n", "utf-8")
        running = {}
        for name in commands(0):
            port = free_port()
            environment = {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True"}
            if name.startswith("whetstone"):
                environment["WHETSTONE_PACKAGE"] = str(arguments.package.resolve())
                environment["WHETSTONE_API_KEYS_FILE"] = str(keys)
            pid = servers.enter_context(server(commands(port)[name], port, environment))
            running[name] = (port, pid)
            drive(port, asked, CONNECTIONS)
        for _ in tqdm(range(arguments.rounds), desc="rounds", unit="round"):
            note("the raw loop", *_raw(classifier, texts))
            for name, (port, pid) in running.items():
                requests = asked if name == MODEL else same
                before = cpu_seconds(pid)
                load = drive(port, requests, CONNECTIONS)
                used = cpu_seconds(pid) - before
                if set(load.statuses) != {200}:
                    raise SystemExit(f"{name} answered {dict(load.statuses)}")
                alone = drive(port, requests[:300], 1)
                note(name, used / len(requests), alone.percentile(0.5))
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "connections": CONNECTIONS,
        "requests_per_round": arguments.requests,
        "requests_per_round_with_model": len(texts),
        "tokens_with_model": TOKENS,
        "rounds": arguments.rounds,
        "cpu_ms_per_request": {
            name: round(statistics.median(values), 4) for name, values in cpu.items()
        },
        "cpu_ratio_to_bare": {
            name: round(
                statistics.median(a / b for a, b in zip(values, cpu["bare"], strict=True)), 2
            )
            for name, values in cpu.items()
            if name in ("whetstone", "bare", "bentoml")
        },
        "cpu_ratio_to_raw_loop": round(
            statistics.median(a / b for a, b in zip(cpu[MODEL], cpu["the raw loop"], strict=True)),
            2,
        ),
        "p50_ms_one_connection": {
            name: round(statistics.median(values), 3) for name, values in median.items()
        },
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


def _raw(classifier: Classifier, texts: list[str]) -> tuple[float, float]:
    """CPU seconds per text, and the median text's wall seconds, one text at a time."""
    latencies = []
    before = time.process_time()
    for text in texts:
        started = time.perf_counter()
        classifier.classify([text])
        latencies.append(time.perf_counter() - started)
    return (time.process_time() - before) / len(texts), statistics.median(latencies)


if __name__ == "__main__":
    main()
