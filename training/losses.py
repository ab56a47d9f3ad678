"""Class weights: rare labels count more in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from service.model_package import Task
from training.config import parse_class_weights
from training.data.dataset import LabelledData
from training.errors import RecipeError

Loss = Callable[..., torch.Tensor]


def label_weights(setting: str, data: LabelledData) -> list[float] | None:
    """The weight of each label, in label order; None where all count alike.

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


def label_odds(data: LabelledData, weights: list[float] | None) -> list[float]:
    """Rows with each label over rows without it, as the loss weighs them."""
    rows = len(data.train)
    counts = Counter(label for labels in data.train.labels for label in labels)
    # Half a row more on either side: a label may be on every row.
    odds = [(counts[label] + 0.5) / (rows - counts[label] + 0.5) for label in data.labels]
    return [weight * odd for weight, odd in zip(weights or [1.0] * len(odds), odds, strict=True)]


def weighted_loss(weights: list[float], task: Task, label_smoothing: float) -> Loss:
    """The Trainer's `compute_loss_func`: cross-entropy, or binary with positive weights.

    The weighted sum is divided by the number of rows, not of weights: so a step over several
    batches (gradient accumulation) is the same as one over them all.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs.logits
        scale = torch.tensor(weights, device=logits.device, dtype=logits.dtype)
        if task == "multi_label":
            total = functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), pos_weight=scale, reduction="sum"
            )
        else:
            total = functional.cross_entropy(
                logits, labels, weight=scale, label_smoothing=label_smoothing, reduction="sum"
            )
        if num_items_in_batch is None:
            return total / labels.numel()
        # DataParallel: one number for each GPU, and the Trainer multiplies by how many there are.
        return total / torch.as_tensor(num_items_in_batch).sum()

    return loss
