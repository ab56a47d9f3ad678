"""Champion against challenger: may a retrained package replace the one that runs?

    whetstone compare text-classifier:3f2a9c1b77d0 runs/tickets/package --data test.csv

Both answer the rows of one labelled file through `Classifier`; `training.promotion` has the rules.
What is found is written by `training.compare_output` and `training.report.comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from service.classifier import Classifier, Prediction
from service.model_package import MODEL_FILE, Manifest, Task
from training.config import columns_of, recipe_of
from training.costs import cpu_milliseconds
from training.data.dataset import read_labelled
from training.data.leakage import Overlap, overlap
from training.data.sources import sha256_of
from training.data.splits import Split
from training.errors import CompareError
from training.gates import SIGNIFICANCE, parse_bound
from training.metrics import all_metrics, label_matrix
from training.progress import progress
from training.promotion import (
    Bounds,
    Outcome,
    Rule,
    against_champion,
    changed_labels,
    decide,
    missed_floors,
    parse_compare,
)
from training.publish import package_at
from training.significance import (
    Difference,
    Metric,
    label_changes,
    label_f1,
    mcnemar,
    paired_difference,
)

NO_CHAMPION = "none"
# Fewer of a file's rows that can be looked up say little of the others.
LOOKED_UP = 0.5


@dataclass(frozen=True)
class Side:
    """One of the two: its answers to the rows compared, and what it costs."""

    named: str
    manifest: Manifest
    answers: list[Prediction]
    metrics: dict[str, Any]
    model_bytes: int
    cpu_ms: dict[str, float]
    overlap: Overlap | None


@dataclass(frozen=True)
class LabelChange:
    """How one label fared; `worse` and `better` are Holm-corrected one-sided p-values."""

    label: str
    rows: int
    before: float | None
    after: float | None
    lost: int
    gained: int
    worse: float
    better: float


@dataclass(frozen=True)
class Flip:
    """A row answered differently; `row` is its 0-based place among those compared."""

    row: int
    kind: str


@dataclass(frozen=True)
class Paired:
    """What the same rows say of both; `before` and `after` are booleans of shape (rows, labels)."""

    before: np.ndarray
    after: np.ndarray
    differences: dict[Metric, Difference]
    lost: int
    gained: int
    p_value: float
    per_label: list[LabelChange]
    flips: list[Flip]


@dataclass(frozen=True)
class Comparison:
    """All that was found.

    `sha256` is that of the files `where`, `split` holds the rows compared, `rows` their 0-based
    places in the file.
    `left_out` rows have labels that only one side knows; they count for no difference. Floors are
    asked of all rows that the challenger knows the labels of.
    """

    outcome: Outcome
    reasons: dict[Rule, str]
    warnings: list[str]
    bounds: Bounds
    where: str
    sha256: str
    split: Split
    rows: np.ndarray
    dropped: int
    left_out: int
    floors_measured_on: dict[str, float]
    champion: Side | None
    challenger: Side
    paired: Paired | None
    gone: list[str]
    come: list[str]
    allow_label_change: bool

    @property
    def sentence(self) -> str:
        """The verdict and why."""
        if self.reasons:
            return f"{self.outcome}: {'; '.join(self.reasons.values())}"
        if self.paired is None or self.champion is None:
            return f"{self.outcome}: there is no champion, and no floor is missed"
        if self.champion.manifest.version == self.challenger.manifest.version:
            return f"{self.outcome}: both are version {self.challenger.manifest.version}"
        found = self.paired.differences["macro_f1"]
        low, high = found.ends
        return (
            f"{self.outcome}: macro-F1 {found.point:+.4f} (95 % interval {low:+.4f} to "
            f"{high:+.4f}), and no rule speaks against it"
        )


def compare(
    champion: str,
    challenger: str,
    data: str | Path,
    *,
    bounds: Mapping[str, Any] = MappingProxyType({}),
    columns: Mapping[str, Any] = MappingProxyType({}),
    allow_label_change: bool = False,
) -> Comparison:
    """Let both answer the file, and judge.

    Args:
        champion, challenger: folder, tag, version or published address; the champion may be `none`.
        bounds: what wins over the challenger's recipe, by name; None counts as not given.
        columns: which columns of the file are read, where not as in the challenger's recipe.

    Raises:
        RecipeError: a bound is not possible.
        CompareError: the two do not do the same task, or share no row.
        WhetstoneError: a package or the file cannot be used.
        PublishError: a published package cannot be fetched.
        PackageError: a package does not verify.
    """
    data = str(data)
    new = _load(challenger)
    limits = bounds_of(new.manifest, bounds)
    old = None if champion == NO_CHAMPION else _load(champion)
    ours = new.manifest.labels
    theirs = ours if old is None else old.manifest.labels
    gone = [label for label in theirs if label not in ours]
    come = [label for label in ours if label not in theirs]
    if old is not None:
        _refuse_other_task(old.manifest, new.manifest)
    arguments = columns_of(new.manifest, columns)
    labelled = read_labelled(data, arguments, [*ours, *gone], new.manifest.task)
    split = labelled.split
    if not any(split.labels):
        raise CompareError(f"{data}: no row has a label, so there is nothing to measure")

    known = _rows_of(split, set(ours))
    shared = known if old is None else _rows_of(split, set(ours) & set(theirs))
    if not any(split.labels[row] for row in shared):
        whose = "that the package knows" if old is None else "that both packages know"
        raise CompareError(f"{data}: no row has labels {whose}")
    compared = split.take(shared)
    costs = cpu_milliseconds({"new": new} if old is None else {"new": new, "old": old})
    challenger_side = _side(challenger, new, "challenger", compared, costs["new"])
    champion_side = None
    if old is not None:
        champion_side = _side(champion, old, "champion", compared, costs["old"])

    reasons = {} if allow_label_change else changed_labels(gone, come)
    # Floors are of all that the challenger can answer, labels that are new with it too.
    whole = challenger_side.metrics
    if len(known) > len(shared):
        rows = split.take(known)
        whole = all_metrics(new.manifest, rows.labels, _answers(new, rows, "new labels"))
    floors = {"macro_f1": whole["macro_f1"], "ece": whole["calibration"]["ece"]}
    reasons |= missed_floors(**floors, bounds=limits)
    paired = None
    if champion_side is not None:
        labels = (*ours, *gone)
        truth = label_matrix(compared.labels, labels)
        before, after = (
            label_matrix([tuple(answer.answer) for answer in side.answers], labels)
            for side in (champion_side, challenger_side)
        )
        both = np.asarray([label in ours and label in theirs for label in labels])
        found, against = against_champion(truth, before, after, labels, limits, both)
        # The same content has the same answers to any row: no row is needed to tell.
        if champion_side.manifest.version != challenger_side.manifest.version:
            reasons |= against
        scores = np.asarray([answer.score for answer in challenger_side.answers])
        paired = _paired(labels, truth, before, after, both, found, scores, new.manifest.task)
    return Comparison(
        decide(reasons),
        reasons,
        _warnings(data, champion_side, challenger_side, limits),
        limits,
        data,
        sha256_of(data),
        compared,
        labelled.rows[shared],
        labelled.dropped,
        len(split) - len(shared),
        {"rows": len(known), **floors},
        champion_side,
        challenger_side,
        paired,
        gone,
        come,
        allow_label_change,
    )


def _load(target: str) -> Classifier:
    with package_at(target) as folder:
        return Classifier.load(folder)


def bounds_of(manifest: Manifest, given: Mapping[str, Any]) -> Bounds:
    """The bounds of the challenger's recipe; those given win.

    Raises:
        RecipeError: one of them is not possible.
    """
    stated = parse_compare(recipe_of(manifest).get("compare"))
    chosen = {
        name: parse_bound("compare", name, value)
        for name, value in given.items()
        if value is not None
    }
    return replace(stated, **chosen)


def _refuse_other_task(old: Manifest, new: Manifest) -> None:
    for what, one, other in (
        ("gives", _task(old), _task(new)),
        ("reads", _reading(old), _reading(new)),
    ):
        if one != other:
            raise CompareError(
                f"the champion {old.name} {old.version} {what} {one}, the challenger {new.name} "
                f"{new.version} {other}: they cannot be compared on the same rows"
            )


def _task(manifest: Manifest) -> str:
    several = manifest.task == "multi_label"
    return "any number of labels a row" if several else "one label a row"


def _reading(manifest: Manifest) -> str:
    return "pairs of texts" if manifest.has_pairs else "single texts"


def _rows_of(split: Split, labels: set[str]) -> np.ndarray:
    """The places of the rows that have no other labels than these."""
    return np.flatnonzero([labels.issuperset(row) for row in split.labels])


def _answers(classifier: Classifier, split: Split, name: str) -> list[Prediction]:
    with progress(len(split), name, "text", leave=False) as bar:
        return classifier.classify(split.texts, on_batch=bar.update)


def _side(
    named: str, classifier: Classifier, name: str, split: Split, cpu_ms: dict[str, float]
) -> Side:
    answers = _answers(classifier, split, name)
    manifest = classifier.manifest
    return Side(
        named,
        manifest,
        answers,
        all_metrics(manifest, split.labels, answers),
        manifest.files[MODEL_FILE].size,
        cpu_ms,
        overlap(manifest, split.texts),
    )


def _paired(
    labels: tuple[str, ...],
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    both: np.ndarray,
    macro_f1: Difference,
    scores: np.ndarray,
    task: Task,
) -> Paired:
    """Everything that is counted on the same rows; `scores` are the challenger's, shape (rows,)."""
    metrics: tuple[Metric, ...] = ("accuracy",) if task == "single_label" else ("micro_f1",)
    differences = {name: paired_difference(truth, before, after, name) for name in metrics}
    differences["macro_f1"] = macro_f1
    right_before, right_after = (truth == before).all(axis=1), (truth == after).all(axis=1)
    lost, gained = (
        int((right_before & ~right_after).sum()),
        int((~right_before & right_after).sum()),
    )
    return Paired(
        before,
        after,
        differences,
        lost,
        gained,
        mcnemar(lost, gained),
        _per_label(labels, truth, before, after, both),
        _flips(truth, before, after, scores),
    )


