"""A quarter of an hour at 70 % of what the service can do: errors, memory, rate and latency.

    make bench-soak

What it can do is measured first, with all connections busy. Then requests of mixed lengths come at
Poisson times, whatever was answered; the picture shows memory, rate, p50 and p99 over time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.bench_batching import workloads
from benchmarks.bench_serve import closed_loop_rate, megabytes, started
from benchmarks.load import (
    ROOT,
    Arrival,
    Memory,
    drive,
    drive_open,
    end_by_signals,
    machine,
    percentile,
    write_result,
)
from benchmarks.serve_report import OURS, target
from benchmarks.serve_servers import contenders, programs_of
from service.package.manifest import read_manifest

SHARE = 0.7
MOST_ERRORS = 0
MOST_GROWTH = 0.03
# Of the whole: what counts as warm-up, and how much of each end memory is compared over.
WARM_UP = 1 / 15
COMPARED = 1 / 15
CAPACITY_SECONDS = 10
BINS = 90


def growth(samples: Sequence[tuple[float, float]], seconds: float) -> float:
    """How much memory grew after the warm-up, as a share: medians of both ends of the rest.

    Args:
        samples: time and memory.
        seconds: of the whole.
    """
    first = [size for at, size in samples if WARM_UP <= at / seconds <= WARM_UP + COMPARED]
    last = [size for at, size in samples if at / seconds >= 1 - COMPARED]
    return statistics.median(last) / statistics.median(first) - 1


def series(
    arrivals: Sequence[Arrival], samples: Sequence[tuple[float, float]], seconds: float
) -> list[dict[str, Any]]:
    """Rate, latency, errors and memory over time, in equal parts of it."""
    width = seconds / BINS
    answered: list[list[float]] = [[] for _ in range(BINS)]
    errors = [0] * BINS
    for one in arrivals:
        place = min(BINS - 1, int(one.due / width))
        if one.status == 200:
            answered[place].append(one.took)
        else:
            errors[place] += 1
    memory: list[list[float]] = [[] for _ in range(BINS)]
    for at, size in samples:
        memory[min(BINS - 1, int(at / width))].append(size)
    return [
        {
            "from_seconds": round(place * width, 2),
            "per_second": round(len(took) / width, 2),
            "p50_ms": round(percentile(took, 0.5) * 1000, 2) if took else None,
            "p99_ms": round(percentile(took, 0.99) * 1000, 2) if took else None,
            "errors": errors[place],
            "memory_mb": megabytes(max(memory[place])) if memory[place] else None,
        }
        for place, took in enumerate(answered)
    ]


def sentence(result: dict[str, Any]) -> str:
    """What the README says of it."""
    errors, _, grown = (one["measured"] for one in result["targets"])
    words = "" if grown <= MOST_GROWTH else f", more than the {MOST_GROWTH:.0%} wanted"
    return (
        f"{result['seconds'] / 60:g} minutes of {result['texts']} lengths at "
        f"{result['share_of_capacity']:.0%} of capacity, {result['requests']:,} requests: "
        f"{errors:g} errors, memory {grown:+.1%} after the warm-up{words}, p99 "
        f"{result['p99_ms']:,.0f} ms."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Memory, rate and latency over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import save_figure

    points = result["series"]
    # What is missing leaves a gap.
    columns = {
        name: [float("nan") if point[name] is None else point[name] for point in points]
        for name in ("from_seconds", "memory_mb", "per_second", "p50_ms", "p99_ms")
    }
    minutes = [at / 60 for at in columns["from_seconds"]]
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 6.5), sharex=True)
    axes[0].plot(minutes, columns["memory_mb"], color="#1f6f8b")
    axes[0].set_ylabel("resident memory, MB")
    axes[1].plot(minutes, columns["per_second"], color="#1f6f8b")
    axes[1].axhline(result["offered_per_second"], color="#b5b9bd", linestyle="--", label="offered")
    axes[1].set_ylabel("answers per second")
    axes[1].legend(frameon=False, loc="lower right")
    axes[2].plot(minutes, columns["p50_ms"], color="#1f6f8b", label="p50")
    axes[2].plot(minutes, columns["p99_ms"], color="#c8553d", label="p99")
    axes[2].set_ylabel("latency, ms")
    axes[2].set_xlabel("minutes")
    axes[2].legend(frameon=False, loc="upper right")
    for axis in axes:
        # From 0, and with room above a level line.
        axis.set_ylim(0, axis.get_ylim()[1] * 1.1)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, help="the JSON file; .png goes beside it")
    parser.add_argument("--kind", choices=("short", "mixed"), default="mixed")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--quick", action="store_true", help="ten seconds: does it run?")
    arguments = parser.parse_args()
    end_by_signals()
    seconds = 10.0 if arguments.quick else arguments.minutes * 60
    warming = 1.0 if arguments.quick else float(CAPACITY_SECONDS)
    results = ROOT / ("runs/quick" if arguments.quick else "benchmarks/results")
    out: Path = arguments.out or results / "soak.json"

    manifest = read_manifest(arguments.package)
    # There is no peer here, so no checkpoint is read.
    service = next(one for one in contenders(arguments.package, Path()) if one.key == OURS)
    texts = workloads(manifest.max_length)[arguments.kind]
    requests = [service.request(text) for text in texts]
    with started(service, programs_of(service)) as (one, _):
        warm = drive(one.port, requests, 16)
        guess = len(warm.latencies) / warm.seconds
        capacity = closed_loop_rate(one.port, requests, guess, warming)
        memory = Memory(one.pid)
        with tqdm(total=round(seconds), desc="soak", unit="s") as bar:

            def tick(elapsed: float) -> None:
                memory.sample(elapsed)
                bar.update(round(min(elapsed, seconds)) - bar.n)

            # Often enough for the parts of the picture.
            every = min(1.0, seconds / BINS / 2)
            rate = SHARE * capacity
            load = drive_open(one.port, requests, rate, seconds, on_tick=tick, tick=every)
    took = [arrival.took for arrival in load.arrivals if arrival.status == 200]
    statuses = {
        str(status): sum(arrival.status == status for arrival in load.arrivals)
        for status in sorted({arrival.status for arrival in load.arrivals})
    }
    errors = len(load.arrivals) - len(took) + load.unsent
    result: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "machine": machine(),
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "precision": manifest.precision,
        },
        "texts": arguments.kind,
        "seconds": seconds,
        "capacity_per_second": round(capacity, 1),
        "share_of_capacity": SHARE,
        "offered_per_second": round(rate, 1),
        "requests": len(load.arrivals) + load.unsent,
        "statuses": statuses,
        "unsent": load.unsent,
        "p50_ms": round(percentile(took, 0.5) * 1000, 2) if took else None,
        "p99_ms": round(percentile(took, 0.99) * 1000, 2) if took else None,
        "targets": [
            target("errors", MOST_ERRORS, errors, most=True),
            target("processes of the server that ended", 0, memory.restarts, most=True),
            target(
                "growth of memory after the warm-up",
                MOST_GROWTH,
                growth(memory.samples, seconds),
                most=True,
            ),
        ],
        "series": series(load.arrivals, memory.samples, seconds),
    }
    shown = {name: value for name, value in result.items() if name != "series"}
    print(json.dumps(shown, indent=2))
    write_result(out, result)
    draw(result, out.with_suffix(".png"))
    print(f"written: {out.with_suffix('.png')}", file=sys.stderr)


if __name__ == "__main__":
    main()
