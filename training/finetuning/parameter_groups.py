"""Which layer a parameter belongs to: what is frozen, and how fast each layer learns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from training.errors import RecipeError


def depths(model: PreTrainedModel) -> dict[str, int]:
    """Every parameter's depth by its name: 0 for embeddings, n for layer n, the head above all.

    What the encoder has before its layers is embeddings, what it has behind them (a last norm, a
    pooler) the last layer's. A model that shares one layer's weights among all (ALBERT) has one.
    """
    prefixes = _layers(model)
    found: dict[str, int] = {}
    depth = 0
    for name, _ in model.named_parameters():
        if not name.startswith(f"{model.base_model_prefix}."):
            found[name] = len(prefixes) + 1
            continue
        layer = next((n for n, prefix in enumerate(prefixes, 1) if name.startswith(prefix)), None)
        depth = layer or (len(prefixes) if depth else 0)
        found[name] = depth
    return found


def _layers(model: PreTrainedModel) -> list[str]:
    """The prefixes of the parameters of each encoder layer, from the embeddings up.

    The encoder is the first list of modules in the model that is not inside another one.
    """
    for name, module in model.base_model.named_modules(prefix=model.base_model_prefix):
        if isinstance(module, nn.ModuleList):
            return [f"{name}.{index}." for index in range(len(module))]
    return []


def freeze(model: PreTrainedModel, layers: int, *, embeddings: bool) -> None:
    """Keep the lowest `layers` and, below any, the embeddings as they were pre-trained.

    Raises:
        RecipeError: there are not so many layers.
    """
    if not layers and not embeddings:
        return
    by_name = depths(model)
    most = max(by_name.values()) - 1
    if layers > most:
        raise RecipeError(f"freeze_layers is {layers}, and the model has {most} layers")
    for name, parameter in model.named_parameters():
        if by_name[name] <= layers:
            parameter.requires_grad_(requires_grad=False)


def parameter_groups(
    model: PreTrainedModel,
    decaying: Collection[str],
    *,
    learning_rate: float,
    weight_decay: float,
    layerwise_lr_decay: float,
    head_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: by layer, and with weight decay or without.

    The head learns at `head_lr_factor` times `learning_rate`, the top layer at
    `layerwise_lr_decay` times `learning_rate`, and each further one at so many times the rate of
    the one above it (Howard and Ruder 2018, arXiv:1801.06146, section 3.2).

    Args:
        decaying: names of the parameters that weight decay is for.
    """
    by_name = depths(model)
    top = max(by_name.values())
    groups: dict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[by_name[name], name in decaying].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate
            * (layerwise_lr_decay ** (top - depth) if depth < top else head_lr_factor),
            "weight_decay": weight_decay if decays else 0.0,
        }
        # The rate of the first is the one that is shown: the head's, unless it has one of its own.
        for (depth, decays), parameters in sorted(
            groups.items(),
            key=lambda item: (item[0][0] == top and head_lr_factor != 1, -item[0][0], -item[0][1]),
        )
    ]
