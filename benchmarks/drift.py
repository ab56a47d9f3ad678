"""How often the drift checks err: no drift called one, and drifts of several sizes that are seen.

    make bench-drift
    python -m benchmarks.drift --times 400

Rows are drawn from made-up populations: labels by a Dirichlet draw, scores by a beta distribution,
tokens by a log-normal one. The reference is a profile of so many training rows, the window is
drawn from the same population, or from one where five or ten points of one label's share move to
another label, every other label becomes half as frequent, or scores fall. Everything goes through
a package's profile and `monitoring.drift`, as captured answers do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, end_by_signals, machine, write_result
from monitoring.drift import Reference, Verdict, drift, overall
from monitoring.window import Share, Window
from service.package.manifest import Manifest, Profile

LABELS = (2, 8, 77)
REFERENCE_ROWS = (1_000, 10_000)
WINDOW_ROWS = (50, 500, 2_000, 100_000)
SHIFTS = {
    "none": 0.0,
    "5 points of a label": 0.05,
    "10 points of a label": 0.1,
    "all labels": 0.0,
    "scores": 0.0,
}
BINS = 20
PACKAGES = ("whetstone", "numpy", "scipy")


def population(labels: int, chance: np.random.Generator) -> np.ndarray:
    """Shares of labels, none so small that five points cannot leave the largest one."""
    return chance.dirichlet(np.full(labels, 3.0))


def counted(
    shares: np.ndarray, rows: int, scores: tuple[float, float], chance: np.random.Generator
) -> Window:
    """A window of so many rows; counted at once, as `Window.add` would row by row."""
    names = tuple(f"label {number}" for number in range(len(shares)))
    edges = np.linspace(0, 1, BINS + 1)
    window = Window(names, edges, np.linspace(0, 128, BINS + 1))
    counts = chance.multinomial(rows, shares)
    window.label_weights = counts.astype(float)
    window.confidence, _ = np.histogram(chance.beta(*scores, rows), edges)
    lengths = np.clip(chance.lognormal(2.7, 0.6, rows), 1, 127)
    window.tokens, _ = np.histogram(lengths, window.token_edges)
    window.rows, window.every = rows, Share(float(rows), float(rows), float(rows))
    return window


def moved(shares: np.ndarray, points: float) -> np.ndarray:
    """So much of the largest share moved to the smallest one."""
    found = shares.copy()
    largest, smallest = shares.argmax(), shares.argmin()
    points = min(points, float(shares[largest]) * 0.9)
    found[largest] -= points
    found[smallest] += points
    return found


def spread(shares: np.ndarray) -> np.ndarray:
    """Every other label becomes half as frequent, and the others more frequent."""
    found = shares * np.where(np.arange(len(shares)) % 2, 0.5, 1.0)
    return found / found.sum()


def profile_of(window: Window) -> Reference:
    """The reference that a package made from these rows has."""
    shares = [share.value for share in window.labels]
    return Reference.of_package(
        Manifest.model_construct(
            name="made",
            version="0" * 12,
            labels=window.names,
            profile=Profile(
                answer_shares=dict(zip(window.names, shares, strict=True)),
                confidence_counts=window.confidence.tolist(),
                token_length_counts=window.tokens.tolist(),
            ),
        )
    )


def simulate(
    labels: int, reference_rows: int, rows: int, shift: str, times: int, seed: int
) -> dict[str, float]:
    """The share of each verdict."""
    chance = np.random.default_rng([labels, reference_rows, rows, seed])
    verdicts: dict[Verdict, int] = {"drift": 0, "steady": 0, "too few rows": 0}
    for _ in range(times):
        shares = population(labels, chance)
        before = profile_of(counted(shares, reference_rows, (6, 1.5), chance))
        scores = (4.5, 1.5) if shift == "scores" else (6, 1.5)
        changed = spread(shares) if shift == "all labels" else moved(shares, SHIFTS[shift])
        after = counted(changed, rows, scores, chance)
        verdicts[overall(drift(before, after))] += 1
    return {verdict: count / times for verdict, count in verdicts.items()}


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the documentation: how often a drift is called."""
    entries = result["entries"]
    lines = [
        "| labels | training rows | rows of the window | "
        + " | ".join("nothing changed" if name == "none" else name for name in SHIFTS)
        + " |",
        f"|---|---|---|{'---|' * len(SHIFTS)}",
    ]
    keys = dict.fromkeys((e["labels"], e["reference_rows"], e["rows"]) for e in entries)
    for labels, before, rows in keys:
        cells = []
        for shift in SHIFTS:
            own = next(
                entry["verdicts"]
                for entry in entries
                if (entry["labels"], entry["reference_rows"], entry["rows"], entry["shift"])
                == (labels, before, rows, shift)
            )
            few = own["too few rows"] == 1
            cells.append("too few rows" if few else f"{own['drift']:.1%}")
        lines.append(f"| {labels} | {before:,} | {rows:,} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The share of {result['times']} made-up windows that are called a drift. A label moves "
        "at most nine tenths of its share: of 77 labels hardly one has five points.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Simulate, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=400)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "drift.json")
    options = parser.parse_args(arguments)
    cases = [
        (labels, before, rows, shift)
        for labels in LABELS
        for before in REFERENCE_ROWS
        for rows in WINDOW_ROWS
        for shift in SHIFTS
    ]
    entries = []
    for number, (labels, before, rows, shift) in enumerate(tqdm(cases, unit="case")):
        verdicts = simulate(labels, before, rows, shift, options.times, number)
        entries.append(
            {
                "labels": labels,
                "reference_rows": before,
                "rows": rows,
                "shift": shift,
                "verdicts": verdicts,
            }
        )
    result = {"times": options.times, "machine": machine(PACKAGES), "entries": entries}
    write_result(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
