"""What a classifier's linear head reads of texts, while the encoder below it stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from service.inference.decisions import FloatArray
from training.data.encoding import EncodedSplit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH_SIZE = 64


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The head, where it is one linear layer over a text's vector; None where it is more.

    The heads of some families have a hidden layer, which starts at random: what that makes of a
    vector says little of a text before it is trained.
    """
    parts = [
        part
        for name, module in model.named_children()
        if name != model.base_model_prefix
        for part in module.modules()
        if next(part.parameters(recurse=False), None) is not None
    ]
    if len(parts) != 1 or not isinstance(parts[0], nn.Linear) or parts[0].bias is None:
        return None
    return parts[0] if parts[0].out_features == model.config.num_labels else None


@dataclass(frozen=True)
class FrozenEncoder:
    """A classifier with a linear head, and the tokenizer that pads for it."""

    model: PreTrainedModel
    head: nn.Linear
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> FrozenEncoder | None:
        """The encoder of `model`; None where its head is not one linear layer."""
        head = linear_head(model)
        return None if head is None else cls(model, head, tokenizer)

    @torch.inference_mode()
    def text_vectors(self, encoded: EncodedSplit, rows: np.ndarray) -> FloatArray:
        """The input of the head for the texts at the places `rows`, of shape (texts, features).

        For a text in windows, the mean over them.
        """
        windows = np.asarray(encoded.windows)
        first = np.concatenate([[0], np.cumsum(windows)])
        places = np.concatenate([np.arange(first[row], first[row + 1]) for row in rows])
        owners = np.repeat(np.arange(len(rows)), windows[rows])
        table = encoded.table.remove_columns("labels")
        lengths = [len(ids) for ids in table.select(places)["input_ids"]]
        order = np.argsort(-np.asarray(lengths), kind="stable")
        inputs: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        was_training = self.model.training
        self.model.eval()
        sums = np.zeros((len(rows), self.head.in_features), dtype=np.float32)
        try:
            for start in range(0, len(order), BATCH_SIZE):
                part = order[start : start + BATCH_SIZE]
                batch: Any = self.tokenizer.pad(table[places[part].tolist()], return_tensors="pt")
                self.model(**batch.to(self.model.device))
                np.add.at(sums, owners[part], inputs.pop().float().cpu().numpy())
        finally:
            hook.remove()
            self.model.train(was_training)
        vectors: FloatArray = sums / windows[rows, None]
        return vectors
