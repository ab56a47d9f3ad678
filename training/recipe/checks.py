"""Keys of a recipe that contradict each other."""

from __future__ import annotations

import json
import math
import re
from typing import Literal, cast

from training.common.errors import RecipeError
from training.recipe.arguments import (
    DataArguments,
    ExportArguments,
    FineTuningArguments,
    ModelArguments,
)
from training.recipe.bounds import parse_compare, parse_gates


def check_name(data: DataArguments, where: str) -> None:
    """Refuse a recipe without a usable name or without data.

    Args:
        where: the recipe, as messages name it.

    Raises:
        RecipeError: `name` or the data is missing, or `validation_share` is no share.
    """
    if data.name is None:
        raise RecipeError(f"{where} has no `name`: add one, such as `name: support_tickets`")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", data.name):
        raise RecipeError(
            f"name {data.name!r} cannot name a folder: use letters, digits, '.', '_' and '-'"
        )
    if data.train_file is None and data.dataset_name is None:
        raise RecipeError(f"{where} names no data: add `train_file` or `dataset_name`")
    if data.validation_share is not None and not 0 < data.validation_share < 1:
        raise RecipeError(f"validation_share is {data.validation_share}: it lies between 0 and 1")


def check_shape(data: DataArguments, model: ModelArguments, export: ExportArguments) -> None:
    """Refuse keys that contradict each other; keys that need the data are checked with the data.

    Raises:
        RecipeError: two keys contradict each other, or a value is out of its range.
    """
    _check_windows(data, model)
    _check_labels(data)
    _check_split(data)
    _check_export(export)


def _check_windows(data: DataArguments, model: ModelArguments) -> None:
    windows = model.long_text == "window"
    if windows and data.text_pair_column is not None:
        raise RecipeError(
            "long_text: window reads single texts, and text_pair_column names pairs: use "
            "long_text: truncate"
        )
    if model.window_stride is not None and not windows:
        raise RecipeError("window_stride belongs to `long_text: window`: add that, or leave it out")
    if model.window_stride is not None and model.window_stride < 0:
        raise RecipeError(f"window_stride is {model.window_stride}: it cannot be negative")


def _check_labels(data: DataArguments) -> None:
    if data.label_columns is not None and len(data.label_columns) < 2:
        raise RecipeError("label_columns names one column: give one for each label, two at least")
    if data.label_columns is not None and data.label_separator is not None:
        raise RecipeError("label_columns and label_separator exclude each other: leave one out")
    if data.label_separator is not None and not data.label_separator.strip():
        raise RecipeError("label_separator is white space: choose a visible one, such as '|'")
    if data.text_pair_column is not None and data.text_pair_column == data.text_column:
        raise RecipeError(f"text_column and text_pair_column are both {data.text_column!r}")
    parse_class_weights(data.class_weights)


def _check_export(export: ExportArguments) -> None:
    for key in ("threshold_precision", "abstain_precision"):
        value = getattr(export, key)
        if value is not None and not 0 < value < 1:
            raise RecipeError(f"{key} is {value}: it lies between 0 and 1")
    parse_gates(export.gates)
    parse_compare(export.compare)
    on_gpu = export.target_device == "gpu"
    if export.precision in (("int8", "optimized", "optimised") if on_gpu else ("fp16",)):
        raise RecipeError(
            f"precision {export.precision} is for the {'CPU' if on_gpu else 'GPU'}, and "
            f"target_device is {export.target_device}: change one of them"
        )


def _check_split(data: DataArguments) -> None:
    if data.time_column is not None and data.validation_file is not None:
        raise RecipeError(
            "time_column splits the training rows, and validation_file names a split that is made "
            "already: leave one of them out"
        )
    for key in ("group_column", "time_column"):
        for other in ("text_column", "text_pair_column", "label_column"):
            if getattr(data, key) is not None and getattr(data, key) == getattr(data, other):
                raise RecipeError(f"{key} and {other} are both {getattr(data, key)!r}")


def check_tuning(tuning: FineTuningArguments, model: ModelArguments) -> None:
    """Refuse keys of the fine-tuning that contradict each other.

    Raises:
        RecipeError: two keys contradict each other, or a value is out of its range.
    """
    if model.added_tokens and (tuning.freeze_embeddings or tuning.freeze_layers):
        raise RecipeError(
            "added_tokens have new embeddings, which freeze_embeddings and freeze_layers would "
            "leave as they are: leave one of the two out"
        )
    for key in ("freeze_layers", "early_stopping_patience"):
        value = getattr(tuning, key)
        if value is not None and value < 0:
            raise RecipeError(f"{key} is {value}: it cannot be negative")
    factor = tuning.head_lr_factor
    if factor is not None and not 0 < factor < math.inf:
        raise RecipeError(f"head_lr_factor is {factor}: it lies above 0")
    decay = tuning.layerwise_lr_decay
    if decay is not None and not 0 < decay <= 1:
        raise RecipeError(f"layerwise_lr_decay is {decay}: it lies above 0 and is at most 1")


def parse_class_weights(value: str) -> Literal["none", "balanced"] | dict[str, float]:
    """The meaning of the key `class_weights`.

    Raises:
        RecipeError: it is neither of the two words nor a mapping of labels to positive numbers.
    """
    if value in ("none", "balanced"):
        return cast('Literal["none", "balanced"]', value)
    try:
        weights = json.loads(value)
    except ValueError:
        weights = None
    numbers = isinstance(weights, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
        for weight in weights.values()
    )
    if not numbers or not weights:
        raise RecipeError(
            f"class_weights is {value!r}: give none, balanced, or a mapping of labels to positive "
            'numbers, such as {"spam": 3}'
        )
    return {str(label): float(weight) for label, weight in weights.items()}