def _per_label(
    labels: Sequence[str],
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    both: np.ndarray,
) -> list[LabelChange]:
    """What became of every label, the largest loss of F1 first.

    Args:
        both: the labels that both know, booleans of shape (labels,); only they can be compared.
    """
    known = truth[:, both], before[:, both], after[:, both]
    worse, better = np.ones(len(labels)), np.ones(len(labels))
    worse[both] = label_changes(*known, SIGNIFICANCE)
    better[both] = label_changes(known[0], known[2], known[1], SIGNIFICANCE)
    old, new = label_f1(truth, before), label_f1(truth, after)
    lost = ((before == truth) & (after != truth)).sum(axis=0)
    gained = ((before != truth) & (after == truth)).sum(axis=0)
    changes = [
        LabelChange(
            label,
            int(truth[:, place].sum()),
            None if np.isnan(old[place]) else float(old[place]),
            None if np.isnan(new[place]) else float(new[place]),
            int(lost[place]),
            int(gained[place]),
            float(worse[place]),
            float(better[place]),
        )
        for place, label in enumerate(labels)
    ]
    return sorted(changes, key=lambda one: (one.after or 0) - (one.before or 0))


def _flips(
    truth: np.ndarray, before: np.ndarray, after: np.ndarray, scores: np.ndarray
) -> list[Flip]:
    """Rows answered differently: most labels newly wrong first, of those the surest answer."""
    wrong_before, wrong_after = (truth != before).sum(axis=1), (truth != after).sum(axis=1)
    worse_by = wrong_after - wrong_before
    rows = np.flatnonzero((before != after).any(axis=1))
    ranked = sorted(rows.tolist(), key=lambda row: (-worse_by[row], -scores[row], row))

    def kind(row: int) -> str:
        if not wrong_before[row]:
            return "lost"
        return "gained" if not wrong_after[row] else "still wrong"

    return [Flip(row, kind(row)) for row in ranked]


