"""How often a canary is judged wrongly: equal models that are undone, and shifts that are not seen.

    make bench-canary
    python -m benchmarks.canary --times 400

The counters of both sides are drawn from made-up populations: labels by a Dirichlet draw, scores by
a beta distribution, latencies by a log-normal one, a few errors and abstentions. The new model is
the same one, or one of its labels gets two or five points more at the expense of the others, or its
scores fall. A canary has two steps, 5 % and 25 % of the requests, and each of them is judged by
`release.cluster.judgement` as in a release.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, end_by_signals, machine, write_result
from release.cluster.health import ABSTAINED, TEXTS, Sample
from release.cluster.judgement import judge
from service.metrics.definitions import CONFIDENCES, SECONDS

LABELS = (2, 8, 77)
# Of the canary, in each of its steps.
REQUESTS = (500, 2_000, 20_000)
STEPS = (0.05, 0.25)
SHIFTS = ("nothing", "2 points of a label", "5 points of a label", "scores")
POINTS = {"2 points of a label": 0.02, "5 points of a label": 0.05}
SCORES, LOWER_SCORES = (6.0, 1.5), (4.5, 1.5)
ERRORS, ABSTENTIONS = 0.002, 0.03
PACKAGES = ("whetstone", "numpy", "scipy")


def drawn(
    shares: np.ndarray, rows: int, scores: tuple[float, float], chance: np.random.Generator
) -> Sample:
    """The counters after so many requests of one text each."""
    labels = chance.multinomial(rows, shares)
    confidence = np.histogram(chance.beta(*scores, rows), [0.0, *CONFIDENCES])[0].cumsum()
    seconds = np.histogram(chance.lognormal(-4, 0.7, rows), [0.0, *SECONDS, math.inf])[0].cumsum()
    return Sample(
        Counter({200: rows, 500: int(chance.binomial(rows, ERRORS))}),
        Counter(dict(zip([*SECONDS, math.inf], seconds.tolist(), strict=True))),
        Counter({f"label {number}": count for number, count in enumerate(labels.tolist())}),
        Counter(dict(zip(CONFIDENCES, confidence.tolist(), strict=True))),
        Counter({TEXTS: rows, ABSTAINED: int(chance.binomial(rows, ABSTENTIONS))}),
    )


def shifted(shares: np.ndarray, points: float, chance: np.random.Generator) -> np.ndarray:
    """One label, any of them, gets so much more at the expense of the others."""
    found = shares.copy()
    label = chance.integers(len(shares))
    rest = 1 - found[label]
    points = min(points, rest / 2)
    found *= (rest - points) / rest
    found[label] = shares[label] + points
    return found


def simulate(labels: int, requests: int, shift: str, times: int, seed: int) -> float:
    """The share of canaries that are undone."""
    chance = np.random.default_rng([labels, requests, seed])
    undone = 0
    for _ in range(times):
        shares = chance.dirichlet(np.full(labels, 3.0))
        changed = shifted(shares, POINTS.get(shift, 0.0), chance)
        scores = LOWER_SCORES if shift == "scores" else SCORES
        for step in STEPS:
            beside = round(requests * (1 - step) / step)
            canary = drawn(changed, requests, scores, chance)
            if judge(canary, drawn(shares, beside, SCORES, chance), len(STEPS)).trouble:
                undone += 1
                break
    return undone / times


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the documentation."""
    lines = [
        f"| labels | requests to the canary | {' | '.join(SHIFTS)} |",
        f"|---|---|{'---|' * len(SHIFTS)}",
    ]
    undone = {(e["labels"], e["requests"], e["shift"]): e["undone"] for e in result["entries"]}
    for labels, requests in dict.fromkeys((e["labels"], e["requests"]) for e in result["entries"]):
        cells = [f"{undone[labels, requests, shift]:.1%}" for shift in SHIFTS]
        lines.append(f"| {labels} | {requests:,} | {' | '.join(cells)} |")
    steps = " and ".join(f"{step:.0%}" for step in STEPS)
    lines += [
        "",
        f"The share of {result['times']} made-up canaries that are undone, by what the new model "
        f"changes. Each canary has the steps {steps}, with so many requests in each.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Simulate, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=400)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "canary.json")
    options = parser.parse_args(arguments)
    cases = [(labels, rows, shift) for labels in LABELS for rows in REQUESTS for shift in SHIFTS]
    entries = []
    for number, (labels, rows, shift) in enumerate(tqdm(cases, unit="case")):
        undone = simulate(labels, rows, shift, options.times, number)
        entries.append({"labels": labels, "requests": rows, "shift": shift, "undone": undone})
    result = {"times": options.times, "machine": machine(PACKAGES), "entries": entries}
    write_result(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
