"""How far one process goes: requests a second and CPU per request, without a model.

    make bench-scale

The service with a classifier that computes nothing (requests pass the checks, the queue and an
inference thread), by one and two workers, over 1 to 1,024 connections in closed loops. The load
generator has the same cores. What one event loop can answer in a second, divided by what a core
computes in one, is the number of cores from which on a second worker pays: `make bench-sizing` has
the second figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.bench_http import BODY, commands
from benchmarks.load import (
    ROOT,
    cpu_seconds,
    drive,
    free_port,
    machine,
    post,
    server,
    thread_seconds,
    write_result,
)

CONNECTIONS = (1, 4, 16, 64, 256, 1024)
WORKERS = (1, 2)


def measure(port: int, pid: int, connections: int, requests: int) -> dict[str, float]:
    """One load; CPU in milliseconds per request, of all processes of the server."""
    before, threads = cpu_seconds(pid), thread_seconds(pid)
    load = drive(port, [post("/classify", BODY)] * requests, connections)
    cpu = cpu_seconds(pid) - before
    after = thread_seconds(pid)
    loop = after.get("event loop", 0.0) - threads.get("event loop", 0.0)
    answered = len(load.latencies)
    return {
        "answered": answered,
        "refused": requests - answered,
        "requests_per_second": requests / load.seconds,
        "cpu_ms": cpu / requests * 1000,
        "event_loop_cpu_ms": loop / requests * 1000,
        "p50_ms": load.percentile(0.5) * 1000,
        "p99_ms": load.percentile(0.99) * 1000,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the README."""
    names = {
        "workers": "workers",
        "connections": "connections",
        "requests_per_second": "requests/s",
        "cpu_ms": "CPU ms a request",
        "event_loop_cpu_ms": "of it one loop",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
    }
    lines = [f"| {' | '.join(names.values())} |", "|" + "---|" * len(names)]
    for row in result["loads"]:
        cells = [f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.3g}" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def most_cores(result: Mapping[str, Any], sizing: Mapping[str, Any]) -> str:
    """How many cores one event loop can feed, for texts of 16 tokens, as a sentence."""
    (loop,) = [
        row["event_loop_cpu_ms"]
        for row in result["loads"]
        if (row["workers"], row["connections"]) == (1, 64)
    ]
    found = [
        f"{one['cpu_ms_per_text']['16'] / loop:.0f} of {one['model'].partition(' (')[0]} in "
        f"{one['precision']}"
        for one in sizing["sizes"]
    ]
    processors = [one["machine"]["processor"] for one in (result, sizing)]
    apart = f" (loop on {processors[0]}, models on {processors[1]})"
    return (
        f"At 64 connections one loop takes {loop:.2f} ms a request. With texts of 16 tokens, it "
        f"can feed this many cores at most: {', '.join(found)}"
        f"{apart if processors[0] != processors[1] else ''}."
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="of each load")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found: dict[tuple[int, int], list[dict[str, float]]] = {}
    with tqdm(total=arguments.rounds * len(WORKERS) * len(CONNECTIONS), unit="load") as bar:
        for _ in range(arguments.rounds):
            for workers in WORKERS:
                port = free_port()
                environment = {
                    "WHETSTONE_PACKAGE": str(arguments.package.resolve()),
                    "WHETSTONE_WORKERS": str(workers),
                }
                with server(commands(port)["whetstone"], port, environment) as pid:
                    measure(port, pid, 16, 1000)
                    for connections in CONNECTIONS:
                        cell = measure(port, pid, connections, arguments.requests)
                        found.setdefault((workers, connections), []).append(cell)
                        bar.update()
    rows: list[dict[str, Any]] = [
        {
            "workers": workers,
            "connections": connections,
            **{
                name: round(statistics.median(cell[name] for cell in cells), 3) for name in cells[0]
            },
        }
        for (workers, connections), cells in found.items()
    ]
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": arguments.rounds,
        "requests": arguments.requests,
        "loads": rows,
    }
    write_result(arguments.out, result)
    print(markdown(result))
    sizing = json.loads((ROOT / "benchmarks/results/sizing.json").read_text("utf-8"))
    print(most_cores(result, sizing))
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
