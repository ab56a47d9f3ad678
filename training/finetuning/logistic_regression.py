"""A logistic regression with the loss of the fine-tuning, and the choice of its penalty.

scikit-learn's `LogisticRegression` minimizes the same for one label a row. It would fit several
labels a row one after another, and its class weights would mean something else than those of the
fine-tuning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from service.package.manifest import Task
from training.finetuning.losses import Loss

# The inverse of the penalty on squared weights, as scikit-learn's C, for vectors of length 1.
STRENGTHS = (1.0, 10.0, 100.0)
FOLDS = 3
MAX_ITERATIONS = 200


def draw_rows(targets: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The places of at most `most` rows, in order; with one label a row, each in its proportion.

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


def make_folds(texts: list[Any], targets: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row, of shape (rows,): labels are spread, equal texts are in one fold."""
    _, first, group = np.unique(
        np.asarray([repr(text) for text in texts]), return_index=True, return_inverse=True
    )
    label = targets[first] if targets.ndim == 1 else targets[first].argmax(axis=1)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(first)), label))
    fold = np.empty(len(first), dtype=int)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[group]


def choose_strength(
    vectors: torch.Tensor,
    targets: torch.Tensor,
    folds: np.ndarray,
    labels: int,
    loss: Loss,
    task: Task,
) -> float:
    """The strength that answers most of the held-out rows rightly; of equal ones the least.

    With several labels a row, the one with the lowest loss. With one label a row and few rows the
    loss would choose the weakest penalty: vectors of length 1 make no probability near 1.
    """
    scores = []
    for strength in STRENGTHS:
        score = 0.0
        for fold in range(FOLDS):
            held = torch.from_numpy(folds == fold)
            if not held.any() or held.all():
                continue
            weight, bias = fit_regression(vectors[~held], targets[~held], labels, loss, strength)
            logits = vectors[held] @ weight.T + bias
            if task == "single_label":
                score += float((logits.argmax(dim=1) == targets[held]).sum())
            else:
                score -= float(loss(logits, targets[held], 1))
        scores.append(score)
    return STRENGTHS[int(np.argmax(scores))]


def fit_regression(
    vectors: torch.Tensor, targets: torch.Tensor, labels: int, loss: Loss, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases with the least loss plus half the squared weights over `strength`.

    Args:
        vectors: of shape (rows, features).
        targets: label numbers of shape (rows,), or zeros and ones of shape (rows, labels).

    Returns:
        Weights of shape (labels, features) and biases of shape (labels,).
    """
    weight = torch.zeros(labels, vectors.shape[1], dtype=vectors.dtype, requires_grad=True)
    bias = torch.zeros(labels, dtype=vectors.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        history_size=10,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    rows = len(vectors)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = vectors @ weight.T + bias
        total = loss(logits, targets, rows) + (weight**2).sum() / (2 * strength * rows)
        total.backward()
        return torch.as_tensor(total)

    optimizer.step(closure)
    return weight.detach(), bias.detach()
