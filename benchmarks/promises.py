"""How often a wanted precision is kept on new rows, by the rule that thresholds are chosen by.

    python -m benchmarks.promises --out benchmarks/results/promises.json

Scores of rows with a label and of others are drawn from two normal distributions so far apart, so
many of the rows having the label, and in some cases a share of them labelled as not having it. A
threshold is chosen on rows of which so many have the label, by two rules: the best recall whose
precision on these rows is the wanted one, and the rule of `training.export.thresholds`, which wants
it proven. What each is worth on new rows follows from the distributions, without another sample.

Abstention is the same with other words: answers that are right are the rows with the label.

Beside it stands what Platt scaling costs, which comes before every threshold.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.package.manifest import Manifest
from training.export.calibration import with_calibration
from training.export.promises import CONFIDENCE, floored, most_promised
from training.export.thresholds import choose_threshold

POSITIVES = (5, 10, 12, 30, 100, 300)
PACKAGES = ("numpy", "scipy", "whetstone")


@dataclass(frozen=True)
class Labelled:
    """A label: how far apart scores are, in standard deviations, and how common it is."""

    separation: float
    prevalence: float
    mislabelled: float = 0.0

    def precision(self, score: float) -> float:
        """Of new rows with at least that score."""
        found = self.prevalence * norm.sf(score - self.separation)
        others = (1 - self.prevalence) * norm.sf(score)
        return float(found * (1 - self.mislabelled) / (found + others))

    def recall(self, score: float) -> float:
        """Of new rows with the label."""
        return float(norm.sf(score - self.separation))

    def possible_recall(self, precision: float) -> float:
        """The highest recall that any threshold with that precision has."""
        scores = np.linspace(-4, self.separation + 4, 800)
        return max((self.recall(s) for s in scores if self.precision(s) >= precision), default=0.0)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """That rows with these scores have the label, as a calibrated package would give them."""
        odds = np.log(self.prevalence / (1 - self.prevalence))
        logits = self.separation * (scores - self.separation / 2) + odds
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def score(self, probability: float) -> float:
        """The score that has this probability."""
        likely = np.clip(probability, 1e-9, 1 - 1e-8)
        odds = np.log(self.prevalence / (1 - self.prevalence))
        logit = np.log(likely / (1 - likely))
        return float((logit - odds) / self.separation + self.separation / 2)

    def sample(self, random: np.random.Generator, positives: int) -> tuple[np.ndarray, np.ndarray]:
        """Which rows have the label, exactly `positives` of them, and the rows' scores."""
        having = round(positives / (1 - self.mislabelled))
        others = round(having * (1 - self.prevalence) / self.prevalence)
        scores = np.concatenate(
            [random.normal(self.separation, 1, having), random.normal(0, 1, others)]
        )
        return np.arange(having + others) < positives, scores


CASES = {
    ("label", 0.9): (
        Labelled(2, 0.1),
        Labelled(2, 0.4),
        Labelled(3, 0.02),
        Labelled(3, 0.1),
        Labelled(4, 0.1),
        Labelled(4, 0.1, mislabelled=0.04),
        Labelled(5, 0.3, mislabelled=0.1),
    ),
    # A label is a right answer.
    ("abstention", 0.95): (Labelled(1, 0.9), Labelled(2, 0.8), Labelled(2, 0.9)),
}


@dataclass(frozen=True)
class Rule:
    """Of packages: the share whose precision on new rows is the wanted one, the mean of both."""

    kept: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Outcome:
    """`promised` and `broken` are shares of all packages; so is `bound_kept`, of lower bounds."""

    best_observed: Rule
    proven: Rule
    promised: float
    broken: float
    bound_kept: float


def best_observed(truth: np.ndarray, probs: np.ndarray, wanted: float) -> float:
    """The threshold with the best recall at the wanted precision on these very rows."""
    order = np.argsort(-probs, kind="stable")
    ranked, hits = probs[order].astype(np.float64), np.cumsum(truth[order])
    cuts = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    precisions = hits[cuts] / (cuts + 1)
    reached = precisions >= wanted
    best = cuts[np.argmax(np.where(reached, hits[cuts], -1) if reached.any() else precisions)]
    return float(ranked[best : best + 2].mean())


