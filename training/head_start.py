"""The start of a new head: a logistic regression over what the frozen encoder says of the texts.

A head at random sends gradients through the encoder that are noise, and with few rows much of what
the encoder knows is lost before the head has learned to read it. So the head learns first, alone,
and the fine-tuning goes on from there (Kumar et al. 2022, arXiv:2202.10054, "Fine-Tuning can
Distort Pretrained Features", section 3: linear probing, then fine-tuning). Until its first step
the model is the regression, an ordinary checkpoint that is judged like that of any epoch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from service.decisions import FloatArray
from service.model_package import Task, Text
from training.data.encoding import EncodedSplit
from training.data.splits import Split
from training.losses import weighted_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Rows that the head is fitted on, and that the strength is chosen on: more cost more than they help
# a head that the fine-tuning goes on with.
MOST_ROWS = 5000
ROWS_FOR_STRENGTH = 2000
# The inverse of the penalty on squared weights, as scikit-learn's C, for vectors of length 1.
STRENGTHS = (1.0, 10.0, 100.0)
FOLDS = 3
MOST_ITERATIONS = 200
# No vector is shorter, but of an encoder that says nothing at all.
TINY = 1e-6
# Standard deviation of logits over the rows below which the frozen encoder has told nothing: a head
# of nearly 0 would pass hardly any gradient on to it.
LEAST_SPREAD = 0.1
TEXTS_AT_ONCE = 64
# Rows a label up to which its name is one of its texts: a name is worth one row, which counts where
# there are few. Where that ends is a guess.
NAMED_ROWS = 12


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
        """Write it as safetensors, complete or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        save_file({"weight": self.weight, "bias": self.bias}, whole)
        whole.replace(path)

    @classmethod
    def load(cls, path: Path) -> HeadStart:
        """What `save` wrote."""
        return cls(**load_file(path))


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The head where it is one linear layer over a text's vector; None where it is more than that.

    Those of some families have a hidden layer, which starts at random: what it makes of a vector
    says little of a text before it is trained.
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


def fit_head_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Split,
    encoded: EncodedSplit,
    targets: np.ndarray,
    task: Task,
    weights: list[float] | None,
    seed: int,
    *,
    named: EncodedSplit | None = None,
) -> HeadStart | None:
    """The regression that the head of `model` starts with; None where that is worth nothing.

    As where the head is not linear, or the encoder says nothing of the texts before it is trained.

    The penalty is chosen by cross-validation over groups of equal texts. Of more than MOST_ROWS
    rows so many are drawn, every label in its proportion.

    Args:
        rows, encoded, targets: the training rows, their windows, and label numbers or, for several
            labels a row, ones of shape (rows, labels).
        weights: of the labels, as the loss has them.
        named: `label_rows`, one row a label, or none.
    """
    head = linear_head(model)
    if head is None:
        return None
    chosen = _draw(targets, MOST_ROWS, seed)
    vectors = _text_vectors(model, head, tokenizer, encoded, chosen)
    # Of length 1 on average, so that a strength means the same for all encoders. Not the part in
    # which texts differ: where that is small, weights would be so large that a step of the encoder
    # throws every logit about. Around 0, as the fit then takes fewer iterations.
    middle = vectors.mean(axis=0)
    scale = 1 / max(float(np.sqrt((vectors**2).sum(axis=1).mean())), TINY)
    table = torch.from_numpy((vectors - middle) * scale).double()
    truth = torch.from_numpy(targets[chosen])
    labels = head.out_features
    loss = weighted_loss(weights, task, 0.0)
    few = _draw(targets[chosen], ROWS_FOR_STRENGTH, seed)
    folds = _folds([rows.texts[row] for row in chosen[few]], targets[chosen[few]], seed)
    strength = _best_strength(table[few], truth[few], folds, labels, loss, task)
    if named is not None:
        own = _text_vectors(model, head, tokenizer, named, np.arange(labels))
        table = torch.cat([table, torch.from_numpy((own - middle) * scale).double()])
        truth = torch.cat([truth, torch.arange(labels)])
    weight, bias = _fit(table, truth, labels, loss, strength)
    if float((table @ weight.T).std(dim=0).max()) < LEAST_SPREAD:
        return None
    weight *= scale
    bias -= weight @ torch.from_numpy(middle).double()
    return HeadStart(weight.float().numpy(), bias.float().numpy())


