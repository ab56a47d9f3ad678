"""How often each verdict of `whetstone compare` falls, for challengers of known worth.

    python -m benchmarks.promotion --out benchmarks/results/promotion.json

A champion that is right in 93 % of cases answers rows of 77 equally common labels. Champion and
challenger are two trainings: they differ in a share of the rows, now one is right and now the
other, so that in the long run the challenger is better or worse by the points stated.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.gates import ACCURACY, LABELS, sample_single
from benchmarks.load import ROOT, machine, write_result
from training.comparison.paired import PairedAnswers
from training.comparison.promotion import decide, reasons_against
from training.recipe.bounds import PromotionBounds

# Share of the rows of banking77's test split that one of two trainings gets right and the other
# does not: benchmarks/results/champions.json.
CHANGED = 0.06
ROWS = (200, 1000, 3000)
POINTS = (-0.03, -0.02, 0.0, 0.02)


def simulate(
    rows: int, points: float, times: int, bounds: PromotionBounds
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of each verdict, and how often each rule spoke up."""
    random = np.random.default_rng(rows)
    labels = tuple(map(str, range(LABELS)))
    counts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    for _ in range(times):
        matrices = sample_single(random, rows, -points, CHANGED)
        answers = PairedAnswers(labels, *matrices, shared=np.ones(LABELS, dtype=bool))
        reasons = reasons_against(answers, answers.difference("macro_f1"), bounds)
        counts[decide(reasons)] += 1
        rules.update(list(reasons))
    verdicts = ("promote", "refuse", "inconclusive")
    return (
        {name: counts[name] / times for name in verdicts},
        {name: rules[name] / times for name in ("significance", "label", "drop", "rows")},
    )


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/promotion.json")
    parser.add_argument("--times", type=int, default=400)
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    cases = [(rows, points) for rows in ROWS for points in POINTS]
    for rows, points in tqdm(cases, desc="simulate", unit="case"):
        verdicts, rules = simulate(rows, points, arguments.times, PromotionBounds())
        table.append({"rows": rows, "points": round(points * 100, 1), **verdicts, "rules": rules})
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "bounds": vars(PromotionBounds()),
        "labels": LABELS,
        "accuracy": ACCURACY,
        "changed": CHANGED,
        "times": arguments.times,
        "verdicts": table,
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
