"""How much validation rows flatter a package that was chosen by them.

    python -m benchmarks.optimism --out benchmarks/results/optimism.json

Ten epochs' logits are drawn: their quality rises to a plateau, they grow too sure, and what is hard
in a row is hard for all of them. As in a training, the epoch with the best macro-F1 on so many
validation rows is kept, calibrated and given its thresholds by the same rows. Its figures on these
rows, as they are and out-of-fold, are compared with those of as many new rows.

The gates see a candidate that is as good, whose logits differ a little: on the rows that chose the
epoch, and on new ones.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.inference.classifier import Prediction, predictions
from service.inference.decisions import FloatArray
from service.inference.tokenizing import EncodedText
from service.package.manifest import Manifest, Task
from training.evaluation.metrics import calibration_metrics, label_matrix
from training.evaluation.significance import label_f1
from training.export.finish import finish, out_of_fold
from training.export.gates import Answers, judge
from training.export.thresholds import DEFAULT_THRESHOLD
from training.recipe.arguments import ExportArguments
from training.recipe.bounds import Gates

EPOCHS = 10
LABELS: dict[Task, int] = {"single_label": 6, "multi_label": 9}
PREVALENCE = 0.06
# How far apart scores are at the end, in standard deviations.
SEPARATION: dict[Task, float] = {"single_label": 2.6, "multi_label": 3.2}
# Of a score's variance, what all epochs share.
SHARED = 0.9
# By how much logits are too large after each epoch.
TOO_SURE = 0.12
# Standard deviation of what a candidate's logits differ by, as a share of each.
ROUNDING = 0.04
ROWS = (50, 150, 500, 1000)
PACKAGES = ("numpy", "scipy", "scikit-learn", "whetstone")
METRICS = ("accuracy", "macro_f1", "micro_f1", "ece")


@dataclass(frozen=True)
class Rows:
    """Truth of shape (rows, labels), and what is hard in each: noise that all epochs share."""

    truth: np.ndarray
    shared: np.ndarray

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The names of each row's labels."""
        return [tuple(str(place) for place in np.flatnonzero(row)) for row in self.truth]


def draw(random: np.random.Generator, task: Task, rows: int) -> Rows:
    """So many rows."""
    shape = (rows, LABELS[task])
    if task == "single_label":
        truth = np.eye(shape[1], dtype=bool)[random.integers(0, shape[1], rows)]
    else:
        truth = random.random(shape) < PREVALENCE
        # Without a row a label's F1 is nothing that could be compared.
        truth[np.arange(shape[1]), np.arange(shape[1])] = True
    return Rows(truth, random.normal(size=shape))


def logits_of(random: np.random.Generator, task: Task, rows: Rows, epoch: int) -> FloatArray:
    """What the model of an epoch gives these rows."""
    separation = SEPARATION[task] * (1 - np.exp(-(epoch + 1) / 1.5))
    own = random.normal(size=rows.truth.shape)
    scores = separation * rows.truth + np.sqrt(SHARED) * rows.shared + np.sqrt(1 - SHARED) * own
    right = separation * scores
    if task == "multi_label":
        right += np.log(PREVALENCE / (1 - PREVALENCE)) - separation**2 / 2
    return np.asarray(right * (1 + TOO_SURE * epoch), dtype=np.float32)


def draft_of(task: Task) -> Manifest:
    """A manifest before anything is chosen."""
    names = tuple(map(str, range(LABELS[task])))
    thresholds = dict.fromkeys(names, DEFAULT_THRESHOLD) if task == "multi_label" else {}
    return Manifest.model_construct(
        task=task, labels=names, max_length=8, thresholds=thresholds, calibration={}
    )


def encoded_texts(rows: int) -> list[EncodedText]:
    """Texts of one window, which nothing here reads."""
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "?": 1}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return [EncodedText((tokenizer.encode("x"),), truncated=False)] * rows


def macro_f1(task: Task, rows: Rows, logits: FloatArray) -> float:
    """As a training compares epochs, before anything is fitted."""
    answered = logits > 0
    if task == "single_label":
        answered = np.eye(LABELS[task], dtype=bool)[logits.argmax(axis=1)]
    return float(np.nanmean(label_f1(rows.truth, answered)))


def measure(manifest: Manifest, rows: Rows, answers: Sequence[Prediction]) -> dict[str, float]:
    """The figures of METRICS, of all labels."""
    answered, probs = _arrays(manifest, answers)
    hits = int((rows.truth & answered).sum())
    return {
        "accuracy": float((rows.truth == answered).all(axis=1).mean()),
        "macro_f1": float(np.nanmean(label_f1(rows.truth, answered))),
        "micro_f1": 2 * hits / int(rows.truth.sum() + answered.sum()),
        "ece": float(calibration_metrics(probs, rows.truth, manifest.task)["ece"]),
    }


def _arrays(manifest: Manifest, answers: Sequence[Prediction]) -> tuple[np.ndarray, FloatArray]:
    """What is answered and the probabilities, both of shape (rows, labels)."""
    answered = label_matrix([tuple(answer.answer) for answer in answers], manifest.labels)
    return answered, np.stack([answer.probs for answer in answers])