def label_rows(rows: Split, labels: Sequence[str]) -> Split | None:
    """Each label's name as a text with that label; None where names say nothing or rows enough.

    A name of which no three letters stand together, such as a number, is taken to say nothing; with
    pairs of texts, and several labels a row, no name is a row.
    """
    texts: list[Text] = [re.sub(r"[\W_]+", " ", label).strip() for label in labels]
    alike = len(rows) <= NAMED_ROWS * len(labels) and all(
        isinstance(text, str) and len(own) == 1
        for text, own in zip(rows.texts, rows.labels, strict=True)
    )
    if not alike or not all(re.search(r"[^\W\d_]{3}", str(text)) for text in texts):
        return None
    return Split(texts, [(label,) for label in labels])


@torch.inference_mode()
def _text_vectors(
    model: PreTrainedModel,
    head: nn.Linear,
    tokenizer: PreTrainedTokenizerFast,
    encoded: EncodedSplit,
    chosen: np.ndarray,
) -> FloatArray:
    """What the head reads of the texts at `chosen`, of shape (texts, features).

    Of a text in windows the mean over them.
    """
    windows = np.asarray(encoded.windows)
    first = np.concatenate([[0], np.cumsum(windows)])
    places = np.concatenate([np.arange(first[row], first[row + 1]) for row in chosen])
    owners = np.repeat(np.arange(len(chosen)), windows[chosen])
    table = encoded.table.remove_columns("labels")
    lengths = [len(ids) for ids in table.select(places)["input_ids"]]
    order = np.argsort(-np.asarray(lengths), kind="stable")
    read: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    was_training = model.training
    model.eval()
    sums = np.zeros((len(chosen), head.in_features), dtype=np.float32)
    try:
        for start in range(0, len(order), TEXTS_AT_ONCE):
            part = order[start : start + TEXTS_AT_ONCE]
            batch: Any = tokenizer.pad(table[places[part].tolist()], return_tensors="pt")
            model(**batch.to(model.device))
            np.add.at(sums, owners[part], read.pop().float().cpu().numpy())
    finally:
        hook.remove()
        model.train(was_training)
    return sums / windows[chosen, None]


def _draw(targets: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The places of at most `most` rows, in order; of one label a row, every label in proportion.

    A label that has rows has one among them, where `most` allows it.
    """
    if len(targets) <= most:
        return np.arange(len(targets))
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    if targets.ndim > 1:
        return np.sort(shuffled[:most])
    counts = np.bincount(targets)
    seen = np.zeros(len(counts))
    turns = np.empty(len(targets))
    for row in shuffled:
        turns[row] = seen[targets[row]] / counts[targets[row]]
        seen[targets[row]] += 1
    return np.sort(shuffled[np.argsort(turns[shuffled], kind="stable")[:most]])


def _folds(texts: list[Any], targets: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row, of shape (rows,): labels spread over them, equal texts in one."""
    _, first, group = np.unique(
        np.asarray([repr(text) for text in texts]), return_index=True, return_inverse=True
    )
    label = targets[first] if targets.ndim == 1 else targets[first].argmax(axis=1)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(first)), label))
    fold = np.empty(len(first), dtype=int)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[group]


def _best_strength(
    table: torch.Tensor,
    truth: torch.Tensor,
    folds: np.ndarray,
    labels: int,
    loss: Any,
    task: Task,
) -> float:
    """The strength whose rows held out are answered rightly most often; of equal ones the least.

    Of several labels a row the one with the lowest loss. For one label that would, with few rows,
    be the weakest penalty there is: vectors of length 1 make no probability near 1.
    """
    scores = []
    for strength in STRENGTHS:
        score = 0.0
        for fold in range(FOLDS):
            held = torch.from_numpy(folds == fold)
            if not held.any() or held.all():
                continue
            weight, bias = _fit(table[~held], truth[~held], labels, loss, strength)
            logits = table[held] @ weight.T + bias
            if task == "single_label":
                score += float((logits.argmax(dim=1) == truth[held]).sum())
            else:
                score -= float(loss(logits, truth[held], 1))
        scores.append(score)
    return STRENGTHS[int(np.argmax(scores))]


def _fit(
    table: torch.Tensor, truth: torch.Tensor, labels: int, loss: Any, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases with the least loss and half the squared weights over `strength`.

    scikit-learn's `LogisticRegression` minimises the same; its labels of several a row would be
    fitted one after another, and class weights would mean something else than in the fine-tuning.

    Args:
        table: vectors of shape (rows, features).
        truth: label numbers of shape (rows,), or ones of shape (rows, labels).
    """
    weight = torch.zeros(labels, table.shape[1], dtype=table.dtype, requires_grad=True)
    bias = torch.zeros(labels, dtype=table.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_ITERATIONS,
        history_size=10,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    rows = len(table)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = table @ weight.T + bias
        total = loss(logits, truth, rows) + (weight**2).sum() / (2 * strength * rows)
        total.backward()
        return torch.as_tensor(total)

    optimizer.step(closure)
    return weight.detach(), bias.detach()
