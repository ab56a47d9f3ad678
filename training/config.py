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
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from training.errors import RecipeError
from training.recipe_file import read_yaml
from training.refused_keys import refuse_meaningless

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from service.model_package import Manifest

DEFAULT_BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# By which TrainingArguments, and `accelerate launch`, tell the Trainer in what to compute.
PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
PRECISION_OF_LAUNCH = os.environ.get(PRECISION_VARIABLE, "no")
FILE_KEYS = ("train_file", "validation_file", "test_file")
# What belongs to a hub data set, and goes when files on the command line replace it.
HUB_KEYS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "text_column",
    "text_pair_column",
    "label_column",
    "label_separator",
    "group_column",
    "time_column",
)
DEFAULT_SEED = 42


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelArguments:
    """The pre-trained model."""

    model_name_or_path: str = _key(
        DEFAULT_BASE_MODEL,
        "hub name or folder of the pre-trained model; the default is embedded, no network needed",
    )
    model_revision: str | None = _key(None, "branch, tag or commit of the model on the hub")
    max_length: int = _key(256, "tokens of a text that the model reads; the rest is cut off")
    pooling: Literal["mean", "model"] | None = _key(
        None,
        "how the vectors of a text's tokens become the one that the head reads: their mean, or as "
        "the model's family does (BERT: the first token's); computed if not given",
    )
    long_text: Literal["truncate", "window"] = _key(
        "truncate",
        "what is done with a text longer than max_length: truncate it, or read it in windows of "
        "max_length tokens",
    )
    window_stride: int | None = _key(
        None, "tokens that neighbouring windows share; a quarter of max_length if not given"
    )
    window_aggregation: Literal["mean", "max"] = _key(
        "mean", "a text's probabilities: the mean over its windows, or each label's largest"
    )
    added_tokens: list[str] | None = _key(
        None,
        "words that the tokenizer shall know as one token each, such as names of products; their "
        "embeddings are new",
    )
    trust_remote_code: bool = _key(False, "run Python code that the model's repository ships")


@dataclass(frozen=True)
class DataArguments:
    """The labelled text."""

    name: str | None = _key(None, "what the classifier is called; names the run folder")
    dataset_name: str | None = _key(None, "data set on the hub (instead of train_file)")
    dataset_config_name: str | None = _key(None, "configuration of the hub data set")
    dataset_revision: str | None = _key(None, "branch, tag or commit of the hub data set")
    train_file: list[str] | None = _key(
        None,
        "what to train on: a file, a folder, a pattern, an address, or a list of these; CSV, JSON, "
        "Parquet, Arrow or fastText, plain, .gz or .zst",
    )
    validation_file: list[str] | None = _key(None, "files to choose the checkpoint by")
    test_file: list[str] | None = _key(None, "files to measure the finished package on")
    delimiter: str | None = _key(
        None, "what separates the columns of CSV; found if not given; tab is a tab"
    )
    encoding: str | None = _key(
        None, "encoding of files of text, such as windows-1252; found if not given"
    )
    text_column: str = _key("text", "column with the text")
    text_pair_column: str | None = _key(
        None, "column with the second text of each row, where pairs of texts are classified"
    )
    label_column: str = _key(
        "label",
        "column with the label; a column of lists means several labels a row; a.b is the field b "
        "of what stands in a, and a.0 the first of a list",
    )
    label_columns: list[str] | None = _key(
        None, "instead of label_column a column for each label, which holds 1 or 0"
    )
    label_separator: str | None = _key(
        None, "what separates the labels of a row, such as '|'; a row may then have any number"
    )
    class_weights: str = _key(
        "none",
        "weight of each label in the loss: none, balanced (rare labels count more), or a mapping "
        "of labels to weights",
    )
    validation_share: float | None = _key(
        None,
        "share of the training rows set aside, stratified, when no validation split is given; "
        "computed if not given",
    )
    group_column: str | None = _key(
        None,
        "column whose equal values stay on one side of every split, such as a customer or a "
        "thread; equal and nearly equal texts do anyway",
    )
    time_column: str | None = _key(
        None,
        "column with the time of each row (ISO 8601, or a number that grows): the newest rows are "
        "set aside for validation instead of random ones",
    )
    drop_invalid: bool = _key(False, "drop rows that cannot be used instead of refusing the data")