def one_training(random: np.random.Generator, task: Task, size: int) -> dict[str, dict[str, float]]:
    """By what the figures rest on, the figures; and of `gates` whether they refuse."""
    rows, new = draw(random, task, size), draw(random, task, size)
    epochs = [logits_of(random, task, rows, epoch) for epoch in range(EPOCHS)]
    scores = [macro_f1(task, rows, logits) for logits in epochs]
    best = int(np.argmax(scores))
    logits, new_logits = epochs[best], logits_of(random, task, new, best)
    arguments, encoded, draft = ExportArguments(), encoded_texts(size), draft_of(task)
    manifest, answers = finish(draft, arguments, rows.labels, encoded, logits)
    folded = out_of_fold(manifest, arguments, rows.labels, encoded, logits)
    fresh = predictions(manifest, encoded, new_logits)
    anew, new_answers = finish(draft, arguments, new.labels, encoded, new_logits)
    return {
        "same": measure(manifest, rows, answers),
        "out_of_fold": measure(manifest, rows, folded),
        "new": measure(manifest, new, fresh),
        "chosen_by": {"same": scores[best], "new": macro_f1(task, new, new_logits)},
        "refused": {
            "same": _refused(random, manifest, rows, logits, answers),
            "new": _refused(random, anew, new, new_logits, new_answers),
        },
    }


def _refused(
    random: np.random.Generator,
    finished: Manifest,
    rows: Rows,
    logits: FloatArray,
    reference: Sequence[Prediction],
) -> float:
    """1 where a candidate is refused that is as good, on these rows; else 0."""
    draft = draft_of(finished.task)
    changed = (logits * (1 + random.normal(0, ROUNDING, logits.shape))).astype(np.float32)
    _, answers = finish(draft, ExportArguments(), rows.labels, encoded_texts(len(logits)), changed)
    before, after = (
        Answers(probs, answered)
        for answered, probs in (_arrays(draft, some) for some in (reference, answers))
    )
    return float(judge(rows.truth, before, after, finished, Gates()).outcome == "refused")


def simulate(task: Task, size: int, times: int) -> dict[str, Any]:
    """Means over trainings: by how much each figure is above that of new rows, and its spread."""
    random = np.random.default_rng(size)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(times):
        for name, figures in one_training(random, task, size).items():
            found[name].append(figures)

    def column(name: str, key: str) -> np.ndarray:
        return np.asarray([figures[key] for figures in found[name]])

    table: dict[str, Any] = {"task": task, "rows": size}
    for key in METRICS:
        new = column("new", key)
        table[key] = {
            "new": float(new.mean()),
            "spread": float(new.std()),
            **{
                name: {
                    "above_new": float((column(name, key) - new).mean()),
                    "error": float((column(name, key) - new).std() / np.sqrt(times)),
                }
                for name in ("same", "out_of_fold")
            },
        }
    gap = column("chosen_by", "same") - column("chosen_by", "new")
    table["macro_f1_that_chose"] = {
        "above_new": float(gap.mean()),
        "error": float(gap.std() / np.sqrt(times)),
        "spread": float(column("chosen_by", "new").std()),
    }
    table["as_good_refused"] = {
        name: float(column("refused", name).mean()) for name in ("same", "new")
    }
    return table


def markdown(result: dict[str, Any]) -> str:
    """The README's table: points above new rows, on the same rows and out-of-fold."""
    lines = [
        "| validation rows | macro-F1 that chose the epoch | accuracy | macro-F1 | ECE |",
        "|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        what = "one label" if case["task"] == "single_label" else "several labels"
        chose = case["macro_f1_that_chose"]
        cells = [f"{_points(chose['above_new'])} (±{chose['spread'] * 100:.1f})"]
        for key in ("accuracy", "macro_f1", "ece"):
            same, folded = (_points(case[key][on]["above_new"]) for on in ("same", "out_of_fold"))
            cells.append(f"{same}, **{folded}** (±{case[key]['spread'] * 100:.1f})")
        lines.append(f"| {case['rows']:,}, {what} | {' | '.join(cells)} |")
    same, new = (
        np.mean([case["as_good_refused"][on] for case in result["cases"]]) for on in ("same", "new")
    )
    return "\n".join(
        [
            *lines,
            "",
            f"The gates compare two models that the same rows chose. If a candidate is as good and "
            f"its logits differ by {ROUNDING:.0%}, they",
            f"refuse it in {same:.0%} of cases on the rows that chose the epoch, and in {new:.0%} "
            "on new ones.",
        ]
    )


def _points(share: float) -> str:
    """A share as points with a sign; what is written as zero has a plus."""
    return f"{round(share * 100, 1) + 0.0:+.1f}".replace("-", "−")  # noqa: RUF001


def main() -> None:
    """Simulate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/optimism.json")
    parser.add_argument("--times", type=int, default=100)
    arguments = parser.parse_args()
    cases = [(task, size) for task in LABELS for size in ROWS]
    table = [
        simulate(task, size, arguments.times)
        for task, size in tqdm(cases, desc="simulate", unit="case")
    ]
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "epochs": EPOCHS,
        "labels": LABELS,
        "prevalence": PREVALENCE,
        "times": arguments.times,
        "cases": table,
    }
    print(json.dumps(table, indent=2))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
