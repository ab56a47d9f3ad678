"""`whetstone tune RECIPE --trials N`: search for better hyperparameters than the computed ones.

The keys that the recipe gives stay as they are. The others are searched for around their defaults,
which are the first trial. The study is an SQLite file, or with `--storage` a database, where
several machines search together. The same command continues where it was stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import yaml
from optuna import Trial
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from transformers import TrainingArguments

from service.package.files import write_text
from training.common.distributed import world_size
from training.common.errors import RecipeError, RunError
from training.data.dataset import load_data
from training.data.encoding import row_sizes
from training.finetuning.formulas import LONG_ROW, SMALLEST_BATCH
from training.finetuning.lock import run_lock
from training.finetuning.output import draw_trials
from training.finetuning.plan import plan_training
from training.finetuning.rehearsal import rehearse
from training.finetuning.resolved_recipe import absolute_data_paths
from training.finetuning.search import Search, SearchSpace, plan_of_trials
from training.finetuning.study import (
    StudyPlace,
    complete_trials,
    file_place,
    finished_trials,
    open_storage,
    open_study,
    shared_place,
    worker_name,
)
from training.recipe.arguments import Recipe, recipe_seed

FOLDER = "tuning"
STUDY = "study.db"
BEST_RECIPE = "recipe.yaml"
PICTURE = "trials.png"
# A learning rate may be so many times its default, or its default divided by that.
RATES = 4
BATCH_SIZE = "per_device_train_batch_size"
BATCH_SIZES = (8, 16, 32, 64, 128)
DECAYS = (0.0, 0.01, 0.1)


@dataclass(frozen=True)
class Tuned:
    """The result of a search: its folder and study, the finished trials, the best of them."""

    folder: Path
    study: str
    measure: str
    trials: list[FrozenTrial]
    best: FrozenTrial

    @property
    def recipe(self) -> Path:
        """The recipe with the best trial's values."""
        return self.folder / BEST_RECIPE


def tune(
    recipe: Recipe,
    trials: int,
    *,
    overwrite: bool = False,
    storage: str | None = None,
    study_name: str | None = None,
) -> Tuned:
    """Search until the study has `trials` finished trials, those of others and before among them.

    Args:
        storage: the address of a database in which several processes share the study.
        study_name: its name there, the recipe's if not given.

    Raises:
        WhetstoneError: the data, base model, recipe or database cannot be used, or the study is
            that of another recipe.
        InterruptedRunError: Ctrl-C; finished trials are kept.
    """
    if world_size() > 1:
        raise RecipeError("tune runs in one process: start it without torchrun")
    place = _place(recipe, storage, study_name, overwrite=overwrite)
    folder = recipe.output_dir / FOLDER
    if place.is_shared:
        # Machines may share the run folder, too.
        folder /= worker_name()
    plan = plan_training(recipe, load_data(recipe.data, recipe_seed(recipe)))
    longest = row_sizes(plan.data.train, plan.tokenizer, plan.text_encoding).longest
    space = search_space(recipe, plan.arguments, longest)
    rehearse(plan)
    with (
        _locked(folder, recipe, place, overwrite=overwrite),
        _one_sentence(place),
        open_storage(place) as database,
    ):
        first = {key: getattr(plan.arguments, key) for key in space}
        study = open_study(database, place, plan, first)
        Search(plan_of_trials(plan, folder), space, place, database, study, trials).run()
        if not complete_trials(study):
            raise RunError(f"no trial came to an end: {place.shown} holds none with a result")
        measure = str(plan.arguments.metric_for_best_model)
        tuned = Tuned(folder, place.shown, measure, finished_trials(study), study.best_trial)
        _write_recipe(recipe, tuned, plan.tuning.early_stopping_patience)
        draw_trials(tuned, folder / PICTURE)
        return tuned


def _place(
    recipe: Recipe, storage: str | None, study_name: str | None, *, overwrite: bool
) -> StudyPlace:
    """Where the study is; a database is reached before any work.

    Raises:
        WhetstoneError: the database cannot be used, or would be overwritten.
    """
    if storage is None:
        return file_place(recipe.output_dir / FOLDER / STUDY)
    if overwrite:
        raise RecipeError(
            "--overwrite would delete the trials of other machines: choose another --study_name"
        )
    place = shared_place(storage, study_name or str(recipe.data.name))
    with open_storage(place):
        return place


@contextmanager
def _locked(folder: Path, recipe: Recipe, place: StudyPlace, *, overwrite: bool) -> Iterator[None]:
    """The folder of a search, kept for one process where its study lies in it."""
    with nullcontext() if place.is_shared else run_lock(recipe.output_dir):
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextmanager
def _one_sentence(place: StudyPlace) -> Iterator[None]:
    """What is said of a database that goes away during the search."""
    try:
        yield
    except (StorageInternalError, UnboundLocalError) as error:
        # Optuna trips over a variable of its own where it cannot ask for the state of the trial.
        is_storages = isinstance(error.__context__, StorageInternalError)
        if isinstance(error, UnboundLocalError) and not is_storages:
            raise
        raise RunError(
            f"{place.shown} does not answer any more: finished trials are kept there; give the "
            "same command again to continue"
        ) from None


def search_space(recipe: Recipe, arguments: TrainingArguments, longest: int) -> SearchSpace:
    """How a trial chooses each key that the recipe leaves open.

    Args:
        longest: tokens of the longest row.

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
        BATCH_SIZE: lambda trial: trial.suggest_categorical(
            BATCH_SIZE, _choices_of(trial) or batch_sizes(longest)
        ),
        "weight_decay": lambda trial: trial.suggest_categorical("weight_decay", DECAYS),
    }
    left_open = {key: choose for key, choose in space.items() if key not in recipe.training}
    if not left_open:
        raise RecipeError(f"the recipe gives every key that tune searches: {', '.join(space)}")
    return left_open


def batch_sizes(longest: int) -> tuple[int, ...]:
    """The batches that are tried: of long rows those with no more tokens than the largest default.

    All defaults of one process are among them, whatever the device: a study goes on with these.

    Args:
        longest: tokens of the longest row.
    """
    most = BATCH_SIZES[-1] * LONG_ROW
    return tuple(b for b in BATCH_SIZES if b <= SMALLEST_BATCH or b * longest <= most)


def _choices_of(trial: Trial) -> tuple[int, ...] | None:
    """The batches of earlier trials: Optuna refuses others, as after a change of the rule above."""
    for earlier in trial.study.get_trials(deepcopy=False):
        known = earlier.distributions.get(BATCH_SIZE)
        if isinstance(known, CategoricalDistribution):
            return tuple(int(str(choice)) for choice in known.choices)
    return None


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
