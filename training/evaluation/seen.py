"""Rows of a test file that training has seen, and the score without them.

`whetstone run` has the training texts at hand and finds near-duplicates. A package keeps no texts,
only hashes of them (`training.data.leakage`), so `whetstone evaluate` finds equal texts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.classifier import Prediction
from service.model_package import Manifest, Text
from training.data.leakage import overlap
from training.data.near_duplicates import Groups
from training.data.splits import Split
from training.metrics import all_metrics, label_matrix
from training.significance import Metric, interval


@dataclass(frozen=True)
class SeenRows:
    """The 0-based places of rows that training has, among the `looked_at` that could be told."""

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
    """Rows that are equal to a text a package was made with; None where it does not say."""
    found = overlap(manifest, texts)
    return None if found is None else SeenRows(found.rows, found.looked_at, "equal texts")


def unseen_metrics(
    manifest: Manifest, split: Split, answers: Sequence[Prediction], seen: SeenRows
) -> dict[str, Any]:
    """The main metrics of all rows, and of those that training has not seen, with intervals.

    Returns:
        `by`, `seen`, `looked_at`, and `with` and `without` these rows: how many there are, and of
        each metric `value`, and `low` and `high` of its 95 % interval. `without` is None where
        nothing is left.
    """
    every = np.arange(len(split))
    left = np.setdiff1d(every, np.asarray(seen.rows, dtype=int))
    whole = _scores(manifest, split, answers, every)
    without = whole
    if len(seen.rows):
        without = _scores(manifest, split, answers, left) if len(left) else None
    return {
        "by": seen.by,
        "seen": len(seen.rows),
        "looked_at": seen.looked_at,
        "with": whole,
        "without": without,
    }


def unseen_sentence(found: dict[str, Any]) -> str | None:
    """The score without what training has, for the screen; None where it has nothing."""
    if not found["seen"]:
        return None
    kind = "near-duplicates of" if found["by"] == "near-duplicates" else "equal to"
    begin = f"{found['seen']} of {found['looked_at']} rows are {kind} training texts"
    without = found["without"]
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
    given = [answers[row] for row in rows]
    found = all_metrics(manifest, part.labels, given)
    truth = label_matrix(part.labels, manifest.labels)
    answered = label_matrix([tuple(answer.answer) for answer in given], manifest.labels)
    names: tuple[Metric, ...] = ("accuracy", "macro_f1")
    if manifest.task == "multi_label":
        names = ("micro_f1", "macro_f1")
    scores = {}
    for name in names:
        low, high = interval(truth, answered, name)
        scores[name] = {"value": found[name], "low": low, "high": high}
    return {"rows": len(part), "metrics": scores}
