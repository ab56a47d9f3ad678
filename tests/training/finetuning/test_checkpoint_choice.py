"""Which weights a run keeps, by its evaluations."""

from __future__ import annotations

import pytest

from training.finetuning.checkpoint_choice import Evaluation, choose_step


@pytest.mark.parametrize(
    ("scores", "rows", "step"),
    [
        # Ten rows do not tell 0.9 from 0.85; a thousand do.
        ([0.5, 0.9, 0.85], 10, 2),
        ([0.5, 0.9, 0.85], 1000, 1),
        # The regression over the frozen encoder, before the first step.
        ([0.9, 0.5, 0.6], 100, 0),
        ([0.62, 0.5, 0.6], 100, 2),
        ([0.2, 0.3, 0.4], 10, 2),
        ([1.0, 0.9], 1000, 0),
    ],
)
def test_the_last_is_kept_unless_an_earlier_one_is_surely_better(
    scores: list[float], rows: int, step: int
) -> None:
    found = [Evaluation(number, score) for number, score in enumerate(scores)]
    assert choose_step(found, rows, greater=True) == step


def test_the_checkpoint_with_the_lowest_loss_is_kept() -> None:
    found = [Evaluation(1, 2.0), Evaluation(2, 1.5), Evaluation(3, 1.6)]
    assert choose_step(found, 10, greater=False, bounded=False) == 2
