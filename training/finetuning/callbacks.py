"""Between training steps: the progress bar, when to evaluate, and stopping, early or on request."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.common.distributed import any_process, is_main_process
from training.common.progress import progress

SHOWN = {
    "eval_loss": "validation loss",
    "eval_accuracy": "accuracy",
    "eval_micro_f1": "micro-F1",
    "eval_macro_f1": "macro-F1",
    "eval_average_precision": "average precision",
}

# Between two evaluations, and two checkpoints, at the ends of epochs.
STEPS_BETWEEN = 15


class Progress(TrainerCallback):
    """One bar over all steps with loss and rate; one line per evaluation."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if is_main_process():
            self.bar = progress(state.max_steps, "train", "step", initial=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", lr=f"{logs['learning_rate']:.1e}")
        if "eval_macro_f1" in logs:
            scores = [f"{text} {logs[key]:.4f}" for key, text in SHOWN.items() if key in logs]
            self.bar.write(f"epoch {logs['epoch']:g}: {', '.join(scores)}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


class StopEarly(TrainerCallback):
    """Stop after `patience` evaluations without a better score and without a lower loss.

    At first a model often answers the most frequent label alone: its score stands still for some
    epochs while the loss falls. Evaluations are read from the state of the run, which a resumed run
    has, too. transformers' own callback keeps a count of its own, which would start anew.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.is_time(args, state):
            control.should_training_stop = True

    def is_time(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether a run with these evaluations is to stop."""
        name = str(args.metric_for_best_model).removeprefix("eval_")
        scores = [entry[key] for entry in state.log_history if (key := f"eval_{name}") in entry]
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if not scores:
            return False
        best = max(scores) if args.greater_is_better else min(scores)
        since = min(len(scores) - scores.index(best), len(losses) - losses.index(min(losses)))
        return since > self.patience


class SpareEvaluations(TrainerCallback):
    """Evaluate and save at the end of an epoch only STEPS_BETWEEN steps after the last time.

    With a dozen rows an epoch is one step, and a checkpoint after each would cost more than it.
    """

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After transformers' own callback, which asks for both."""
        by_epoch = args.eval_strategy == args.save_strategy == "epoch"
        before = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        soon = state.global_step - max(before, default=0) < STEPS_BETWEEN
        if by_epoch and soon and state.global_step < state.max_steps:
            control.should_evaluate = control.should_save = False


class StopOnRequest(TrainerCallback):
    """Save and stop after the step during which `requested` was set, in whichever process."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.requested = any_process(self.requested)
        if self.requested:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer after the last step as well, which saves once.

        In the middle of an epoch there is no evaluation, as in a run that is not stopped.
        """
        if self.requested:
            control.should_save = True
            if state.epoch is not None and state.epoch != round(state.epoch):
                control.should_evaluate = False
