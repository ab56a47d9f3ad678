"""The new classification head of a base model, before it learns anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def heads(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Every part of a classifier outside its encoder."""
    return (part for name, part in model.named_children() if name != model.base_model_prefix)


def reset_head(model: PreTrainedModel, seed: int) -> None:
    """Let every part outside the encoder start anew: a base that was a classifier has a head."""
    from transformers import set_seed

    set_seed(seed)
    for head in heads(model):
        for part in head.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        # The way transformers starts a new head, for which it has no public name.
        head.apply(cast("Callable[[nn.Module], None]", model._init_weights))


def init_bias_from_priors(model: PreTrainedModel, odds: Sequence[float]) -> None:
    """Set the bias of a head over several labels so that it starts at each label's odds.

    Labels are rare. A head that starts at probability 0.5 first has to push every logit down, and
    takes the shortest way, through the encoder, which loses what it knew. Lin et al. 2017, "Focal
    Loss for Dense Object Detection", section 4.1.

    Args:
        odds: of each label, rows with it over rows without it, weighted as in the loss.
    """
    layers = [
        part
        for head in heads(model)
        for part in head.modules()
        if isinstance(part, nn.Linear) and part.out_features == len(odds)
    ]
    if layers and layers[-1].bias is not None:
        with torch.no_grad():
            layers[-1].bias.copy_(torch.log(torch.tensor(odds)))
