"""The layers of a model: which are frozen, and how fast each learns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from training.common.errors import RecipeError


def depths(model: PreTrainedModel) -> dict[str, int]:
    """Every parameter's depth by its name: 0 for embeddings, n for layer n, the head above all.

    The encoder's parameters before its layers are embeddings. Those behind them (a last norm, a
    pooler) belong to the last layer. A model whose layers share their weights (ALBERT) has one.
    """
    prefixes = _layers(model)
    depth_of: dict[str, int] = {}
    depth = 0
    for name, _ in model.named_parameters():
        if not name.startswith(f"{model.base_model_prefix}."):
            depth_of[name] = len(prefixes) + 1
            continue
        layer = next((n for n, prefix in enumerate(prefixes, 1) if name.startswith(prefix)), None)
        depth = layer or (len(prefixes) if depth else 0)
        depth_of[name] = depth
    return depth_of


def _layers(model: PreTrainedModel) -> list[str]:
    """The prefixes of the parameters of each encoder layer, from the embeddings up.

    The layers are the first list of modules in the encoder that is not inside another list.
    """
    for name, module in model.base_model.named_modules(prefix=model.base_model_prefix):
        if isinstance(module, nn.ModuleList):
            return [f"{name}.{index}." for index in range(len(module))]
    return []


def freeze(model: PreTrainedModel, layers: int, *, embeddings: bool) -> None:
    """Keep the lowest `layers`, and the embeddings below them, as they were pre-trained.

    Raises:
        RecipeError: the model has fewer layers.
    """
    if not layers and not embeddings:
        return
    by_name = depths(model)
    most = max(by_name.values()) - 1
    if layers > most:
        raise RecipeError(f"freeze_layers is {layers}, and the model has {most} layers")
    for name, parameter in model.named_parameters():
        if by_name[name] <= layers:
            parameter.requires_grad = False


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
    `layerwise_lr_decay` times `learning_rate`, and each further layer at that multiple of the rate
    of the layer above it (Howard and Ruder 2018, arXiv:1801.06146, section 3.2).

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
        # The rate of the first group is shown: that of the head, unless it has a rate of its own.
        for (depth, decays), parameters in sorted(
            groups.items(),
            key=lambda item: (item[0][0] == top and head_lr_factor != 1, -item[0][0], -item[0][1]),
        )
    ]
