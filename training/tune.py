"""`whetstone tune RECIPE --trials N`: search for better hyperparameters than the computed ones.

What the recipe gives stays as it is; the others are searched for around their defaults, which are
the first trial. The study is an SQLite file: the same command goes on where it was stopped.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from service.model_package import write_text
from training.base_checks import fit_together, refuse_misfit, refuse_weights
from training.base_models import resolve_base_model, start_at_priors
from training.config import Recipe, recipe_seed
from training.data.dataset import load_data
from training.data.encoding import row_sizes, usable_reading
from training.distributed import processes
from training.errors import DivergedError, InterruptedRunError, RecipeError, RunError
from training.layers import freeze
from training.layout import TRACKING
from training.losses import label_odds, label_weights
from training.rehearsal import Rehearsal, rehearse
from training.run_lock import alone_in
from training.train import (
    make_head_start,
    make_trainer,
    named_from_anywhere,
    run_identity,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = "tuning"
STUDY = "study.db"
BEST_RECIPE = "recipe.yaml"
PICTURE = "trials.png"
# A rate may be so many times its default, or as much less.
RATES = 4
# Every default of one process among them, whatever the device: a study goes on with these.
BATCH_SIZES = (8, 16, 32, 64, 128)
DECAYS = (0.0, 0.01, 0.1)
# Trials that are not judged before they are pruned for others.
FIRST_TRIALS = 5


@dataclass(frozen=True)
class Tuned:
    """What a search came to: its folder, the finished trials, the best of them."""

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
        found = metrics[self._key]
        self._best = found if self._best is None else self._better(self._best, found)
        return self._best


def tune(recipe: Recipe, trials: int, *, overwrite: bool = False) -> Tuned:
    """Search until `trials` trials are finished, those of earlier calls among them.

    Raises:
        WhetstoneError: the data, base model or recipe cannot be used, or the folder holds the
            study of another recipe.
        InterruptedRunError: Ctrl-C; finished trials are kept.
    """
    if processes() > 1:
        raise RecipeError("tune runs in one process: start it without torchrun")
    data = load_data(recipe.data, recipe_seed(recipe))
    weights = label_weights(recipe.data.class_weights, data)
    base = resolve_base_model(recipe.model)
    tokenizer = base.tokenizer()
    refuse_misfit(recipe, tokenizer, base.config())

    def new_model() -> PreTrainedModel:
        model = base.classifier(data.labels, data.task, recipe_seed(recipe))
        if data.task == "multi_label":
            start_at_priors(model, label_odds(data, weights))
        if start is not None:
            start.applied_to(model)
        freeze(model, tuning.freeze_layers, embeddings=tuning.freeze_embeddings)
        return model

    first = base.classifier(data.labels, data.task, recipe_seed(recipe))
    refuse_weights(base.name, first)
    fit_together(tokenizer, first)
    reading = usable_reading(recipe, tokenizer, first.config)
    # The recipe's own strategies are for one run that keeps its best checkpoint.
    sizes = row_sizes(data.train, tokenizer, reading)
    arguments, tuning, _ = settle(recipe, first.num_parameters(), data, base.pooling.value, sizes)
    sha256 = base.provenance().get("sha256")
    rehearse(
        Rehearsal(
            *(recipe, base, sha256, tokenizer, first, data, reading),
            *(arguments, tuning, weights),
        )
    )
    measure, greater = str(arguments.metric_for_best_model), bool(arguments.greater_is_better)
    arguments.save_strategy, arguments.load_best_model_at_end = "no", False
    folder = recipe.output_dir / FOLDER
    # Beside the study: what trials write is no run, which the folder above may hold.
    arguments.output_dir, arguments.logging_dir = str(folder), str(folder / TRACKING)
    # Trials from other weights are not to be compared.
    identity = f"{run_identity(recipe, data)} {sha256}"
    with alone_in(recipe.output_dir):
        study = _open_study(folder, identity, greater, overwrite)
        space = _space(recipe, arguments)
        if not _finished(study):
            study.enqueue_trial({key: getattr(arguments, key) for key in space})
        objective = BestOfTrial(measure, greater)
        start = make_head_start(first, tokenizer, data, reading, weights, seed=recipe_seed(recipe))
        trainer = make_trainer(new_model, tokenizer, data, arguments, tuning, reading, weights)
        trainer.add_callback(objective)
        trainer.train = _pruned_where_it_diverges(trainer.train)  # type: ignore[method-assign]

        def suggest(trial: optuna.Trial) -> dict[str, Any]:
            chosen = {key: choose(trial) for key, choose in space.items()}
            shown = ", ".join(f"{key} {value:.3g}" for key, value in chosen.items())
            tqdm.write(f"trial {trial.number + 1}: {shown}")
            return chosen

        left = trials - len(_finished(study))
        if left > 0:
            try:
                trainer.hyperparameter_search(
                    hp_space=suggest,
                    compute_objective=objective,
                    hp_name=lambda trial: f"trial-{trial.number + 1}",
                    n_trials=left,
                    direction="maximize" if greater else "minimize",
                    backend="optuna",
                    storage=study._storage,
                    study_name=study.study_name,
                    load_if_exists=True,
                    pruner=study.pruner,
                    sampler=study.sampler,
                )
            except ValueError:
                # transformers wants the best one, also where no trial came to an end.
                if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                    raise
            except KeyboardInterrupt:
                raise InterruptedRunError(
                    f"stopped after {len(_finished(study))} of {trials} trials, which are kept in "
                    f"{folder / STUDY}: give the same command again to go on"
                ) from None
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise RunError(f"no trial came to an end: {folder / STUDY} holds none with a result")
        tuned = Tuned(folder, measure, _finished(study), study.best_trial)
        _write_recipe(recipe, tuned, tuning.early_stopping_patience)
        draw(tuned, folder / PICTURE)
        return tuned


def _pruned_where_it_diverges(train: Callable[..., Any]) -> Callable[..., Any]:
    """A rate that is too high for the loss ends its trial, and not the search."""

    def trial(*given: Any, **more: Any) -> Any:
        try:
            return train(*given, **more)
        except DivergedError as error:
            raise optuna.TrialPruned(str(error)) from error

    return trial


def _open_study(folder: Path, identity: str, greater: bool, overwrite: bool) -> optuna.Study:
    """The study in `folder`, or a new one; what was under way when it was stopped has failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}")
    others = [name for name in optuna.get_all_study_names(storage) if name != identity]
    if others:
        raise RunError(
            f"{folder} holds the study of another recipe, base model or other data: choose another "
            "--output_dir, or replace it with --overwrite"
        )
    study = optuna.create_study(
        storage=storage,
        study_name=identity,
        load_if_exists=True,
        direction="maximize" if greater else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=1),
    )
    # By what was tried before: with one seed every sitting would try the same again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a result, those that were stopped because others were better among them."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _space(
    recipe: Recipe, arguments: TrainingArguments
) -> dict[str, Callable[[optuna.Trial], Any]]:
    """How each key is chosen that the recipe leaves open."""
    rate, epochs = arguments.learning_rate, round(arguments.num_train_epochs)
    space: dict[str, Callable[[optuna.Trial], Any]] = {
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
    found = {key: choose for key, choose in space.items() if key not in recipe.training}
    if not found:
        raise RecipeError(f"the recipe gives every key that tune searches: {', '.join(space)}")
    return found


def _write_recipe(recipe: Recipe, tuned: Tuned, patience: int | None) -> None:
    """The recipe with the best values, its files named from anywhere.

    The patience is that of the trials: computed anew, it would follow the number of epochs found.
    """
    content = recipe.as_dict() | named_from_anywhere(recipe) | tuned.best.params
    content["early_stopping_patience"] = patience
    content["output_dir"] = str(recipe.output_dir.resolve())
    lines = [
        f"# The best of {len(tuned.trials)} trials: {tuned.measure} {tuned.best.value:.4f} on the",
        "# validation rows, by which it was chosen.",
        yaml.safe_dump(content, allow_unicode=True, sort_keys=False),
    ]
    write_text(tuned.recipe, "\n".join(lines))


def print_trials(tuned: Tuned) -> None:
    """All trials as a table, the best one marked."""
    keys = list(tuned.best.params)
    table = Table(title=f"{len(tuned.trials)} trials, {tuned.measure} of the best epoch")
    for name in ("trial", tuned.measure, *keys, "minutes"):
        table.add_column(name, justify="right")
    for trial in tuned.trials:
        values = trial.intermediate_values
        value = trial.value if trial.value is not None else values[max(values)] if values else None
        score = "" if value is None else f"{value:.4f}"
        pruned = " (stopped)" if trial.state == TrialState.PRUNED else ""
        mark = "→ " if trial.number == tuned.best.number else ""
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        table.add_row(
            f"{mark}{trial.number + 1}",
            f"{score}{pruned}",
            *(f"{trial.params[key]:.3g}" if key in trial.params else "" for key in keys),
            f"{seconds / 60:.1f}",
        )
    Console().print(table)


def draw(tuned: Tuned, path: Path) -> None:
    """The search as it went, and every trial's score by its learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.pictures import save_figure

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    done = [trial for trial in tuned.trials if trial.value is not None]
    numbers = [trial.number + 1 for trial in done]
    scores = [float(trial.value or 0.0) for trial in done]
    left.plot(numbers, scores, "o", color="#8aa0a8", label="trial")
    better = max if tuned.best.value == max(scores) else min
    best = [better(scores[: place + 1]) for place in range(len(scores))]
    left.plot(numbers, best, color="#1f6f8b", label="best so far")
    left.set_xlabel("trial")
    left.set_ylabel(tuned.measure)
    left.legend(frameon=False)
    rated = [(t.params["learning_rate"], t.value) for t in done if "learning_rate" in t.params]
    if rated:
        right.semilogx(*zip(*rated, strict=True), "o", color="#1f6f8b")
        right.set_xlabel("learning_rate")
    else:
        right.set_visible(False)
    save_figure(figure, path)