def simulate(labelled: Labelled, positives: int, wanted: float, times: int) -> Outcome:
    """Choose thresholds again and again, on `positives` rows with the label and the others."""
    random = np.random.default_rng(positives)
    old, new, promised, bounds = [], [], [], []
    for _ in range(times):
        truth, scores = labelled.sample(random, positives)
        probs = labelled.probabilities(scores)
        old.append(labelled.score(best_observed(truth, probs, wanted)))
        threshold, promise = choose_threshold(truth, probs, wanted)
        assert promise is not None  # noqa: S101 - a precision is wanted
        new.append(labelled.score(threshold))
        promised.append(promise.promised)
        bounds.append(promise.lower_bound)
    precisions = np.asarray([labelled.precision(score) for score in new])
    return Outcome(
        _rule(labelled, old, wanted),
        _rule(labelled, new, wanted),
        float(np.mean(promised)),
        float(np.mean(np.asarray(promised) & (precisions < wanted))),
        float(np.mean(precisions >= bounds)),
    )


def _rule(labelled: Labelled, scores: list[float], wanted: float) -> Rule:
    precisions = np.asarray([labelled.precision(score) for score in scores])
    recalls = [labelled.recall(score) for score in scores]
    return Rule(
        float((precisions >= wanted).mean()), float(precisions.mean()), float(np.mean(recalls))
    )


def platt_seconds(rows: int = 2000, labels: int = 1000) -> dict[str, float]:
    """What Platt scaling of so many rows and labels costs at an export, cross-fitting and all."""
    random = np.random.default_rng(0)
    logits = (random.normal(size=(rows, labels)) * 2 - 4).astype(np.float32)
    truth = random.random((rows, labels)) < 1 / (1 + np.exp(1 - logits / 2))
    names = tuple(map(str, range(labels)))
    draft = Manifest.model_construct(task="multi_label", labels=names, max_length=8, thresholds={})
    given = [tuple(names[place] for place in np.flatnonzero(row)) for row in truth]
    before = time.process_time()
    with_calibration(draft, given, [1] * rows, logits)
    seconds = time.process_time() - before
    return {"rows": rows, "labels": labels, "cpu_seconds": round(seconds, 1)}


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/promises.json")
    parser.add_argument("--times", type=int, default=1000)
    arguments = parser.parse_args()
    cases = [
        (what, wanted, labelled, positives)
        for (what, wanted), several in CASES.items()
        for labelled in several
        for positives in POSITIVES
    ]
    table: list[dict[str, Any]] = []
    for what, wanted, labelled, positives in tqdm(cases, desc="simulate", unit="case"):
        outcome = simulate(labelled, positives, wanted, arguments.times)
        table.append(
            {
                "of": what,
                "wanted": wanted,
                **asdict(labelled),
                "positives": positives,
                "can_promise_at_most": most_promised(positives),
                "possible_recall": labelled.possible_recall(wanted),
                **asdict(outcome),
            }
        )
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "confidence": CONFIDENCE,
        "times": arguments.times,
        "by_positives": summary(table),
        "platt_scaling": platt_seconds(),
        "cases": table,
    }
    print(json.dumps(result["by_positives"], indent=2))
    write_result(arguments.out, result)


def summary(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the distributions in which any threshold has the wanted precision.

    By what is chosen and how many rows have the label; `most_broken` is of all distributions.
    """
    found = []
    for what, wanted in CASES:
        for positives in POSITIVES:
            rows = [r for r in table if (r["of"], r["positives"]) == (what, positives)]
            possible = [row for row in rows if row["possible_recall"] > 0]
            line: dict[str, Any] = {"of": what, "wanted": wanted, "positives": positives}
            for rule in ("best_observed", "proven"):
                for key in ("kept", "precision", "recall"):
                    line[f"{rule}_{key}"] = float(np.mean([row[rule][key] for row in possible]))
            line["possible_recall"] = float(np.mean([row["possible_recall"] for row in possible]))
            line["promised"] = float(np.mean([row["promised"] for row in possible]))
            line["most_broken"] = max(row["broken"] for row in rows)
            found.append(line)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| | can prove at most | kept: as seen, proven | mean precision | recall | promised |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["by_positives"]:
        if row["positives"] in (10, 12) and row["of"] == "abstention":
            continue
        what = "rows with the label" if row["of"] == "label" else "right answers"
        pairs = [
            f"{row[f'best_observed_{key}']:.2f}, **{row[f'proven_{key}']:.2f}**"
            for key in ("kept", "precision", "recall")
        ]
        lines.append(
            f"| {row['wanted']:g} of {row['positives']} {what} "
            f"| {floored(most_promised(row['positives']))} "
            f"| {' | '.join(pairs)} | {row['promised']:.0%} |"
        )
    broken = max(row["most_broken"] for row in result["by_positives"])
    lines += [
        "",
        f"Not more than {broken:.0%} of the packages of any distribution break a promise.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
