"""Recipe YAML plus `--key value` from the command line → typed arguments.

The keys are those of the dataclasses here and of `transformers.TrainingArguments`. The command
line wins over the recipe; a relative path in a recipe is relative to the recipe, one on the
command line to the working folder; files named on the command line replace a recipe's hub data
set together with its columns.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from training.common.errors import RecipeError
from training.recipe.arguments import FILE_KEYS, HUB_KEYS, OWN_ARGUMENTS, Recipe
from training.recipe.checks import check_name, check_shape, check_tuning
from training.recipe.refused_keys import refuse_meaningless
from training.recipe.yaml_file import read_yaml

if TYPE_CHECKING:
    from transformers import TrainingArguments

# The variable by which TrainingArguments, and `accelerate launch`, tell the Trainer its precision.
PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
PRECISION_OF_LAUNCH = os.environ.get(PRECISION_VARIABLE, "no")


def _names() -> set[str]:
    """The keys whose values are text, which YAML could misread."""
    fields = [field for part in OWN_ARGUMENTS for field in dataclasses.fields(part)]
    return {field.name for field in fields if "str" in str(field.type)}


def parse_overrides(arguments: list[str]) -> dict[str, str | list[str]]:
    """`["--key", "value", "--flag", "--other=1"]` as a mapping; a key alone means true."""
    overrides: dict[str, str | list[str]] = {}
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if not argument.startswith("--") or argument == "--":
            raise RecipeError(f"{argument!r} is not a key: write --key value")
        key, equals, value = argument[2:].partition("=")
        index += 1
        values = [value] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
        overrides[key.replace("-", "_")] = values[0] if len(values) == 1 else values or "true"
    return overrides


def load_recipe(path: Path | None, overrides: Mapping[str, str | list[str]]) -> Recipe:
    """Read, merge and check a recipe; without a file the overrides are all of it.

    Raises:
        RecipeError: the file cannot be read, or a key or its value is wrong.
    """
    stated = _resolve_paths(read_yaml(path, _names()), path.parent) if path is not None else {}
    _refuse_unknown(stated, f"in {path}")
    _refuse_unknown(overrides, "on the command line")
    _refuse_secrets([*stated, *overrides])
    refuse_meaningless(stated, f"in {path}")
    refuse_meaningless(overrides, "on the command line")
    if "dataset_name" in stated and any(key in overrides for key in FILE_KEYS):
        stated = {key: value for key, value in stated.items() if key not in HUB_KEYS}
    if "dataset_name" in overrides:
        stated = {key: value for key, value in stated.items() if key not in FILE_KEYS}
    values = {**stated, **overrides}
    own = {field.name for part in OWN_ARGUMENTS for field in dataclasses.fields(part)}
    data, model, tuning, export = _parse(
        OWN_ARGUMENTS, {k: v for k, v in values.items() if k in own}
    )
    check_name(data, str(path or "the command line"))
    check_shape(data, model, export)
    check_tuning(tuning, model)
    output_dir = Path(str(values.pop("output_dir", Path("runs") / data.name)))
    of_trainer = {key: value for key, value in values.items() if key not in own}
    # Types and contradictions, before any work; strategies as `default_hyperparameters` has them.
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    typed = parse_training_arguments({**strategies, **of_trainer, "output_dir": str(output_dir)})
    if not typed.save_safetensors:
        raise RecipeError(
            "save_safetensors: false would write weights that can carry code: leave it out"
        )
    plain = typed.to_dict()
    training = {key: plain.get(key, value) for key, value in of_trainer.items()}
    return Recipe(model, data, tuning, export, training, output_dir)


def parse_training_arguments(values: Mapping[str, Any]) -> TrainingArguments:
    """`transformers.TrainingArguments` from recipe values of any YAML type.

    Raises:
        RecipeError: a value is not one that the key can take.
    """
    import torch
    from transformers import TrainingArguments

    # Earlier TrainingArguments of this process have set it, and would win.
    os.environ[PRECISION_VARIABLE] = PRECISION_OF_LAUNCH
    if not torch.accelerator.is_available():
        # Otherwise transformers takes bf16 to be meant for a GPU.
        values = {**values, "use_cpu": True}
    try:
        arguments: TrainingArguments
        (arguments,) = _parse((TrainingArguments,), values)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"the recipe's training keys are not possible: {reason}") from error
    return arguments


def _resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(values)
    for key in (*FILE_KEYS, "golden_file", "output_dir"):
        if key in values and (key, values[key]) != ("golden_file", "none"):
            stated = values[key]
            resolved[key] = (
                [_resolve_path(path, folder) for path in stated]
                if isinstance(stated, list)
                else _resolve_path(stated, folder)
            )
    base = values.get("model_name_or_path")
    # A hub name and a relative folder look alike: the folder wins where it exists.
    if base is not None and (folder / Path(str(base)).expanduser()).is_dir():
        resolved["model_name_or_path"] = _resolve_path(base, folder)
    return resolved


def _resolve_path(path: Any, folder: Path) -> str:
    """A path of a recipe, relative to its folder; an address stays."""
    return str(path) if "://" in str(path) else str(folder / Path(str(path)).expanduser())


def _refuse_unknown(keys: Iterable[str], where: str) -> None:
    from transformers import TrainingArguments

    known = [
        field.name
        for part in (*OWN_ARGUMENTS, TrainingArguments)
        for field in dataclasses.fields(part)
        if field.init
    ]
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"unknown key {key!r} {where}: did you mean {nearest!r}?")


def _refuse_secrets(keys: Iterable[str]) -> None:
    for key in keys:
        if key.endswith("_token"):
            raise RecipeError(
                f"{key} does not belong in a recipe, which travels with the package: set the "
                "environment variable HF_TOKEN instead"
            )


def _parse(types: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Values of YAML or command-line types as instances of dataclasses `types`."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise RecipeError(message.replace("argument --", "key "))

        def add_argument(self, *names: str, **options: Any) -> Any:
            """Accept lists: the parser knows one value where transformers takes one or a list."""
            if isinstance(values.get(names[0].removeprefix("--")), list):
                options.setdefault("nargs", "+")
            return super().add_argument(*names, **options)

    single = {
        f.name
        for part in OWN_ARGUMENTS
        for f in dataclasses.fields(part)
        if "list" not in str(f.type)
    }
    words: list[str] = []
    for key, value in values.items():
        if key == "report_to" and value == []:
            # The value that TrainingArguments holds for "none".
            value = "none"
        if key == "include_num_input_tokens_seen":
            # TrainingArguments holds words for them.
            value = {"all": True, "no": False}.get(value, value)
        if isinstance(value, list) and key in single:
            raise RecipeError(f"key {key} takes one value, not {len(value)}")
        if isinstance(value, dict):
            named = {str(name): part for name, part in value.items()}
            words.append(f"--{key}={json.dumps(named, default=str)}")
        elif isinstance(value, list):
            words += [f"--{key}", *(str(item) for item in value)]
        else:
            words.append(f"--{key}={value}")
    return tuple(Parser(types, allow_abbrev=False).parse_args_into_dataclasses(args=words))
