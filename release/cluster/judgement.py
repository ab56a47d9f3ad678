"""A canary beside the pods that run already: do both answer alike, over the same minutes?

    judgement = judge(canary, stable, looks=2)

Compared are the shares of errors and refusals, the latency, and the predictions: the share of each
label, all labels together, confidence and abstention. A difference undoes the release where two
things hold.

- It is no chance: its p-value, corrected for all comparisons (Holm 1979) and for every step of the
  canary, is below SIGNIFICANCE.
- It is large enough to matter. Of a million requests every difference is significant.

The texts of a request are often alike. So they count as one answer: counts of texts are scaled down
to the number of answered requests. Fewer than LEAST_ANSWERS of them on either side decide nothing
about predictions. How often each judgement falls is simulated by `benchmarks/canary.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from release.cluster.health import (
    ABSTAINED,
    MOST_ERROR_SHARE,
    MOST_REFUSED_INCREASE,
    TEXTS,
    Sample,
    find_slowness,
)
from release.options import CANARY_SHIFT
from training.evaluation.homogeneity import Counts, p_of_histograms, p_of_shares, total_variation
from training.evaluation.significance import holm

SIGNIFICANCE = 0.01
# Errors and refusals are looked at every few seconds, so chance has more occasions.
SIGNIFICANCE_OF_A_LOOK = 0.001
# Total variation of histograms: half the sum of the differences of their shares.
MOST_MIX_SHIFT = 0.05
MOST_CONFIDENCE_SHIFT = 0.1
LEAST_ANSWERS = 200


class Difference(NamedTuple):
    """One comparison of predictions.

    `stable` and `canary` are shares; None of a histogram. `size` is their difference, or the total
    variation of the histograms. `p` is corrected for all comparisons and steps.
    """

    name: str
    stable: float | None
    canary: float | None
    size: float
    most: float
    p: float

    @property
    def matters(self) -> bool:
        """Whether it is no chance, and large enough."""
        return self.p < SIGNIFICANCE and abs(self.size) >= self.most

    def __str__(self) -> str:
        if self.stable is None or self.canary is None:
            return f"{self.name} differs by {self.size:.0%}"
        return f"{self.name} is {self.canary:.1%}, of the old pods {self.stable:.1%}"


class Judgement(NamedTuple):
    """What speaks against a canary, and what too few requests left open; None for nothing."""

    trouble: str | None
    undecided: str | None
    differences: list[Difference]


def judge(
    canary: Sample,
    stable: Sample,
    looks: int,
    *,
    most_shift: float = CANARY_SHIFT,
    same_labels: bool = True,
) -> Judgement:
    """Judge a step of a canary by the requests of the same minutes.

    Args:
        looks: how many steps the canary has.
        most_shift: from which difference of a share on predictions undo the release.
        same_labels: whether both models have the same labels; else labels are not compared.
    """
    differences: list[Difference] = []
    undecided = None
    least = min(answered(canary), answered(stable))
    if least < LEAST_ANSWERS:
        undecided = f"fewer than {LEAST_ANSWERS} answers decide nothing about predictions"
    else:
        differences = _differences(canary, stable, looks, most_shift, same_labels=same_labels)
    trouble = find_difference(canary, stable, SIGNIFICANCE / looks)
    shifted = [each for each in differences if each.matters]
    if trouble is None and shifted:
        worst = max(shifted, key=lambda each: abs(each.size) / each.most)
        more = f", and {len(shifted) - 1} other differences" if len(shifted) > 1 else ""
        trouble = f"{worst}{more}"
    return Judgement(trouble, undecided, differences)


def find_difference(canary: Sample, stable: Sample, significance: float) -> str | None:
    """Whether the canary fails, refuses or is slow more often; None if nothing speaks for it."""
    counts = (
        ("failed", canary.errors, stable.errors, MOST_ERROR_SHARE),
        ("were refused (429)", canary.statuses[429], stable.statuses[429], MOST_REFUSED_INCREASE),
    )
    now, before = canary.requests, stable.requests
    for what, of_canary, of_stable, most in counts:
        if not now or of_canary / now - of_stable / max(before, 1) < most:
            continue
        # Without a request to the old pods nothing is known of them: they may fail as often.
        if p_of_shares(of_stable, before, of_canary, now) < significance:
            return (
                f"{of_canary:,} of {now:,} requests to the canary {what}, of the old pods "
                f"{of_stable:,} of {before:,}"
            )
    return find_slowness(canary, stable)


def answered(sample: Sample) -> int:
    """How many answered requests the predictions are of; texts of one request count as one."""
    return min(sample.statuses[200], sample.answers[TEXTS])


def _differences(
    canary: Sample, stable: Sample, looks: int, most_shift: float, *, same_labels: bool
) -> list[Difference]:
    """Every comparison of predictions, the largest difference first."""
    rows = {id(each): float(answered(each)) for each in (canary, stable)}
    names = sorted({*canary.labels, *stable.labels}) if same_labels else []
    # Of several labels a text the shares do not add up to one.
    one_each = all(sum(each.labels.values()) == each.answers[TEXTS] for each in (canary, stable))
    if len(names) == 2 and one_each:
        # The other one follows from it.
        names = names[1:]

    def share(name: str, hits: int, of_stable: int) -> Difference:
        new, old = hits / canary.answers[TEXTS], of_stable / stable.answers[TEXTS]
        counts = (old * rows[id(stable)], rows[id(stable)], new * rows[id(canary)])
        p = p_of_shares(*counts, rows[id(canary)])
        return Difference(name, old, new, new - old, most_shift, p)

    found = [
        share(f"the share of label {name!r}", canary.labels[name], stable.labels[name])
        for name in names
    ]
    found.append(
        share("the share of abstentions", canary.answers[ABSTAINED], stable.answers[ABSTAINED])
    )
    # A counter leaves out the edges up to which there is nothing.
    edges = sorted({*canary.confidence, *stable.confidence})
    new, old = (_scaled(_bins(each.confidence, edges), rows[id(each)]) for each in (canary, stable))
    if new.sum() and old.sum():
        found.append(_histogram("confidence", old, new, MOST_CONFIDENCE_SHIFT))
    if len(names) > 2 and one_each:
        new, old = (
            _scaled(np.array([each.labels[name] for name in names], np.float64), rows[id(each)])
            for each in (canary, stable)
        )
        most = max(MOST_MIX_SHIFT, most_shift)
        found.append(_histogram("the mix of labels", old, new, most))
    corrected = holm([each.p for each in found])
    return sorted(
        (each._replace(p=min(1.0, p * looks)) for each, p in zip(found, corrected, strict=True)),
        key=lambda each: -abs(each.size),
    )


def _histogram(name: str, stable: Counts, canary: Counts, most: float) -> Difference:
    size = total_variation(stable, canary)
    return Difference(name, None, None, size, most, p_of_histograms(stable, canary))


def _bins(cumulative: Counter[float], edges: Sequence[float]) -> Counts:
    """Counts by bin, of counts up to each upper edge."""
    return np.diff([cumulative[edge] for edge in edges], prepend=0).astype(np.float64)


def _scaled(counts: Counts, rows: float) -> Counts:
    total = counts.sum()
    return counts * (rows / total) if total else counts
