"""How often the gates err: candidates of known quality, judged again and again.

    python -m benchmarks.gates --out benchmarks/results/gates.json

A reference that is right in 93 % of cases answers validation rows of 77 equally common labels. The
candidate gives another answer in a share of the rows: so often the right one instead of a wrong one
as the other way round when it is equally good, less often when it is worse. What it is in the long
run is known; what is judged is a sample, as at an export.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.model_package import Behaviour
from training.gates import Answers, Gates, judge

LABELS = 77
ACCURACY = 0.93
# Share of rows that equally good int8 answers differently: 0.7 % on banking77.
CHANGED = 0.007
ROWS = (100, 300, 1000, 3000)
# How many points of accuracy the candidate loses in the long run.
LOSSES = (0.0, 0.01, 0.02, 0.03)


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Booleans of shape (rows, labels)."""
    return np.eye(LABELS, dtype=bool)[labels]


def sample(random: np.random.Generator, rows: int, loss: float) -> tuple[np.ndarray, ...]:
    """Truth, the reference's answers and the candidate's, each of shape (rows, labels)."""
    truth = random.integers(0, LABELS, rows)
    wrong = (truth + random.integers(1, LABELS, rows)) % LABELS
    before = np.where(random.random(rows) < ACCURACY, truth, wrong)
    right = before == truth
    # Rows change from right to wrong and back in equal numbers, and `loss` more are lost.
    lost = right & (random.random(rows) < (CHANGED / 2 + loss) / ACCURACY)
    gained = ~right & (random.random(rows) < CHANGED / 2 / (1 - ACCURACY))
    after = np.where(lost, wrong, np.where(gained, truth, before))
    return one_hot(truth), one_hot(before), one_hot(after)


def simulate(rows: int, loss: float, times: int, gates: Gates) -> dict[str, float]:
    """The share of each verdict."""
    random = np.random.default_rng(rows)
    behaviour = Behaviour(labels=tuple(map(str, range(LABELS))), max_length=8)
    counts = {"passed": 0, "refused": 0, "inconclusive": 0}
    for _ in range(times):
        truth, before, after = sample(random, rows, loss)
        # Probabilities play no part here: drift is hardly noisy.
        probs = np.zeros(truth.shape, dtype=np.float32)
        verdict = judge(truth, Answers(probs, before), Answers(probs, after), behaviour, gates)
        counts[verdict.outcome] += 1
    return {outcome: count / times for outcome, count in counts.items()}


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gates.json")
    parser.add_argument("--times", type=int, default=300)
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    cases = [(rows, loss) for rows in ROWS for loss in LOSSES]
    for rows, loss in tqdm(cases, desc="simulate", unit="case"):
        shares = simulate(rows, loss, arguments.times, Gates())
        table.append({"rows": rows, "points_worse": round(loss * 100, 1), **shares})
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "gates": vars(Gates()),
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
