"""The loss, in which rare labels may count more (class weights)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.nn import functional

from service.package.manifest import Task
from training.common.errors import RecipeError
from training.data.dataset import LabeledData
from training.recipe.checks import parse_class_weights

Loss = Callable[..., torch.Tensor]


def label_weights(setting: str, data: LabeledData) -> list[float] | None:
    """The weight of each label, in label order; None where all labels count alike.

    `balanced` is rows / (labels x rows of the label) with one label a row (King and Zeng 2001,
    as in scikit-learn), and rows without the label / rows with it for several (the positive
    weight of torch's BCEWithLogitsLoss).

    Raises:
        RecipeError: a mapping names a label that the data lacks.
    """
    weights = parse_class_weights(setting)
    if weights == "none":
        return None
    if isinstance(weights, dict):
        unknown = sorted(set(weights) - set(data.labels))
        if unknown:
            raise RecipeError(
                f"class_weights names {unknown[0]!r}, which is not a label: "
                f"{', '.join(data.labels)}"
            )
        return [weights.get(label, 1.0) for label in data.labels]
    rows = len(data.train)
    counts = Counter(label for labels in data.train.labels for label in labels)
    if data.task == "multi_label":
        return [(rows - counts[label]) / counts[label] or 1.0 for label in data.labels]
    return [rows / (len(data.labels) * counts[label]) for label in data.labels]


def label_odds(data: LabeledData, weights: list[float] | None) -> list[float]:
    """Rows with each label over rows without it, as the loss weighs them."""
    rows = len(data.train)
    counts = Counter(label for labels in data.train.labels for label in labels)
    # Half a row more on either side: a label may be on every row.
    odds = [(counts[label] + 0.5) / (rows - counts[label] + 0.5) for label in data.labels]
    return [weight * odd for weight, odd in zip(weights or [1.0] * len(odds), odds, strict=True)]


def weighted_loss(weights: list[float] | None, task: Task, label_smoothing: float) -> Loss:
    """Cross-entropy, or binary cross-entropy with positive weights, as a mean over rows.

    The function takes logits of shape (rows, labels) and targets as
    `training.data.encoding.make_targets` makes them. It also takes `items`, the number of targets
    of the whole step, of which these may be a part, and `shares` of shape (rows,), the weight of
    each row. The sum is divided by the number of rows, neither by class weights nor by shares: a
    step over several batches (gradient accumulation) equals one over all their rows, and a batch of
    rows with small weights moves the model little.
    """

    def loss(
        logits: torch.Tensor,
        targets: torch.Tensor,
        items: torch.Tensor | int | None = None,
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # bf16 is too coarse for a sum; fp64 stays.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scale = None
        if weights is not None:
            scale = torch.tensor(weights, device=logits.device, dtype=logits.dtype)
        if task == "multi_label":
            of_rows = functional.binary_cross_entropy_with_logits(
                logits, targets.to(logits.dtype), pos_weight=scale, reduction="none"
            ).sum(dim=1)
        else:
            of_rows = functional.cross_entropy(
                logits, targets, weight=scale, label_smoothing=label_smoothing, reduction="none"
            )
        total = of_rows.sum() if shares is None else (of_rows * shares).sum()
        return total / (targets.numel() if items is None else items)

    return loss
