"""What HTTP costs, without a model: CPU-milliseconds of the server per request.

    make bench-http

The routes of the service with a classifier that computes nothing (requests still pass the checks,
the queue and an inference thread), beside a bare uvicorn + Starlette route that parses and answers
the same JSON, and BentoML's typed API with its default settings. Interleaved in rounds; the figure
is the median round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

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

CONNECTIONS = 16
BODY = json.dumps({"input": "where is my parcel, it should have been here on Tuesday"}).encode()
BIN = Path(sys.executable).parent


def commands(port: int) -> dict[str, list[str]]:
    """How each server is started."""
    bentoml = [str(BIN / "bentoml"), "serve"]
    where = ["--host", HOST, "--port", str(port)]
    quiet = ["--log-level", "warning", "--no-access-log"]
    return {
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

    requests = [post("/classify", BODY)] * arguments.requests
    cpu: dict[str, list[float]] = {}
    median: dict[str, list[float]] = {}
    with ExitStack() as servers:
        running = {}
        for name in commands(0):
            port = free_port()
            environment = {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True"}
            if name == "whetstone":
                environment["WHETSTONE_PACKAGE"] = str(arguments.package.resolve())
            pid = servers.enter_context(server(commands(port)[name], port, environment))
            running[name] = (port, pid)
            drive(port, requests[:1000], CONNECTIONS)
        for _ in tqdm(range(arguments.rounds), desc="rounds", unit="round"):
            for name, (port, pid) in running.items():
                before = cpu_seconds(pid)
                load = drive(port, requests, CONNECTIONS)
                used = cpu_seconds(pid) - before
                if set(load.statuses) != {200}:
                    raise SystemExit(f"{name} answered {dict(load.statuses)}")
                cpu.setdefault(name, []).append(used / len(requests) * 1000)
                alone = drive(port, requests[: len(requests) // 10], 1)
                median.setdefault(name, []).append(alone.percentile(0.5) * 1000)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "connections": CONNECTIONS,
        "requests_per_round": arguments.requests,
        "rounds": arguments.rounds,
        "cpu_ms_per_request": {
            name: round(statistics.median(values), 4) for name, values in cpu.items()
        },
        "cpu_ratio_to_bare": {
            name: round(
                statistics.median(a / b for a, b in zip(values, cpu["bare"], strict=True)), 2
            )
            for name, values in cpu.items()
        },
        "p50_ms_one_connection": {
            name: round(statistics.median(values), 3) for name, values in median.items()
        },
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
