"""The keys of a recipe, as typed dataclasses with the help text of each key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from training.common.errors import RecipeError

if TYPE_CHECKING:
    from service.package.manifest import Manifest

DEFAULT_BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FILE_KEYS = ("train_file", "validation_file", "test_file")
# The columns of a labeled file, as a package's recipe has them too.
COLUMN_KEYS = ("text_column", "text_pair_column", "label_column", "label_separator")
# The keys of a hub data set, which are dropped when files on the command line replace it.
HUB_KEYS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    *COLUMN_KEYS,
    "group_column",
    "time_column",
)
DEFAULT_SEED = 42


class Default(NamedTuple):
    """The value of a key that the recipe leaves open and, in half a sentence, its reason."""

    value: Any
    reason: str


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
        "the vector of a text that the head reads: the mean of the tokens' vectors, or that of the "
        "model's family (BERT: the first token's); computed if not given",
    )
    long_text: Literal["truncate", "window"] = _key(
        "truncate",
        "how a text longer than max_length is read: truncate it, or read it in windows of "
        "max_length tokens",
    )
    window_stride: int | None = _key(
        None, "tokens that neighboring windows share; a quarter of max_length if not given"
    )
    window_aggregation: Literal["mean", "max"] = _key(
        "mean", "a text's probabilities: the mean over its windows, or each label's largest"
    )
    added_tokens: list[str] | None = _key(
        None,
        "words that become one token each, such as names of products; their embeddings are new",
    )
    trust_remote_code: bool = _key(False, "run Python code that the model's repository ships")


@dataclass(frozen=True)
class DataArguments:
    """The labeled text."""

    name: str | None = _key(None, "name of the classifier and of its run folder")
    dataset_name: str | None = _key(None, "data set on the hub (instead of train_file)")
    dataset_config_name: str | None = _key(None, "configuration of the hub data set")
    dataset_revision: str | None = _key(None, "branch, tag or commit of the hub data set")
    train_file: list[str] | None = _key(
        None,
        "the training rows: a file, a folder, a pattern, an address, or a list of these; CSV, "
        "JSON, Parquet, Arrow or fastText, plain, .gz or .zst",
    )
    validation_file: list[str] | None = _key(None, "files by which the checkpoint is chosen")
    test_file: list[str] | None = _key(None, "files on which the finished package is measured")
    delimiter: str | None = _key(
        None, "separator of the columns of CSV; detected if not given; `tab` is a tab"
    )
    encoding: str | None = _key(
        None, "encoding of text files, such as windows-1252; detected if not given"
    )
    text_column: str = _key("text", "column with the text")
    text_pair_column: str | None = _key(
        None, "column with the second text of each row, where pairs of texts are classified"
    )
    label_column: str = _key(
        "label",
        "column with the label; a column of lists means several labels a row; a.b is the field b "
        "of the objects in column a, and a.0 the first of its lists",
    )
    label_columns: list[str] | None = _key(
        None, "instead of label_column a column for each label, which holds 1 or 0"
    )
    label_separator: str | None = _key(
        None, "separator of the labels of a row, such as '|'; a row may then have any number"
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
        "column of groups, such as customers or threads: rows with one value stay on one side of "
        "every split, as equal and nearly equal texts always do",
    )
    time_column: str | None = _key(
        None,
        "column with the time of each row (ISO 8601, or a number that grows): the newest rows are "
        "set aside for validation instead of random ones",
    )
    drop_invalid: bool = _key(False, "drop rows that cannot be used instead of refusing the data")


@dataclass(frozen=True)
class FineTuningArguments:
    """Which layers of the pre-trained model are trained, how fast and for how long."""

    freeze_embeddings: bool = _key(False, "leave the embeddings as they were pre-trained")
    freeze_layers: int = _key(
        0, "leave this many of the lowest layers, and the embeddings, as they were pre-trained"
    )
    layerwise_lr_decay: float | None = _key(
        None,
        "a layer's learning rate as a multiple of that of the layer above it; 1 is one rate for "
        "all layers; computed if not given",
    )
    head_lr_factor: float | None = _key(
        None,
        "the new head's learning rate as a multiple of learning_rate; computed if not given",
    )
    early_stopping_patience: int | None = _key(
        None,
        "stop after this many evaluations without a better score or a lower loss; 0 is never; "
        "computed if not given",
    )
    train_on_all_rows: bool | None = _key(
        None,
        "train a second time, on the validation rows too, and ship that model; the first one "
        "measures and calibrates it; computed if not given",
    )


@dataclass(frozen=True)
class ExportArguments:
    """The package that ships."""

    precision: Literal["auto", "int8", "optimized", "optimised", "fp32", "fp16"] = _key(
        "auto",
        "the graph that ships: auto takes the first of int8 and fp32 that passes the gates, for a "
        "GPU of fp16 and fp32; a name ships that graph, with a warning where the gates refuse it "
        "(optimised is the old name of optimized)",
    )
    target_device: Literal["cpu", "gpu"] = _key("cpu", "the kind of device that will serve it")
    gates: str | None = _key(
        None,
        "bounds for a graph that ships in place of the checkpoint, a mapping of some of "
        "min_agreement (0.98), max_drift (0.02), max_macro_f1_drop (0.01), max_half_width (0.02)",
    )
    compare: str | None = _key(
        None,
        "bounds for replacing the package that runs, a mapping of some of max_macro_f1_drop "
        "(0.01), max_half_width (0.02), and the floors min_macro_f1 and max_ece (none)",
    )
    golden_file: str | None = _key(
        None,
        "file with the golden texts, by which every copy of the package is tested and which travel "
        "with it, or none (default: 32 texts of the validation split)",
    )
    positive_label: str | None = _key(
        None,
        "the label to find, of two: it is answered from a threshold on, which is chosen on "
        "validation",
    )
    threshold_precision: float | None = _key(
        None,
        "choose thresholds (of several labels a row, or of positive_label) that prove this "
        "precision for new rows, instead of the thresholds with the best F1",
    )
    abstain_precision: float | None = _key(
        None,
        "mark answers as abstained below a score; validation proves that this share of the answers "
        "above it is right on new rows",
    )

    @property
    def wants_precision(self) -> bool:
        """Whether validation rows have to prove a precision."""
        return self.threshold_precision is not None or self.abstain_precision is not None


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


def recipe_seed(recipe: Recipe) -> int:
    """The seed of the split, the new head and the training."""
    return int(recipe.training.get("seed", DEFAULT_SEED))


def recipe_of(manifest: Manifest) -> dict[str, Any]:
    """The recipe that a package was made by, as its manifest says: no hash vouches for it."""
    recipe = manifest.provenance.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def columns_of(manifest: Manifest, named: Mapping[str, Any]) -> DataArguments:
    """The columns of a file that a package reads.

    Args:
        named: keys of the user's, which win over those of the package's recipe.

    Raises:
        RecipeError: a second text is named for a package that reads single texts.
    """
    recipe = recipe_of(manifest)
    # No hash vouches for their types.
    stated: dict[str, Any] = {key: str(recipe[key]) for key in COLUMN_KEYS if key in recipe}
    if isinstance(recipe.get("label_columns"), list):
        stated["label_columns"] = [str(column) for column in recipe["label_columns"]]
    if manifest.has_pairs:
        stated.setdefault("text_pair_column", "text_pair")
    chosen = {key: value for key, value in named.items() if value is not None}
    if "text_pair_column" in chosen and not manifest.has_pairs:
        raise RecipeError(
            f"{manifest.name} reads single texts, not pairs: leave text_pair_column out"
        )
    return DataArguments(**(stated | chosen))
