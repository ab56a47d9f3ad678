"""The start of a new head: a logistic regression over what the frozen encoder says of the texts.

A head that starts at random sends gradients through the encoder that are noise. With few rows much
of what the encoder knows is lost before the head has learned to read it. Here the head learns
first, alone, and the fine-tuning goes on from there (Kumar et al. 2022, arXiv:2202.10054,
"Fine-Tuning can Distort Pretrained Features", section 3: linear probing, then fine-tuning). Until
its first step the model is the regression, an ordinary checkpoint that is evaluated like that of
any epoch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from service.inference.decisions import FloatArray
from service.package.manifest import Task, Text
from training.common.layout import HEAD_START
from training.data.encoding import EncodedSplit, encode_split, make_targets
from training.data.splits import Split
from training.finetuning.frozen_encoder import FrozenEncoder, linear_head
from training.finetuning.logistic_regression import (
    choose_strength,
    draw_rows,
    fit_regression,
    make_folds,
)
from training.finetuning.losses import weighted_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.finetuning.plan import TrainingPlan

# Rows that the head is fitted on, and rows that the strength is chosen on. More would cost more
# than they help a head that the fine-tuning continues with.
MAX_ROWS = 5000
ROWS_FOR_STRENGTH = 2000
# A length below which no vector is, except those of an encoder that says nothing at all.
TINY = 1e-6
# Standard deviation of the logits over the rows below which the frozen encoder has told nothing: a
# head of nearly 0 would pass hardly any gradient on to the encoder.
MIN_SPREAD = 0.1
# Rows a label up to which the label's name is one of its texts. A name is worth one row, which
# counts where there are few. The number is a guess.
ROWS_WITH_NAMES = 12


@dataclass(frozen=True)
class HeadStart:
    """Weights of shape (labels, features) and biases of shape (labels,) of a linear head."""

    weight: FloatArray
    bias: FloatArray

    def applied_to(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model`, whose head now starts with these."""
        head = linear_head(model)
        if head is not None:
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(self.weight))
                head.bias.copy_(torch.from_numpy(self.bias))
        return model

    def save(self, path: Path) -> None:
        """Write it as safetensors; the file is complete or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        save_file({"weight": self.weight, "bias": self.bias}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> HeadStart:
        """Read what `save` wrote."""
        return cls(**load_file(path))


@dataclass(frozen=True)
class EncodedRows:
    """Training rows, their windows, and their targets as `make_targets` makes them."""

    split: Split
    encoded: EncodedSplit
    targets: np.ndarray


@dataclass(frozen=True)
class Scaling:
    """Vectors around 0 and of length 1 on average, so that a strength means the same for all bases.

    The length is that of whole vectors, not of the part in which texts differ: where that is small,
    weights would be so large that a step of the encoder throws every logit about. Around 0 the fit
    takes fewer iterations.
    """

    middle: FloatArray
    factor: float

    @classmethod
    def of(cls, vectors: FloatArray) -> Scaling:
        """The scaling that brings `vectors`, of shape (texts, features), there."""
        length = float(np.sqrt((vectors**2).sum(axis=1).mean()))
        return cls(vectors.mean(axis=0), 1 / max(length, TINY))

    def scale(self, vectors: FloatArray) -> torch.Tensor:
        """The scaled vectors, in fp64."""
        return torch.from_numpy((vectors - self.middle) * self.factor).double()

    def unscale(self, weight: torch.Tensor, bias: torch.Tensor) -> HeadStart:
        """The head that says of vectors what `weight` and `bias` say of scaled ones."""
        weight = weight * self.factor
        bias = bias - weight @ torch.from_numpy(self.middle).double()
        return HeadStart(weight.float().numpy(), bias.float().numpy())


def make_head_start(plan: TrainingPlan, *, cache: Path | None = None) -> HeadStart | None:
    """What the head of a plan's model starts with; None where it starts at random.

    Args:
        cache: folder for token ids and for the start itself, so that every process, and a run that
            is continued, has the same.
    """
    file = cache / HEAD_START if cache is not None else None
    if file is not None and file.is_file():
        return HeadStart.load(file)
    data = plan.data
    # transformers wraps `to` so that mypy takes its first argument for the model.
    plan.model.to(plan.arguments.device)  # type: ignore[arg-type]
    encoder = FrozenEncoder.of(plan.model, plan.tokenizer)
    if encoder is None:
        return None

    def encode(split: Split) -> EncodedSplit:
        return encode_split(
            split, plan.tokenizer, data.labels, data.task, plan.text_encoding, cache
        )

    rows = EncodedRows(
        data.train, encode(data.train), make_targets(data.train, data.labels, data.task)
    )
    names = label_rows(data.train, data.labels) if data.task == "single_label" else None
    encoded_names = None if names is None else encode(names)
    start = fit_head_start(
        encoder, rows, data.task, plan.class_weights, plan.seed, names=encoded_names
    )
    if start is not None and file is not None:
        start.save(file)
    return start


def fit_head_start(
    encoder: FrozenEncoder,
    rows: EncodedRows,
    task: Task,
    class_weights: list[float] | None,
    seed: int,
    *,
    names: EncodedSplit | None = None,
) -> HeadStart | None:
    """The regression that the head starts with; None where the frozen encoder tells nothing.

    The penalty is chosen by cross-validation over groups of equal texts. At most MAX_ROWS rows are
    drawn, every label in its proportion.

    Args:
        class_weights: as the loss of the fine-tuning has them.
        names: the windows of `label_rows`, one row a label.
    """
    loss = weighted_loss(class_weights, task, 0.0)
    labels = encoder.head.out_features
    chosen = draw_rows(rows.targets, MAX_ROWS, seed)
    vectors = encoder.text_vectors(rows.encoded, chosen)
    scaling = Scaling.of(vectors)
    scaled, targets = scaling.scale(vectors), torch.from_numpy(rows.targets[chosen])
    few = draw_rows(rows.targets[chosen], ROWS_FOR_STRENGTH, seed)
    texts = [rows.split.texts[row] for row in chosen[few]]
    folds = make_folds(texts, rows.targets[chosen[few]], seed)
    strength = choose_strength(scaled[few], targets[few], folds, labels, loss, task)
    if names is not None:
        named = encoder.text_vectors(names, np.arange(labels))
        scaled = torch.cat([scaled, scaling.scale(named)])
        targets = torch.cat([targets, torch.arange(labels)])
    weight, bias = fit_regression(scaled, targets, labels, loss, strength)
    if float((scaled @ weight.T).std(dim=0).max()) < MIN_SPREAD:
        return None
    return scaling.unscale(weight, bias)


def label_rows(rows: Split, labels: Sequence[str]) -> Split | None:
    """Each label's name as a text with that label; None where names say nothing or rows suffice.

    A name without three letters in a row, such as a number, is taken to say nothing. With pairs of
    texts, or several labels a row, no name becomes a row.
    """
    texts: list[Text] = [re.sub(r"[\W_]+", " ", label).strip() for label in labels]
    suits = len(rows) <= ROWS_WITH_NAMES * len(labels) and all(
        isinstance(text, str) and len(own) == 1
        for text, own in zip(rows.texts, rows.labels, strict=True)
    )
    if not suits or not all(re.search(r"[^\W\d_]{3}", str(text)) for text in texts):
        return None
    return Split(texts, [(label,) for label in labels])
