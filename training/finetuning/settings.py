"""The recipe over the computed hyperparameters: the training arguments."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainingArguments

from training.common.distributed import world_size
from training.common.errors import RecipeError
from training.common.layout import CHECKPOINT, TRACKING
from training.data.dataset import LabeledData
from training.data.encoding import RowSizes
from training.finetuning.defaults import Workload, default_hyperparameters, warnings_about
from training.recipe.arguments import DEFAULT_SEED, Default, FineTuningArguments, Recipe
from training.recipe.load import parse_training_arguments

if TYPE_CHECKING:
    from service.package.manifest import Task
    from training.finetuning.pooling import Pooling

logger = logging.getLogger(__name__)

# The measures of an evaluation, without the prefix `eval_`.
EVALUATED = ("loss", "accuracy", "micro_f1", "macro_f1", "average_precision")
EVALUATED_OF_ONE_LABEL = ("loss", "accuracy", "macro_f1")


class Hyperparameters(NamedTuple):
    """Every setting of a training, and the reason of every default in force, by key."""

    arguments: TrainingArguments
    tuning: FineTuningArguments
    reasons: dict[str, str]


def resolve_hyperparameters(
    recipe: Recipe, parameters: int, data: LabeledData, pooling: Pooling, sizes: RowSizes
) -> Hyperparameters:
    """The recipe's keys over the computed defaults.

    Args:
        parameters: of the model, with its head.

    Raises:
        RecipeError: a key does not suit the task, or another key.
    """
    for sentence in warnings_about(recipe.training, parameters):
        logger.warning(sentence)
    workload = Workload(
        parameters=parameters,
        rows=len(data.train),
        labels=len(data.labels),
        task=data.task,
        assigned_labels=sum(map(len, data.train.labels)),
        validation_rows=len(data.validation),
        set_aside=data.set_aside,
        processes=world_size(),
        pooling=pooling,
        sizes=sizes,
        promises=recipe.export.wants_precision,
    )
    defaults = default_hyperparameters(workload, recipe.training)
    defaults |= {"seed": Default(DEFAULT_SEED, "any number; the same one gives the same model")}
    own = {key: defaults.pop(key) for key in vars(recipe.tuning) if key in defaults}
    arguments = _training_arguments(recipe, defaults)
    stated = recipe.as_dict()
    _refuse_contradictions(arguments, data.task, stated)
    if not arguments.load_best_model_at_end:
        own["early_stopping_patience"] = Default(0, "the last checkpoint is kept, not the best")
    tuning = dataclasses.replace(
        recipe.tuning, **{key: own[key].value for key in own if key not in stated}
    )
    reasons = {
        key: default.reason for key, default in (defaults | own).items() if key not in stated
    }
    return Hyperparameters(arguments, tuning, reasons)


def _training_arguments(recipe: Recipe, defaults: dict[str, Default]) -> TrainingArguments:
    values: dict[str, Any] = {key: default.value for key, default in defaults.items()}
    values["logging_dir"] = str(recipe.output_dir / TRACKING)
    # The Trainer would report 0 for such a loss, and continue.
    values["logging_nan_inf_filter"] = False
    output = {"output_dir": str(recipe.output_dir / CHECKPOINT)}
    arguments = parse_training_arguments(values | recipe.training | output)
    use_one_gpu(arguments)
    return arguments


def _refuse_contradictions(
    arguments: TrainingArguments, task: Task, stated: dict[str, Any]
) -> None:
    """Refuse keys that do not suit the task, or the choice of the checkpoint.

    Raises:
        RecipeError: there is such a key.
    """
    has_several = task == "multi_label"
    if arguments.label_smoothing_factor and has_several:
        raise RecipeError(
            "label_smoothing_factor is for one label a row, and this data has several: leave it out"
        )
    measure = str(arguments.metric_for_best_model).removeprefix("eval_")
    measures = EVALUATED if has_several else EVALUATED_OF_ONE_LABEL
    if arguments.load_best_model_at_end and measure not in measures:
        raise RecipeError(
            f"metric_for_best_model is {measure!r}, which is not measured: choose one of "
            f"{', '.join(measures)}"
        )
    if not arguments.load_best_model_at_end and stated.get("early_stopping_patience"):
        raise RecipeError(
            "early_stopping_patience needs load_best_model_at_end: true: without it the last "
            "checkpoint is kept, however bad"
        )


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Let a process train on one GPU, however many there are.

    The Trainer would split each batch among them (`DataParallel`, which PyTorch's documentation
    advises against) and make the batch so many times larger, which would suit neither the learning
    rate nor the number of steps.
    """
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are here, and one is used: `torchrun --nproc_per_node %d -m whetstone train` "
            "uses all, with the same recipe",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        # transformers has no public way to set it.
        arguments._n_gpu = 1
