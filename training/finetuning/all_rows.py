"""The last training where rows are few: on all of them, those that were set aside included.

Rows that only measure a model are lost to it. A tenth of a few hundred rows is much to lose, and
too little to choose by. The first training leaves them out: its logits of them, which no training
has flattered, calibrate the package and measure it. The second training has all rows, as many
epochs as the first one kept, and ships.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from training.finetuning.losses import label_weights

if TYPE_CHECKING:
    from training.finetuning.plan import TrainingPlan

# Steps between two checkpoints, from which a training that was killed continues.
STEPS_BETWEEN = 100
# The folder of its curves, inside that of the first training's.
CURVES = "all_rows"


class StopAfter(TrainerCallback):
    """Stop after so many epochs, or parts of one, on a schedule that would go on."""

    def __init__(self, epoch: float) -> None:
        self.epoch = epoch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.is_over(state):
            control.should_training_stop = True

    def is_over(self, state: TrainerState) -> bool:
        """Whether a training in this state has nothing left to do."""
        return state.epoch is not None and state.epoch >= self.epoch


def plan_all_rows(plan: TrainingPlan) -> TrainingPlan:
    """The plan for all rows: a new model, and no evaluation that would choose among its epochs."""
    data = dataclasses.replace(plan.data, train=plan.data.train.joined(plan.data.validation))
    arguments = copy.copy(plan.arguments)
    arguments.eval_strategy, arguments.eval_on_start = IntervalStrategy.NO, False
    arguments.load_best_model_at_end = False
    arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, STEPS_BETWEEN
    arguments.logging_dir = str(Path(str(arguments.logging_dir)) / CURVES)
    return dataclasses.replace(
        plan,
        data=data,
        class_weights=label_weights(plan.recipe.data.class_weights, data),
        arguments=arguments,
        tuning=dataclasses.replace(plan.tuning, early_stopping_patience=0),
        model=plan.new_model(),
    )


def kept_epoch(record: dict[str, Any]) -> float | None:
    """The epoch whose weights the first training kept; None where that was its last."""
    *earlier, last = record["evaluations"] or [{}]
    kept = record["kept_step"]
    if last.get("step") == kept:
        return None
    return next((float(entry["epoch"]) for entry in earlier if entry["step"] == kept), None)