@dataclass(frozen=True)
class FineTuningArguments:
    """What of the pre-trained model is changed, how fast and for how long."""

    freeze_embeddings: bool = _key(False, "leave the embeddings as they were pre-trained")
    freeze_layers: int = _key(
        0, "leave so many of the lowest layers, and the embeddings, as they were pre-trained"
    )
    layerwise_lr_decay: float | None = _key(
        None,
        "each layer learns at so many times the rate of the one above it; 1 is one rate for all, "
        "computed if not given",
    )
    head_lr_factor: float | None = _key(
        None,
        "the new head learns at so many times learning_rate, computed if not given",
    )
    early_stopping_patience: int | None = _key(
        None,
        "stop after so many evaluations without a better score or a lower loss; 0 is never, "
        "computed if not given",
    )


@dataclass(frozen=True)
class ExportArguments:
    """The package that ships."""

    precision: Literal["auto", "int8", "optimised", "fp32", "fp16"] = _key(
        "auto",
        "the graph that ships: auto takes the first of int8 and fp32 that passes the gates, on a "
        "GPU of fp16 and fp32; a name ships that one, and says so where the gates would not have",
    )
    target_device: Literal["cpu", "gpu"] = _key("cpu", "the kind of device that will serve it")
    gates: str | None = _key(
        None,
        "bounds for what may ship in place of the checkpoint, a mapping of some of min_agreement "
        "(0.98), max_drift (0.02), max_macro_f1_drop (0.01), max_half_width (0.02)",
    )
    compare: str | None = _key(
        None,
        "bounds for replacing the package that runs, a mapping of some of max_macro_f1_drop "
        "(0.01), max_half_width (0.02), and the floors min_macro_f1 and max_ece (none)",
    )
    golden_file: str | None = _key(
        None,
        "file with the texts that every copy of the package is tested by, or none; they travel "
        "with it (default: 32 texts of the validation split)",
    )
    positive_label: str | None = _key(
        None,
        "of two labels the one to find: it is answered from a threshold on that is chosen on "
        "validation",
    )
    threshold_precision: float | None = _key(
        None,
        "choose thresholds (of several labels a row, or of positive_label) that prove this "
        "precision for new rows, instead of those of the best F1",
    )
    abstain_precision: float | None = _key(
        None,
        "mark answers as abstained below the score from which on validation proves that this "
        "share of them is right on new rows",
    )


