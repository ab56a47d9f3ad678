"""`whetstone tune RECIPE --trials N`: search for better hyperparameters than the computed ones.

The keys that the recipe gives stay as they are. The others are searched for around their defaults,
which are the first trial. The study is an SQLite file: the same command continues where it was
stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from service.package.files import write_text
from training.common.distributed import world_size
from training.common.errors import DivergedError, InterruptedRunError, RecipeError, RunError
from training.common.layout import TRACKING
from training.data.dataset import load_data
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.head_start import make_head_start
from training.finetuning.lock import run_lock
from training.finetuning.output import draw_trials
from training.finetuning.plan import TrainingPlan, plan_training
from training.finetuning.rehearsal import rehearse
from training.finetuning.resolved_recipe import absolute_data_paths
from training.finetuning.trainer import make_trainer
from training.recipe.arguments import Recipe, recipe_seed

FOLDER = "tuning"
STUDY = "study.db"
BEST_RECIPE = "recipe.yaml"
PICTURE = "trials.png"
# A learning rate may be so many times its default, or its default divided by that.
RATES = 4
# All defaults of one process are among them, whatever the device: a study continues with these.
BATCH_SIZES = (8, 16, 32, 64, 128)
DECAYS = (0.0, 0.01, 0.1)
# The number of trials before any is pruned because others were better.
FIRST_TRIALS = 5

# How a trial chooses the value of each key.
SearchSpace = dict[str, Callable[[optuna.Trial], Any]]


@dataclass(frozen=True)
class Tuned:
    """The result of a search: its folder, the finished trials, the best of them."""

    folder: Path
    measure: str
    trials: list[FrozenTrial]
    best: FrozenTrial

    @property
    def recipe(self) -> Path:
        """The recipe with the best trial's values."""
        return self.folder / BEST_RECIPE


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


def tune(recipe: Recipe, trials: int, *, overwrite: bool = False) -> Tuned:
    """Search until `trials` trials are finished, those of earlier calls among them.

    Raises:
        WhetstoneError: the data, base model or recipe cannot be used, or the folder holds the
            study of another recipe.
        InterruptedRunError: Ctrl-C; finished trials are kept.
    """
    if world_size() > 1:
        raise RecipeError("tune runs in one process: start it without torchrun")
    plan = plan_training(recipe, load_data(recipe.data, recipe_seed(recipe)))
    space = search_space(recipe, plan.arguments)
    rehearse(plan)
    folder = recipe.output_dir / FOLDER
    measure = str(plan.arguments.metric_for_best_model)
    with run_lock(recipe.output_dir):
        storage = _open_storage(folder, overwrite)
        study = _open_study(storage, plan, folder)
        if not _finished_trials(study):
            study.enqueue_trial({key: getattr(plan.arguments, key) for key in space})
        missing = trials - len(_finished_trials(study))
        if missing > 0:
            try:
                _run_trials(_plan_of_trials(plan, folder), space, storage, study, missing)
            except KeyboardInterrupt:
                raise InterruptedRunError(
                    f"stopped after {len(_finished_trials(study))} of {trials} trials, which are "
                    f"kept in {folder / STUDY}: give the same command again to continue"
                ) from None
        if not _complete_trials(study):
            raise RunError(f"no trial came to an end: {folder / STUDY} holds none with a result")
        tuned = Tuned(folder, measure, _finished_trials(study), study.best_trial)
        _write_recipe(recipe, tuned, plan.tuning.early_stopping_patience)
        draw_trials(tuned, folder / PICTURE)
        return tuned


def search_space(recipe: Recipe, arguments: TrainingArguments) -> SearchSpace:
    """How a trial chooses each key that the recipe leaves open.

    Raises:
        RecipeError: the recipe leaves none open.
    """
    rate, epochs = arguments.learning_rate, round(arguments.num_train_epochs)
    space: SearchSpace = {
        "learning_rate": lambda trial: trial.suggest_float(
            "learning_rate", rate / RATES, rate * RATES, log=True
        ),
        "num_train_epochs": lambda trial: trial.suggest_int(
            "num_train_epochs", max(1, epochs // 2), epochs * 2
        ),
        "per_device_train_batch_size": lambda trial: trial.suggest_categorical(
            "per_device_train_batch_size", BATCH_SIZES
        ),
        "weight_decay": lambda trial: trial.suggest_categorical("weight_decay", DECAYS),
    }
    left_open = {key: choose for key, choose in space.items() if key not in recipe.training}
    if not left_open:
        raise RecipeError(f"the recipe gives every key that tune searches: {', '.join(space)}")
    return left_open


def _open_storage(folder: Path, overwrite: bool) -> optuna.storages.RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}")


