"""`resolved_recipe.yaml`: every key with its value and its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import TrainingArguments

from service.package.files import write_text
from training.common.layout import RESOLVED_RECIPE
from training.data.dataset import LabeledData
from training.data.validation_share import validation_share
from training.finetuning.defaults import Workload, default_hyperparameters
from training.recipe.arguments import FILE_KEYS, Default, Recipe
from training.recipe.refused_keys import REFUSED

if TYPE_CHECKING:
    from training.finetuning.plan import TrainingPlan

HEADER = (
    "# Every key in force in this run: the recipe, the command line, the defaults.",
    "# A key that neither of the first two gives was computed; its reason stands beside it.",
)


def chosen_arguments(arguments: TrainingArguments, recipe: Recipe) -> dict[str, Any]:
    """The TrainingArguments that the recipe, the computed defaults or the device decide."""
    # On the same device: for another one the group of processes would be made anew.
    untouched = TrainingArguments(
        output_dir=arguments.output_dir,
        use_cpu=arguments.use_cpu,
        ddp_backend=arguments.ddp_backend,
    ).to_dict()
    computed = default_hyperparameters(Workload(parameters=1, rows=1, labels=1), {})
    chosen = {*computed, *recipe.training}
    skipped = {"output_dir", "logging_dir", "run_name", *REFUSED}
    return {
        key: value
        for key, value in arguments.to_dict().items()
        if key not in skipped and (key in chosen or value != untouched.get(key))
    }


def write_resolved_recipe(plan: TrainingPlan, computed: dict[str, Default]) -> None:
    """Write every key in force, and beside each computed value its reason.

    Args:
        computed: defaults that are not among the plan's own reasons.
    """
    recipe = plan.recipe
    reasons = dict(plan.reasons)
    resolved = (
        recipe.as_dict()
        | absolute_data_paths(recipe)
        | chosen_arguments(plan.arguments, recipe)
        | dataclasses.asdict(plan.tuning)
    )
    for key, default in computed.items():
        if key not in resolved:
            resolved[key] = default.value
            reasons[key] = default.reason
    if plan.text_encoding.window_stride is not None:
        resolved["window_stride"] = plan.text_encoding.window_stride
    lines = list(HEADER)
    for key, value in sorted(resolved.items()):
        line = yaml.safe_dump({key: value}, allow_unicode=True).rstrip("\n")
        lines.append(f"{line}  # {reasons[key]}" if key in reasons else line)
    write_text(recipe.output_dir / RESOLVED_RECIPE, "\n".join(lines) + "\n")


def computed_share(data: LabeledData, has_validation: bool) -> dict[str, Default]:
    """The `validation_share` in force, by its key; empty where the recipe names validation rows."""
    if has_validation:
        return {}
    return {"validation_share": validation_share(len(data.train) + len(data.validation))}


def absolute_data_paths(recipe: Recipe) -> dict[str, str]:
    """The absolute paths of the recipe's files and folders, which hold for a recipe elsewhere."""
    paths = {
        key: str(Path(value).resolve())
        for key, value in recipe.as_dict().items()
        if key in (*FILE_KEYS, "golden_file") and (key, value) != ("golden_file", "none")
    }
    base = Path(recipe.model.model_name_or_path)
    return paths | ({"model_name_or_path": str(base.resolve())} if base.is_dir() else {})