def _warnings(where: str, champion: Side | None, challenger: Side, bounds: Bounds) -> list[str]:
    """What makes the comparison worth less than it looks."""
    found = []
    for side, name in ((challenger, "challenger"), (champion, "champion")):
        if side is None:
            continue
        if side.overlap is None:
            found.append(
                f"the {name} does not say which texts it was trained on, so nobody knows whether "
                f"{where} flatters it: a package exported anew says it"
            )
            continue
        rows, looked_at = len(side.overlap.rows), side.overlap.looked_at
        of = f"{looked_at} rows" if looked_at == len(side.answers) else f"the {looked_at} rows"
        if rows:
            found.append(
                f"{rows} of {of} of {where} that could be looked up are among the texts that the "
                f"{name} was trained or tuned on, which flatters it: use rows that it has not seen"
            )
        elif looked_at < len(side.answers) * LOOKED_UP:
            found.append(
                f"only {looked_at} of {len(side.answers)} rows could be looked up among the texts "
                f"that the {name} was trained on, so it may be flattered without a warning"
            )
    if champion is not None and champion.manifest.version == challenger.manifest.version:
        found.append(
            "champion and challenger are the same package, so nothing was compared: is the "
            "champion the one that runs?"
        )
    if champion is None and not bounds.has_floor:
        found.append(
            "nothing is asked of the challenger: set floors with --min_macro_f1 and --max_ece, or "
            "the recipe's key compare"
        )
    return found