def _open_study(
    storage: optuna.storages.RDBStorage, plan: TrainingPlan, folder: Path
) -> optuna.Study:
    """The study of this plan, or a new one; a trial that was interrupted counts as failed.

    Raises:
        RunError: the file holds the study of another recipe, base or other data.
    """
    # Trials from other weights cannot be compared.
    name = f"{plan.identity} {plan.base_sha256}"
    if any(other != name for other in optuna.get_all_study_names(storage)):
        raise RunError(
            f"{folder} holds the study of another recipe, base model or other data: choose another "
            "--output_dir, or replace it with --overwrite"
        )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction=_direction(plan),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=1),
    )
    # The number of trials is the seed: with one seed every call would try the same values again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _direction(plan: TrainingPlan) -> Literal["maximize", "minimize"]:
    return "maximize" if plan.arguments.greater_is_better else "minimize"


def _finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials with a result, those among them that were stopped because others were better."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _plan_of_trials(plan: TrainingPlan, folder: Path) -> TrainingPlan:
    """The plan of a trial, which saves no checkpoint and writes beside the study.

    The recipe's strategies are for one run that keeps its best checkpoint.
    """
    arguments = copy.copy(plan.arguments)
    arguments.save_strategy, arguments.load_best_model_at_end = "no", False
    arguments.output_dir, arguments.logging_dir = str(folder), str(folder / TRACKING)
    return dataclasses.replace(plan, arguments=arguments)


def _run_trials(
    plan: TrainingPlan,
    space: SearchSpace,
    storage: optuna.storages.RDBStorage,
    study: optuna.Study,
    trials: int,
) -> None:
    """Train so many models more, each with values that the study's sampler chooses."""
    objective = BestOfTrial(
        str(plan.arguments.metric_for_best_model), bool(plan.arguments.greater_is_better)
    )
    trainer = _trainer_of_trials(plan)
    trainer.add_callback(objective)

    def choose(trial: optuna.Trial) -> dict[str, Any]:
        values = {key: choose_value(trial) for key, choose_value in space.items()}
        shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
        tqdm.write(f"trial {trial.number + 1}: {shown}")
        return values

    try:
        trainer.hyperparameter_search(
            hp_space=choose,
            compute_objective=objective,
            hp_name=lambda trial: f"trial-{trial.number + 1}",
            n_trials=trials,
            direction=_direction(plan),
            backend="optuna",
            storage=storage,
            study_name=study.study_name,
            load_if_exists=True,
            pruner=study.pruner,
            sampler=study.sampler,
        )
    except ValueError:
        # transformers asks for the best trial, also where no trial came to an end.
        if _complete_trials(study):
            raise


def _trainer_of_trials(plan: TrainingPlan) -> FineTuner:
    """A Trainer that makes a new model for every trial; all have the same head start."""
    start = make_head_start(plan)
    trainer = make_trainer(
        plan,
        model_init=lambda: (
            plan.new_model() if start is None else start.applied_to(plan.new_model())
        ),
    )
    trainer.train = _pruned_where_it_diverges(trainer.train)  # type: ignore[method-assign]
    return trainer


def _pruned_where_it_diverges(train: Callable[..., Any]) -> Callable[..., Any]:
    """A rate that is too high for the loss ends its trial, and not the search."""

    def trial(*arguments: Any, **options: Any) -> Any:
        try:
            return train(*arguments, **options)
        except DivergedError as error:
            raise optuna.TrialPruned(str(error)) from error

    return trial


def _write_recipe(recipe: Recipe, tuned: Tuned, patience: int | None) -> None:
    """Write the recipe with the best values; its files have absolute paths.

    The patience is that of the trials: computed anew, it would follow the number of epochs chosen.
    """
    content = recipe.as_dict() | absolute_data_paths(recipe) | tuned.best.params
    content["early_stopping_patience"] = patience
    content["output_dir"] = str(recipe.output_dir.resolve())
    lines = [
        f"# The best of {len(tuned.trials)} trials: {tuned.measure} {tuned.best.value:.4f} on the",
        "# validation rows, by which it was chosen.",
        yaml.safe_dump(content, allow_unicode=True, sort_keys=False),
    ]
    write_text(tuned.recipe, "\n".join(lines))