OWN_ARGUMENTS = (DataArguments, ModelArguments, FineTuningArguments, ExportArguments)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `training` holds the TrainingArguments keys that were given."""

    model: ModelArguments
    data: DataArguments
    tuning: FineTuningArguments
    export: ExportArguments
    training: dict[str, Any]
    output_dir: Path

    def as_dict(self) -> dict[str, Any]:
        """The keys as a recipe would state them, without `output_dir`."""
        own = [
            dataclasses.asdict(part) for part in (self.data, self.model, self.tuning, self.export)
        ]
        merged = {key: value for part in own for key, value in part.items() if value is not None}
        for key in FILE_KEYS:
            if len(merged.get(key, ())) == 1:
                merged[key] = merged[key][0]
        return merged | self.training


def _names() -> set[str]:
    """The keys whose values are text, which YAML may read as something else."""
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
    _check_name(data, str(path or "the command line"))
    _check_shape(data, model, export)
    _check_tuning(tuning, model)
    output_dir = Path(str(values.pop("output_dir", Path("runs") / data.name)))
    given = {key: value for key, value in values.items() if key not in own}
    # Types and contradictions, before any work; the strategies as `careful_defaults` has them.
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    typed = parse_training_arguments({**strategies, **given, "output_dir": str(output_dir)})
    if not typed.save_safetensors:
        raise RecipeError(
            "save_safetensors: false would write weights that can carry code: leave it out"
        )
    plain = typed.to_dict()
    training = {key: plain.get(key, value) for key, value in given.items()}
    return Recipe(model, data, tuning, export, training, output_dir)


def parse_training_arguments(values: Mapping[str, Any]) -> TrainingArguments:
    """`transformers.TrainingArguments` from recipe values of any YAML type.

    Raises:
        RecipeError: a value is not one that the key can take.
    """
    import torch
    from transformers import TrainingArguments

    # What an earlier one of this process left there would win over what this one says.
    os.environ[PRECISION_VARIABLE] = PRECISION_OF_LAUNCH
    if not torch.accelerator.is_available():
        # Unless told so, they take bf16 to be meant for a GPU.
        values = {**values, "use_cpu": True}
    try:
        (arguments,) = _parse((TrainingArguments,), values)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"the recipe's training keys are not possible: {reason}") from error
    return arguments


def _resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(values)
    for key in (*FILE_KEYS, "golden_file", "output_dir"):
        if key in values and (key, values[key]) != ("golden_file", "none"):
            named = values[key]
            resolved[key] = (
                [_resolve_path(one, folder) for one in named]
                if isinstance(named, list)
                else _resolve_path(named, folder)
            )
    base = values.get("model_name_or_path")
    # A hub name and a relative folder look alike: the folder wins where it exists.
    if base is not None and (folder / Path(str(base)).expanduser()).is_dir():
        resolved["model_name_or_path"] = _resolve_path(base, folder)
    return resolved


def _resolve_path(named: Any, folder: Path) -> str:
    """A path of a recipe, relative to its folder; an address stays."""
    return str(named) if "://" in str(named) else str(folder / Path(str(named)).expanduser())


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
            """Where transformers takes one or a list, its parser knows one."""
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
            # As TrainingArguments has it once it was read.
            value = "none"
        if key == "include_num_input_tokens_seen":
            # Likewise.
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


def _check_name(data: DataArguments, where: str) -> None:
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


def _check_shape(data: DataArguments, model: ModelArguments, export: ExportArguments) -> None:
    """Refuse keys that contradict each other; what needs the data is checked with the data."""
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
    if data.label_columns is not None and len(data.label_columns) < 2:
        raise RecipeError("label_columns names one column: give one for each label, two at least")
    if data.label_columns is not None and data.label_separator is not None:
        raise RecipeError("label_columns and label_separator exclude each other: leave one out")
    if data.label_separator is not None and not data.label_separator.strip():
        raise RecipeError("label_separator is white space: choose a visible one, such as '|'")
    if data.text_pair_column is not None and data.text_pair_column == data.text_column:
        raise RecipeError(f"text_column and text_pair_column are both {data.text_column!r}")
    for key in ("threshold_precision", "abstain_precision"):
        value = getattr(export, key)
        if value is not None and not 0 < value < 1:
            raise RecipeError(f"{key} is {value}: it lies between 0 and 1")
    _check_split(data)
    parse_class_weights(data.class_weights)
    # Not above: `--help` needs no numpy.
    from training.gates import parse_gates
    from training.promotion import parse_compare

    parse_gates(export.gates)
    parse_compare(export.compare)
    on_gpu = export.target_device == "gpu"
    if export.precision in (("int8", "optimised") if on_gpu else ("fp16",)):
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


def _check_tuning(tuning: FineTuningArguments, model: ModelArguments) -> None:
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
    """The key `class_weights` as what it means.

    Raises:
        RecipeError: it is neither of the words nor a mapping of labels to positive numbers.
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


def recipe_seed(recipe: Recipe) -> int:
    """The seed of the split, the new head and the training."""
    return int(recipe.training.get("seed", DEFAULT_SEED))


def recipe_of(manifest: Manifest) -> dict[str, Any]:
    """The recipe that a package was made by, as far as it says: no hash vouches for that."""
    recipe = manifest.provenance.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def columns_of(manifest: Manifest, given: Mapping[str, Any]) -> DataArguments:
    """Which columns of a file a package reads: those `given`, else those of its recipe."""
    keys = ("text_column", "text_pair_column", "label_column", "label_separator")
    recipe = recipe_of(manifest)
    # No hash vouches for their types.
    stated: dict[str, Any] = {key: str(recipe[key]) for key in keys if key in recipe}
    if isinstance(recipe.get("label_columns"), list):
        stated["label_columns"] = [str(column) for column in recipe["label_columns"]]
    if manifest.has_pairs:
        stated.setdefault("text_pair_column", "text_pair")
    chosen = {key: value for key, value in given.items() if value is not None}
    if "text_pair_column" in chosen and not manifest.has_pairs:
        raise RecipeError(
            f"{manifest.name} reads single texts, not pairs: leave text_pair_column out"
        )
    return DataArguments(**(stated | chosen))
