"""The classification head: the model family's own, or a linear layer over the mean of all tokens.

Sentence encoders were trained so that the mean of their tokens' vectors represents a text (Reimers
and Gurevych 2019, arXiv:1908.10084, section 3). The head that transformers gives to their family
reads the first token alone, which would have to learn that anew. The direction of the mean carries
the meaning, as the texts were compared by cosines. Its length depends on how long and how common
the words are, and misleads a head that has seen few rows.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from training.common.errors import BaseModelError

Pooling = Literal["mean", "model"]
# The key in a checkpoint's config.json for a pooling that is not its family's.
POOLING_KEY = "whetstone_pooling"
# Its values: the mean as it is, in older checkpoints, and the mean brought to one length.
PLAIN_MEAN = "mean"
MEAN_OF_ONE_LENGTH = "mean_of_one_length"
# About the length of all-MiniLM-L6-v2's means, for which the learning rates were chosen.
LENGTH = 5.0
# Their encoders need the pooler, which mean pooling removes, or have no vector for each token.
UNPOOLABLE = frozenset({"layoutlm", "perceiver", "squeezebert"})
# Dropout of the head's input; BERT's, as there is no key that all families have.
DROPOUT = 0.1


def classifier_class(location: str | Path, pooling: str, **options: Any) -> Any:
    """The class whose `from_pretrained` makes the model in `location` a classifier.

    Raises:
        BaseModelError: mean pooling does not suit the family of the model.
    """
    if pooling == "model":
        return AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(location, **options)
    family = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if family is None or config.model_type in UNPOOLABLE:
        raise BaseModelError(
            f"pooling: mean is not for {location}, which is of the kind {config.model_type!r}: use "
            "pooling: model"
        )
    return mean_pooled(family)


def load_checkpoint(folder: Path, **options: Any) -> PreTrainedModel:
    """The classifier of a checkpoint, with the head that it was trained with, in evaluation mode.

    Args:
        options: of `from_pretrained`.
    """
    config = AutoConfig.from_pretrained(folder, **options)
    kind = classifier_class(folder, getattr(config, POOLING_KEY, "model"), **options)
    model: PreTrainedModel = kind.from_pretrained(folder, use_safetensors=True, **options)
    model.eval()
    return model


# One class for each family: a compiler's cache tells classes apart by identity.
@functools.cache
def mean_pooled(family: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`family`, a class for sequence classification, with mean pooling under a linear head.

    All means are brought to one length, unless the configuration is of a checkpoint without that.
    """

    class MeanPooled(family):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name, _ in list(self.named_children()):
                if name != self.base_model_prefix:
                    delattr(self, name)
            # It reads the first token, and nothing reads it.
            if getattr(self.base_model, "pooler", None) is not None:
                self.base_model.pooler = None
            self.dropout = nn.Dropout(DROPOUT)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
            self._one_length = getattr(config, POOLING_KEY, None) != PLAIN_MEAN
            setattr(config, POOLING_KEY, MEAN_OF_ONE_LENGTH if self._one_length else PLAIN_MEAN)
            taken = inspect.signature(self.base_model.forward).parameters
            self._takes_types = "token_type_ids" in taken
            self.post_init()

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
        ) -> SequenceClassifierOutput:
            """Logits of shape (rows, labels) of token ids of shape (rows, tokens)."""
            types = {"token_type_ids": token_type_ids} if self._takes_types else {}
            hidden = self.base_model(
                input_ids=input_ids, attention_mask=attention_mask, **types
            ).last_hidden_state.float()
            # In fp32, also where the encoder computes in half precision: many tokens are added.
            counted = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * counted).sum(1) / counted.sum(1)
            if self._one_length:
                mean = nn.functional.normalize(mean) * LENGTH
            logits = self.classifier(self.dropout(mean))
            loss = None
            if labels is not None:
                loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            return SequenceClassifierOutput(loss=loss, logits=logits)

    # optimum takes the name of the library from it.
    MeanPooled.__module__ = family.__module__
    MeanPooled.__name__ = MeanPooled.__qualname__ = f"MeanPooled{family.__name__}"
    return MeanPooled
