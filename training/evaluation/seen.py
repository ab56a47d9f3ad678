"""Rows of a test file that training has seen, and the score without them.

`whetstone run` has the training texts at hand and finds near-duplicates. A package keeps no texts,
only hashes of them (`training.data.leakage`), so `whetstone evaluate` finds equal texts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.inference.classifier import Prediction
from service.package.manifest import Manifest, Text
from training.data.leakage import find_leakage
from training.data.near_duplicates import Groups
from training.data.splits import Split
from training.evaluation.metrics import all_metrics, label_matrix
from training.evaluation.significance import Metric, interval


@dataclass(frozen=True)
class SeenRows:
    """The 0-based places of rows that training has, among the `looked_at` that can be looked up."""

    rows: tuple[int, ...]
    looked_at: int
    by: Literal["near-duplicates", "equal texts"]


def nearly_seen(groups: Groups) -> SeenRows:
    """Test rows that are equal to a row of another split or a near-duplicate of one.

    Args:
        groups: of near-duplicates among the rows of all splits, `test` among them.
    """
    known = np.concatenate([part for name, part in groups.items() if name != "test"])
    rows = tuple(np.flatnonzero(np.isin(groups["test"], known)).tolist())
    return SeenRows(rows, len(groups["test"]), "near-duplicates")


def equally_seen(texts: Sequence[Text], manifest: Manifest) -> SeenRows | None:
    """Rows that are equal to a text of training; None where the package cannot tell."""
    leakage = find_leakage(manifest, texts)
    return None if leakage is None else SeenRows(leakage.rows, leakage.looked_at, "equal texts")


def unseen_metrics(
    manifest: Manifest, split: Split, answers: Sequence[Prediction], seen: SeenRows
) -> dict[str, Any]:
    """The main metrics of all rows, and of those that training has not seen, with intervals.

    Returns:
        `by`, `seen`, `looked_at`, and `with` and `without` these rows: how many there are, and of
        each metric `value`, and `low` and `high` of its 95 % interval. `without` is None where
        nothing is left.
    """
    all_rows = np.arange(len(split))
    unseen_rows = np.setdiff1d(all_rows, np.asarray(seen.rows, dtype=int))
    whole = _scores(manifest, split, answers, all_rows)
    without: dict[str, Any] | None = whole
    if seen.rows:
        without = _scores(manifest, split, answers, unseen_rows) if len(unseen_rows) else None
    return {
        "by": seen.by,
        "seen": len(seen.rows),
        "looked_at": seen.looked_at,
        "with": whole,
        "without": without,
    }


def unseen_sentence(unseen: dict[str, Any]) -> str | None:
    """The score without rows that training has, for the screen; None where it has none."""
    if not unseen["seen"]:
        return None
    kind = "near-duplicates of" if unseen["by"] == "near-duplicates" else "equal to"
    begin = f"{unseen['seen']} of {unseen['looked_at']} rows are {kind} training texts"
    without = unseen["without"]
    if without is None:
        return f"{begin}: no row is left to measure without them"
    scores = ", ".join(
        f"{name.replace('_', '-').replace('f1', 'F1')} {score['value']:.4f} "
        f"({score['low']:.4f} to {score['high']:.4f})"
        for name, score in without["metrics"].items()
    )
    return f"{begin}; the other {without['rows']}: {scores}"


def _scores(
    manifest: Manifest, split: Split, answers: Sequence[Prediction], rows: np.ndarray
) -> dict[str, Any]:
    part = split.take(rows)
    chosen = [answers[row] for row in rows]
    metrics = all_metrics(manifest, part.labels, chosen)
    truth = label_matrix(part.labels, manifest.labels)
    answered = label_matrix([tuple(answer.answer) for answer in chosen], manifest.labels)
    names: tuple[Metric, ...] = ("accuracy", "macro_f1")
    if manifest.task == "multi_label":
        names = ("micro_f1", "macro_f1")
    scores = {}
    for name in names:
        low, high = interval(truth, answered, name)
        scores[name] = {"value": metrics[name], "low": low, "high": high}
    return {"rows": len(part), "metrics": scores}
