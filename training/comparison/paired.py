"""Champion and challenger on the same rows: which answers changed, by label and by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.package.manifest import Task
from training.evaluation.reasons import SIGNIFICANCE
from training.evaluation.significance import (
    Difference,
    Metric,
    label_changes,
    label_f1,
    mcnemar,
    paired_difference,
)


@dataclass(frozen=True)
class PairedAnswers:
    """The truth and the answers of both packages to the same rows.

    Attributes:
        labels: the labels of the columns: the challenger's, then those that only the champion has.
        truth, before, after: booleans of shape (rows, labels); `before` are the champion's answers.
        shared: the labels that both packages know, booleans of shape (labels,).
    """

    labels: tuple[str, ...]
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    shared: np.ndarray

    def of_shared_labels(self) -> PairedAnswers:
        """The columns that both packages know.

        A label that only one package can answer would count 0 whoever is compared.
        """
        shared = self.shared
        labels = tuple(x for x, known in zip(self.labels, shared, strict=True) if known)
        return PairedAnswers(
            labels=labels,
            truth=self.truth[:, shared],
            before=self.before[:, shared],
            after=self.after[:, shared],
            shared=shared[shared],
        )

    def difference(self, metric: Metric) -> Difference:
        """How much higher a metric is of the challenger's answers."""
        return paired_difference(self.truth, self.before, self.after, metric)


@dataclass(frozen=True)
class LabelChange:
    """The F1 of one label before and after; `worse` and `better` are Holm-corrected p-values.

    Both p-values are one-sided. `lost` and `gained` count rows.
    """

    label: str
    rows: int
    before: float | None
    after: float | None
    lost: int
    gained: int
    worse: float
    better: float

    @property
    def gain(self) -> float:
        """The change of F1; a label that neither occurs nor is answered counts 0."""
        return (self.after or 0) - (self.before or 0)


@dataclass(frozen=True)
class Flip:
    """A row answered differently; `row` is its 0-based place among the rows compared."""

    row: int
    kind: str


@dataclass(frozen=True)
class Paired:
    """What changed between both packages on the same rows.

    Attributes:
        lost, gained: rows that only the champion, and only the challenger, answers rightly.
        p_value: of McNemar's exact test of these two counts.
    """

    answers: PairedAnswers
    differences: dict[Metric, Difference]
    lost: int
    gained: int
    p_value: float
    per_label: list[LabelChange]
    flips: list[Flip]


def compare_rows(answers: PairedAnswers, scores: np.ndarray, task: Task) -> Paired:
    """Count every change on the same rows. Macro-F1 is over the shared labels.

    Args:
        scores: the challenger's score of each row, shape (rows,).
    """
    truth, before, after = answers.truth, answers.before, answers.after
    metric: Metric = "accuracy" if task == "single_label" else "micro_f1"
    right_before, right_after = (truth == before).all(axis=1), (truth == after).all(axis=1)
    lost = int((right_before & ~right_after).sum())
    gained = int((~right_before & right_after).sum())
    return Paired(
        answers=answers,
        differences={
            metric: answers.difference(metric),
            "macro_f1": answers.of_shared_labels().difference("macro_f1"),
        },
        lost=lost,
        gained=gained,
        p_value=mcnemar(lost, gained),
        per_label=_label_changes(answers),
        flips=_flips(answers, scores),
    )


def _label_changes(answers: PairedAnswers) -> list[LabelChange]:
    """The change of every label, the largest loss of F1 first; p-values of shared labels only."""
    truth, before, after = answers.truth, answers.before, answers.after
    shared = answers.of_shared_labels()
    worse, better = np.ones(len(answers.labels)), np.ones(len(answers.labels))
    worse[answers.shared] = label_changes(shared.truth, shared.before, shared.after, SIGNIFICANCE)
    better[answers.shared] = label_changes(shared.truth, shared.after, shared.before, SIGNIFICANCE)
    f1_before, f1_after = label_f1(truth, before), label_f1(truth, after)
    lost = ((before == truth) & (after != truth)).sum(axis=0)
    gained = ((before != truth) & (after == truth)).sum(axis=0)
    changes = [
        LabelChange(
            label=label,
            rows=int(truth[:, place].sum()),
            before=_number_or_none(f1_before[place]),
            after=_number_or_none(f1_after[place]),
            lost=int(lost[place]),
            gained=int(gained[place]),
            worse=float(worse[place]),
            better=float(better[place]),
        )
        for place, label in enumerate(answers.labels)
    ]
    return sorted(changes, key=lambda change: change.gain)


def _number_or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _flips(answers: PairedAnswers, scores: np.ndarray) -> list[Flip]:
    """Rows answered differently: most labels newly wrong first, then the most confident answer."""
    wrong_before = (answers.truth != answers.before).sum(axis=1)
    wrong_after = (answers.truth != answers.after).sum(axis=1)
    worse_by = wrong_after - wrong_before
    rows = np.flatnonzero((answers.before != answers.after).any(axis=1))
    ranked = sorted(rows.tolist(), key=lambda row: (-worse_by[row], -scores[row], row))

    def kind(row: int) -> str:
        if not wrong_before[row]:
            return "lost"
        return "gained" if not wrong_after[row] else "still wrong"

    return [Flip(row, kind(row)) for row in ranked]
