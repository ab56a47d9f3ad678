"""How often the gates err, and which rule does: candidates of known quality, judged repeatedly.

    python -m benchmarks.gates --out benchmarks/results/gates.json

`single_label`: a reference that is right in 93 % of cases answers validation rows of 77 equally
common labels. The candidate gives another answer in a share of the rows: so often the right one
instead of a wrong one as the other way round when it is equally good, less often when it is worse.
`multi_label`: 9 labels, each on 6 % of the rows; the reference finds 85 % of them and gives each
label wrongly to 1 % of the other rows; the candidate changes answers of both kinds alike, and one
that is worse loses so many of those it should give that micro-F1 falls by the points stated. What
it is in the long run is known; what is judged is a sample, as at an export.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.package.manifest import InferenceConfig, Task
from training.export.gates import Answers, judge
from training.recipe.bounds import Gates

# Share of answers that equally good int8 changes: 0.7 % of rows on banking77.
CHANGED = 0.007
LABELS, ACCURACY = 77, 0.93
SEVERAL_LABELS, PREVALENCE, RECALL, FALSE_ALARMS = 9, 0.06, 0.85, 0.01
ROWS = (100, 300, 1000, 3000)
# How many points of accuracy (micro-F1) the candidate loses in the long run.
LOSSES = (0.0, 0.01, 0.02, 0.03)

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def one_hot(labels: np.ndarray, count: int = LABELS) -> np.ndarray:
    """Booleans of shape (rows, labels)."""
    return np.eye(count, dtype=bool)[labels]


def sample_single(
    random: np.random.Generator, rows: int, loss: float, changed: float = CHANGED
) -> Sample:
    """Truth, the reference's answers and the candidate's, each of shape (rows, labels)."""
    truth = random.integers(0, LABELS, rows)
    wrong = (truth + random.integers(1, LABELS, rows)) % LABELS
    before = np.where(random.random(rows) < ACCURACY, truth, wrong)
    right = before == truth
    # Rows change from right to wrong and back in equal numbers, and `loss` more are lost.
    lost = right & (random.random(rows) < (changed / 2 + loss) / ACCURACY)
    gained = ~right & (random.random(rows) < changed / 2 / (1 - ACCURACY))
    after = np.where(lost, wrong, np.where(gained, truth, before))
    return one_hot(truth), one_hot(before), one_hot(after)


def sample_several(random: np.random.Generator, rows: int, loss: float) -> Sample:
    """The same with any number of labels a row."""
    shape = (rows, SEVERAL_LABELS)
    truth = random.random(shape) < PREVALENCE
    before = random.random(shape) < np.where(truth, RECALL, FALSE_ALARMS)
    # Each label changes on a share of the rows that have or get it; of those it is right or wrong
    # on, so many change that neither grows more common.
    positive = PREVALENCE * RECALL + (1 - PREVALENCE) * FALSE_ALARMS
    moved = CHANGED / SEVERAL_LABELS / 4
    chance = {
        (True, True): moved / (PREVALENCE * RECALL),
        (True, False): moved / (PREVALENCE * (1 - RECALL)),
        (False, True): moved / ((1 - PREVALENCE) * FALSE_ALARMS),
        (False, False): moved / ((1 - PREVALENCE) * (1 - FALSE_ALARMS)),
    }
    # What must get lost of the hits: micro-F1 is 2 hits / (having + getting), 1 a row and label.
    hits, sums = PREVALENCE * RECALL, PREVALENCE + positive
    f1 = 2 * hits / sums - loss
    lost = (2 * hits - f1 * sums) / (2 - f1)
    chance[True, True] += lost / hits
    odds = np.zeros(shape)
    for (has, gets), share in chance.items():
        odds[(truth == has) & (before == gets)] = share
    return truth, before, before ^ (random.random(shape) < odds)


SAMPLES: dict[Task, Callable[[np.random.Generator, int, float], Sample]] = {
    "single_label": sample_single,
    "multi_label": sample_several,
}


def simulate(
    rows: int, loss: float, times: int, gates: Gates, task: Task = "single_label"
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of each verdict, and how often each rule refused or could not tell."""
    random = np.random.default_rng(rows)
    labels = tuple(map(str, range(LABELS if task == "single_label" else SEVERAL_LABELS)))
    thresholds = dict.fromkeys(labels, 0.5) if task == "multi_label" else {}
    behaviour = InferenceConfig(labels=labels, max_length=8, task=task, thresholds=thresholds)
    counts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    for _ in range(times):
        truth, before, after = SAMPLES[task](random, rows, loss)
        # Probabilities play no part here: drift is hardly noisy.
        probs = np.zeros(truth.shape, dtype=np.float32)
        verdict = judge(truth, Answers(probs, before), Answers(probs, after), behaviour, gates)
        counts[verdict.outcome] += 1
        rules.update(list(verdict.by_rule))
    outcomes = ("passed", "refused", "inconclusive")
    by_rule = ("significance", "label", "agreement", "drop", "rows")
    return (
        {name: counts[name] / times for name in outcomes},
        {name: rules[name] / times for name in by_rule},
    )


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gates.json")
    parser.add_argument("--times", type=int, default=300)
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    cases = [(task, rows, loss) for task in SAMPLES for rows in ROWS for loss in LOSSES]
    for task, rows, loss in tqdm(cases, desc="simulate", unit="case"):
        verdicts, rules = simulate(rows, loss, arguments.times, Gates(), task)
        points = round(loss * 100, 1)
        case = {"task": task, "rows": rows, "points_worse": points}
        table.append({**case, **verdicts, "rules": rules})
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "gates": vars(Gates()),
        "changed": CHANGED,
        "single_label": {"labels": LABELS, "accuracy": ACCURACY},
        "multi_label": {
            "labels": SEVERAL_LABELS,
            "prevalence": PREVALENCE,
            "recall": RECALL,
            "false_alarms": FALSE_ALARMS,
        },
        "times": arguments.times,
        "verdicts": table,
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
