"""One process's part of a search: it trains trials until the study has enough of them."""

from __future__ import annotations

import copy
import dataclasses
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from tqdm import tqdm
from transformers import TrainerCallback

from training.common.errors import DivergedError, InterruptedRunError
from training.common.layout import TRACKING
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.head_start import make_head_start
from training.finetuning.plan import TrainingPlan
from training.finetuning.study import (
    BEGUN,
    POLL_SECONDS,
    WORKER,
    StudyPlace,
    Watch,
    direction,
    finished_trials,
    running_trials,
    try_again,
    was_taken_over,
    worker_name,
)
from training.finetuning.trainer import make_trainer

# How a trial chooses the value of each key.
SearchSpace = dict[str, Callable[[optuna.Trial], Any]]


class BestOfTrial(TrainerCallback):
    """The best evaluation of the trial under way: the checkpoint of that epoch would be kept."""

    def __init__(self, measure: str, greater_is_better: bool) -> None:
        self._key = f"eval_{measure.removeprefix('eval_')}"
        self._better = max if greater_is_better else min
        self._best: float | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._best = None

    def __call__(self, metrics: dict[str, float]) -> float:
        """The objective after an evaluation."""
        score = metrics[self._key]
        self._best = score if self._best is None else self._better(self._best, score)
        return self._best


@dataclass
class Search:
    """What this process adds to a study, whose other processes do the same."""

    plan: TrainingPlan
    space: SearchSpace
    place: StudyPlace
    storage: RDBStorage
    study: optuna.Study
    trials: int
    # The number of the trial under way.
    number: int | None = None
    # Whether Ctrl-C ended it. Optuna says nothing of that where the trial was taken over.
    is_interrupted: bool = False

    def run(self) -> None:
        """Train trials, and wait for those of other processes, until enough are finished.

        Raises:
            InterruptedRunError: Ctrl-C. The trial under way is queued again.
        """
        if not self.place.is_shared:
            # One process at a time: a trial that runs has been left behind.
            for trial in running_trials(self.study):
                try_again(self.study, trial.number)
        try:
            self._run()
        except KeyboardInterrupt:
            if self.number is not None and not was_taken_over(self.study, self.number):
                try_again(self.study, self.number)
            raise InterruptedRunError(
                f"stopped after {len(finished_trials(self.study))} of {self.trials} trials, which "
                f"are kept in {self.place.shown}: give the same command again to continue"
            ) from None

    def _run(self) -> None:
        if len(finished_trials(self.study)) >= self.trials:
            return
        objective = BestOfTrial(
            str(self.plan.arguments.metric_for_best_model),
            bool(self.plan.arguments.greater_is_better),
        )
        trainer = _trainer_of_trials(self.plan)
        trainer.train = self._as_trial(trainer.train)  # type: ignore[method-assign]
        trainer.add_callback(objective)
        watch, awaited = Watch(self.study), 0
        while (finished := len(finished_trials(self.study))) < self.trials:
            running = len(running_trials(self.study))
            if finished + running < self.trials:
                self._train_one(trainer, objective)
                awaited = 0
                continue
            # The rest is in other hands. Where one of them dies, its trial is trained here.
            if running != awaited:
                tqdm.write(f"waiting for {running} trials of other processes")
                awaited = running
            watch.queue_dead_trials()
            time.sleep(POLL_SECONDS)

    def _train_one(self, trainer: FineTuner, objective: BestOfTrial) -> None:
        """Train the next trial, with values that are queued or that the sampler chooses."""
        self.number = None
        try:
            trainer.hyperparameter_search(
                hp_space=self._choose,
                compute_objective=objective,
                hp_name=lambda trial: f"trial-{trial.number + 1}",
                n_trials=1,
                direction=direction(self.plan),
                backend="optuna",
                storage=self.storage,
                study_name=self.study.study_name,
                load_if_exists=True,
                pruner=self.study.pruner,
                sampler=self.study.sampler,
            )
        except (ValueError, UpdateFinishedTrialError):
            if self.is_interrupted:
                raise KeyboardInterrupt from None
            if self.number is None:
                raise
            if was_taken_over(self.study, self.number):
                tqdm.write(f"trial {self.number + 1}: taken over by another process")
            # transformers asks for the best trial, also where no trial came to an end.
            elif self.study.get_trials(deepcopy=False)[self.number].state == TrialState.FAIL:
                raise
        self.number = None

    def _choose(self, trial: optuna.Trial) -> dict[str, Any]:
        self.number = trial.number
        if self.place.is_shared:
            trial.set_user_attr(BEGUN, trial.number)
            trial.set_user_attr(WORKER, worker_name())
        values = {key: choose_value(trial) for key, choose_value in self.space.items()}
        shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
        tqdm.write(f"trial {trial.number + 1}: {shown}")
        return values

    def _as_trial(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """`train`, of which values that cannot be trained end their trial, and not the search."""

        def train_trial(*arguments: Any, **options: Any) -> Any:
            try:
                return train(*arguments, **options)
            except KeyboardInterrupt:
                self.is_interrupted = True
                raise
            except (DivergedError, torch.OutOfMemoryError) as error:
                reason = str(error)
                if isinstance(error, torch.OutOfMemoryError) and self.number is not None:
                    tqdm.write(f"trial {self.number + 1}: stopped, as the device has no more room")
            # The error is let go before: it holds what has to leave the memory of the device.
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            raise optuna.TrialPruned(reason)

        return train_trial


def plan_of_trials(plan: TrainingPlan, folder: Path) -> TrainingPlan:
    """The plan of a trial, which saves no checkpoint and writes beside the study.

    The recipe's strategies are for one run that keeps its best checkpoint.
    """
    arguments = copy.copy(plan.arguments)
    arguments.save_strategy, arguments.load_best_model_at_end = "no", False
    arguments.output_dir, arguments.logging_dir = str(folder), str(folder / TRACKING)
    return dataclasses.replace(plan, arguments=arguments)


def _trainer_of_trials(plan: TrainingPlan) -> FineTuner:
    """A Trainer that makes a new model for every trial; all have the same head start."""
    start = make_head_start(plan)
    return make_trainer(
        plan,
        model_init=lambda: (
            plan.new_model() if start is None else start.applied_to(plan.new_model())
        ),
    )
