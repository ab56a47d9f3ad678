"""Which evaluation's weights a run keeps: the last, unless an earlier one is surely better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Evaluation(NamedTuple):
    """The score of the weights after `step` steps."""

    step: int
    score: float


def choose_step(
    evaluations: Sequence[Evaluation], rows: int, *, greater: bool, bounded: bool = True
) -> int:
    """The step whose weights are kept.

    With few validation rows the best of many evaluations is mostly the luckiest, and early ones are
    of weights that have not settled. So the last is kept unless the best is better by more than its
    standard error, which is that of a share of `rows` (the rule of one standard error: Breiman et
    al. 1984, "Classification and Regression Trees", 3.4.3).

    Args:
        evaluations: in order, at least one.
        greater: whether a higher score is better.
        bounded: whether scores lie within 0 and 1; of others (a loss) the best is kept.
    """
    best = max(
        evaluations, key=lambda evaluation: evaluation.score if greater else -evaluation.score
    )
    last = evaluations[-1]
    if not bounded:
        return best.step
    error = math.sqrt(max(best.score * (1 - best.score), 0.0) / rows)
    return last.step if abs(best.score - last.score) <= error else best.step
