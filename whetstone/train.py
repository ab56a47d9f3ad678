"""The verbs that read a recipe: check, run, train, export, tune."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.common.distributed import is_main_process
from training.common.exit_status import EXIT_ERROR
from training.recipe.arguments import OWN_ARGUMENTS, DataArguments, ModelArguments
from whetstone.options import INPUT_KEYS, add_verb

if TYPE_CHECKING:
    from training.recipe.arguments import Recipe
    from whetstone.options import Verbs

# The keys of a recipe that `check` depends on. Each is a flag of it.
CHECK_KEYS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "train_file",
    "validation_file",
    "test_file",
    *INPUT_KEYS,
    "group_column",
    "time_column",
    "validation_share",
    "drop_invalid",
    "model_name_or_path",
    "model_revision",
    "max_length",
    "long_text",
    "trust_remote_code",
)

# Optuna's own commands read it, too.
STORAGE_VARIABLE = "OPTUNA_STORAGE"


def add_arguments(verbs: Verbs) -> None:
    """Add every verb of this module with its arguments."""
    _add_check(verbs)
    _add_run(verbs)
    _add_train(verbs)
    _add_export(verbs)
    _add_tune(verbs)


def check(parsed: argparse.Namespace) -> int:
    """`whetstone check RECIPE`, or `whetstone check --train_file FILE`"""
    from training.pipeline import check as check_data
    from training.recipe.load import load_recipe

    overrides = {key: value for key in CHECK_KEYS if (value := getattr(parsed, key)) is not None}
    if not parsed.recipe:
        overrides = {"name": "check", **overrides}
    recipe = load_recipe(parsed.recipe, overrides)
    sound = check_data(recipe, strict=parsed.strict, json_file=parsed.json, plot_file=parsed.plot)
    return 0 if sound else EXIT_ERROR


def run(parsed: argparse.Namespace) -> None:
    """`whetstone run RECIPE`: train, export, evaluate, register, publish."""
    recipe, overwrite = _load_recipe(parsed)
    from training.pipeline import run_chain

    summary = run_chain(recipe, overwrite=overwrite, publish_to=parsed.publish)
    if summary is not None:
        print(summary)


def train(parsed: argparse.Namespace) -> None:
    """`whetstone train RECIPE`"""
    recipe, overwrite = _load_recipe(parsed)
    from training.finetuning.train import train as train_recipe

    trained = train_recipe(recipe, overwrite=overwrite)
    if is_main_process():
        print(f"checkpoint: {trained.checkpoint}")
        print(f"next: whetstone export {_recipe_words(parsed)}")


def export(parsed: argparse.Namespace) -> None:
    """`whetstone export RECIPE`"""
    recipe, _ = _load_recipe(parsed)
    from service.package.manifest import read_manifest
    from training.export.output import print_selection
    from training.export.package import export as export_run
    from training.finetuning.record import open_run

    package = export_run(open_run(recipe))
    print_selection(read_manifest(package).selection)
    print(f"package: {package}")
    print(f"next: whetstone register {package}")


def tune(parsed: argparse.Namespace) -> None:
    """`whetstone tune RECIPE --trials N`"""
    recipe, overwrite = _load_recipe(parsed)
    from training.common.layout import RECORD
    from training.finetuning.output import print_trials
    from training.finetuning.tune import PICTURE
    from training.finetuning.tune import tune as search

    if not re.fullmatch(r"[1-9]\d*", str(parsed.trials)):
        parsed.command.error("--trials N is needed: the number of trainings to try, 1 or more")
    storage = parsed.storage or os.environ.get(STORAGE_VARIABLE) or None
    if parsed.study_name and not storage:
        parsed.command.error("--study_name is the name of a study in a database: add --storage URL")
    tuned = search(
        recipe,
        int(parsed.trials),
        overwrite=overwrite,
        storage=storage,
        study_name=parsed.study_name,
    )
    print_trials(tuned)
    print(f"written: {tuned.recipe}, {tuned.folder / PICTURE}; trials: {tuned.study}")
    # The run folder may hold a run of the recipe that the search started from.
    replace = " --overwrite" if (recipe.output_dir / RECORD).exists() else ""
    print(f"next: whetstone run {tuned.recipe}{replace}")


def _add_check(verbs: Verbs) -> None:
    command = add_verb(verbs, check, "check labeled text before training")
    command.add_argument("recipe", type=Path, nargs="?", help="YAML file; or name the files below")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the histograms as PNG")
    command.add_argument("--strict", action="store_true", help="exit with status 1 on warnings too")
    for part in (DataArguments, ModelArguments):
        for key in dataclasses.fields(part):
            if key.name in CHECK_KEYS:
                _add_check_key(command, key)


def _add_check_key(command: argparse.ArgumentParser, key: dataclasses.Field[object]) -> None:
    text = key.metadata["help"].replace("%", "%%")
    if "list" in str(key.type):
        command.add_argument(f"--{key.name}", nargs="+", help=text)
    elif key.default is False:
        command.add_argument(f"--{key.name}", nargs="?", const="true", help=text)
    else:
        command.add_argument(f"--{key.name}", help=text)


def _add_run(verbs: Verbs) -> None:
    command = _add_recipe_verb(
        verbs,
        run,
        "train, export, evaluate and register: from a recipe to a measured package",
        flags="[--overwrite] [--publish URL]",
    )
    _add_overwrite(command)
    command.add_argument(
        "--publish",
        metavar="URL",
        help="also copy the package to URL/<name>/<version>: a folder or s3://bucket/folder",
    )


def _add_train(verbs: Verbs) -> None:
    command = _add_recipe_verb(
        verbs, train, "fine-tune: from a recipe to a checkpoint", flags="[--overwrite]"
    )
    _add_overwrite(command)


def _add_export(verbs: Verbs) -> None:
    _add_recipe_verb(
        verbs, export, "make the model package from the checkpoint and prove that it answers alike"
    )


def _add_tune(verbs: Verbs) -> None:
    command = _add_recipe_verb(
        verbs,
        tune,
        "search for better hyperparameters than the computed ones",
        flags="--trials N [--storage URL] [--study_name NAME] [--overwrite]",
    )
    command.add_argument(
        "--trials",
        metavar="N",
        help="search until the study has N finished trainings, those of earlier calls and of other "
        "processes among them",
    )
    command.add_argument(
        "--storage",
        metavar="URL",
        help="share the study with other machines in a database: "
        "postgresql://user:password@host/database, or mysql:// alike (default: the variable "
        f"{STORAGE_VARIABLE}, which keeps the password off the command line)",
    )
    command.add_argument(
        "--study_name",
        metavar="NAME",
        help="the name of the study in that database (default: the recipe's name)",
    )
    _add_overwrite(command)


def _add_recipe_verb(
    verbs: Verbs, verb: Callable[[argparse.Namespace], None], text: str, flags: str = ""
) -> argparse.ArgumentParser:
    """Add a verb that takes a recipe, then keys of it in any number as `--key value`."""
    command = add_verb(verbs, verb, text)
    words = ["whetstone", verb.__name__, "RECIPE", flags, "[--key value ...]"]
    command.usage = " ".join(word for word in words if word)
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = _describe_recipe_keys()
    command.set_defaults(overwrite=False)
    command.add_argument("recipe", type=Path, help="YAML file with the keys below")
    command.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return command


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--overwrite", action="store_true", help="replace what the run folder holds"
    )


def _describe_recipe_keys() -> str:
    """Every key of a recipe, for `--help`, without importing transformers."""
    lines = ["keys of a recipe; each can be given as --key value, which wins over the file:"]
    for part in OWN_ARGUMENTS:
        for key in dataclasses.fields(part):
            default = "" if key.default is None else f" (default: {key.default})"
            lines.append(f"  {key.name}")
            lines += textwrap.wrap(
                key.metadata["help"] + default,
                width=88,
                initial_indent=" " * 8,
                subsequent_indent=" " * 8,
            )
    lines += [
        "  output_dir",
        "        the run folder (default: runs/<name>)",
        "Every key of transformers.TrainingArguments is accepted too, such as learning_rate,",
        "num_train_epochs, per_device_train_batch_size, warmup_ratio, weight_decay and seed. A key",
        "that would have no effect, or another one than its name says, is refused with the reason.",
        "A key that is absent is computed from the model's size and the number of rows and labels,",
        "and written to resolved_recipe.yaml in the run folder.",
    ]
    return "\n".join(lines)


def _load_recipe(parsed: argparse.Namespace) -> tuple[Recipe, bool]:
    """The checked recipe, and whether `--overwrite` is anywhere on the command line.

    The flags of a verb may also follow the recipe, where argparse leaves them to the overrides.
    """
    if {"-h", "--help"} & set(parsed.overrides):
        parsed.command.print_help()
        raise SystemExit(0)
    from training.recipe.load import load_recipe, parse_overrides

    overrides = parse_overrides(parsed.overrides)
    overwrite = parsed.overwrite or overrides.pop("overwrite", None) == "true"
    if "trials" in parsed:
        parsed.trials = overrides.pop("trials", parsed.trials)
    for flag in ("publish", "storage", "study_name"):
        if flag in overrides and flag in parsed:
            value = overrides.pop(flag)
            # A key without a value means true.
            if value == "true" or not isinstance(value, str):
                parsed.command.error(f"argument --{flag}: expected one argument")
            setattr(parsed, flag, value)
    return load_recipe(parsed.recipe, overrides), overwrite


def _recipe_words(parsed: argparse.Namespace) -> str:
    """The recipe and the keys of this command line, for the command that comes next."""
    words = [word for word in parsed.overrides if word != "--overwrite"]
    return shlex.join([str(parsed.recipe), *words])
