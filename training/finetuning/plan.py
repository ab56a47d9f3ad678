"""What a training will do, decided before it does anything; `train` and `tune` begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.encoding import TextEncoding, resolve_text_encoding, row_sizes
from training.finetuning.base_checks import fit_together, refuse_misfit, refuse_weights
from training.finetuning.base_models import BaseModel, resolve_base_model
from training.finetuning.losses import label_odds, label_weights
from training.finetuning.new_head import init_bias_from_priors
from training.finetuning.parameter_groups import freeze
from training.finetuning.record import run_identity
from training.finetuning.settings import resolve_hyperparameters
from training.recipe.arguments import FineTuningArguments, Recipe, recipe_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

    from training.data.dataset import LabeledData


@dataclass(frozen=True)
class TrainingPlan:
    """A base model, the data that it is trained on, and every setting in force.

    `class_weights` are in the order of the labels, None where all labels count alike. `provenance`
    names the base's weights and their SHA-256. `model` is made and not trained yet. `reasons` says
    of each computed key why its value is what it is. `identity` is `run_identity`'s.
    """

    recipe: Recipe
    data: LabeledData
    identity: str
    class_weights: list[float] | None
    base: BaseModel
    provenance: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    text_encoding: TextEncoding
    arguments: TrainingArguments
    tuning: FineTuningArguments
    reasons: dict[str, str]

    @property
    def seed(self) -> int:
        """The seed of the split, the new head and the training."""
        return recipe_seed(self.recipe)

    @property
    def base_sha256(self) -> str | None:
        """The SHA-256 of the base's weights, where it is known."""
        return self.provenance.get("sha256")

    @property
    def computed_settings(self) -> dict[str, Any]:
        """The settings that the recipe may leave open and that a run has to keep to its end.

        `training.json` has them under `settled`.
        """
        return {
            "base_model": self.base_sha256,
            "pooling": self.base.pooling.value,
            "head_lr_factor": self.tuning.head_lr_factor,
            "layerwise_lr_decay": self.tuning.layerwise_lr_decay,
            "per_device_train_batch_size": self.arguments.per_device_train_batch_size,
            "num_train_epochs": self.arguments.num_train_epochs,
            "train_on_all_rows": self.tuning.train_on_all_rows,
        }

    def new_model(self) -> PreTrainedModel:
        """A model as `model` was before its first step."""
        model = _untrained_model(self.recipe, self.base, self.data, self.class_weights)
        freeze(model, self.tuning.freeze_layers, embeddings=self.tuning.freeze_embeddings)
        return model


def plan_training(recipe: Recipe, data: LabeledData) -> TrainingPlan:
    """Load the base model that a recipe names, check it, and compute what the recipe leaves open.

    Raises:
        BaseModelError: the base cannot be had, trained, exported, or read such texts.
        RecipeError: a key does not suit the data, the base or another key.
    """
    class_weights = label_weights(recipe.data.class_weights, data)
    base = resolve_base_model(recipe.model)
    tokenizer = base.tokenizer()
    refuse_misfit(recipe, tokenizer, base.config())
    model = _untrained_model(recipe, base, data, class_weights)
    refuse_weights(base.name, model)
    fit_together(tokenizer, model)
    text_encoding = resolve_text_encoding(recipe, tokenizer, model.config)
    sizes = row_sizes(data.train, tokenizer, text_encoding)
    arguments, tuning, reasons = resolve_hyperparameters(
        recipe, model.num_parameters(), data, base.pooling.value, sizes
    )
    freeze(model, tuning.freeze_layers, embeddings=tuning.freeze_embeddings)
    return TrainingPlan(
        recipe=recipe,
        data=data,
        identity=run_identity(recipe, data),
        class_weights=class_weights,
        base=base,
        provenance=base.provenance(),
        tokenizer=tokenizer,
        model=model,
        text_encoding=text_encoding,
        arguments=arguments,
        tuning=tuning,
        reasons=reasons,
    )


def _untrained_model(
    recipe: Recipe, base: BaseModel, data: LabeledData, class_weights: list[float] | None
) -> PreTrainedModel:
    """The base under a new head, which for several labels a row starts at their odds."""
    model = base.classifier(data.labels, data.task, recipe_seed(recipe))
    if data.task == "multi_label":
        init_bias_from_priors(model, label_odds(data, class_weights))
    return model
