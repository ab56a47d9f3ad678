"""What capturing costs: a server that keeps every answer, beside one that keeps none.

    make bench-capture

Two servers of one package are up. One of them captures every answer with its text into a folder.
They are asked in turn, round by round, by the same short texts, each text in a request of its own.
The wanted figure is at most 3 % more, by the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.bench_batching import workloads
from benchmarks.load import (
    HOST,
    ROOT,
    cpu_seconds,
    drive,
    end_by_signals,
    machine,
    post,
    whetstone_server,
    write_result,
)

CONNECTIONS = 16
MAX_LENGTH = 512
WANTED = 1.03
KEPT, DROPPED = "whetstone_captured_total", "whetstone_capture_dropped_total"


def measure(port: int, pid: int, requests: list[bytes]) -> dict[str, float]:
    """One round of one server.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    before = cpu_seconds(pid)
    load = drive(port, requests, CONNECTIONS)
    if len(load.latencies) != len(requests):
        raise RuntimeError(f"{len(requests) - len(load.latencies)} requests failed")
    return {
        "cpu_ms": (cpu_seconds(pid) - before) / len(requests) * 1000,
        "p50_ms": load.percentile(0.5) * 1000,
        "p99_ms": load.percentile(0.99) * 1000,
    }


def lines_of(port: int) -> dict[str, int]:
    """How many lines a server has kept and dropped."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(name))
        for name in (KEPT, DROPPED)
    }


def sentence(result: Mapping[str, Any]) -> str:
    """The result for the documentation."""
    plain, captured = result["servers"]["plain"], result["servers"]["captured"]
    verdict = "met" if result["ratio"]["cpu_ms"] <= WANTED else "missed"
    return (
        f"{result['requests']:,} answers were kept with their texts, {result['dropped']:,} were "
        f"dropped. A text costs {captured['cpu_ms']:.3f} CPU-ms in place of "
        f"{plain['cpu_ms']:.3f}, which is {result['ratio']['cpu_ms'] - 1:+.1%} (at most +3 % was "
        f"wanted: {verdict}). p99 is {captured['p99_ms']:.1f} ms in place of "
        f"{plain['p99_ms']:.1f} ({result['ratio']['p99_ms'] - 1:+.1%}). Medians of "
        f"{result['rounds']} interleaved rounds on {result['machine']['cores']} cores of "
        f"{result['machine']['processor']}."
    )


def run(package: Path, rounds: int, requests: int) -> dict[str, Any]:
    """Ask both servers, and compare them."""
    texts = islice(cycle(workloads(MAX_LENGTH)["short"]), requests)
    bodies = [post("/classify", json.dumps({"input": text}).encode()) for text in texts]
    found: dict[str, list[dict[str, float]]] = {"plain": [], "captured": []}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        own = {"WHETSTONE_CAPTURE": folder, "WHETSTONE_CAPTURE_TEXT": "1"}
        running: dict[str, tuple[int, int]] = {}
        for name, more in (("plain", {}), ("captured", own)):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            running[name] = stack.enter_context(whetstone_server(package, home, more))
            drive(running[name][0], bodies[:500], CONNECTIONS)
        before = lines_of(running["captured"][0])
        for number in tqdm(range(rounds), unit="round"):
            names = ["plain", "captured"] if number % 2 else ["captured", "plain"]
            for name in names:
                found[name].append(measure(*running[name], bodies))
        lines = lines_of(running["captured"][0])
    ratios = {
        figure: statistics.median(
            captured[figure] / plain[figure]
            for plain, captured in zip(found["plain"], found["captured"], strict=True)
        )
        for figure in ("cpu_ms", "p99_ms")
    }
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": rounds,
        "requests": rounds * requests,
        "kept": lines[KEPT] - before[KEPT],
        "dropped": lines[DROPPED] - before[DROPPED],
        "servers": {
            name: {
                figure: round(statistics.median(each[figure] for each in cells), 4)
                for figure in cells[0]
            }
            for name, cells in found.items()
        },
        "ratio": {figure: round(ratio, 4) for figure, ratio in ratios.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/capture.json")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5000, help="of each round")
    options = parser.parse_args(arguments)
    result = run(options.package, options.rounds, options.requests)
    write_result(options.out, result)
    print(sentence(result))
    return 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
