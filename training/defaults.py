"""Careful hyperparameters, computed from model size, rows and labels.

Every value is a default: a key of the recipe or the command line wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from service.model_package import Task


def learning_rate(parameters: int, labels: int) -> float:
    """Peak learning rate of AdamW.

    Encoders of BERT-base's size and above forget what they know above a few 1e-5 (Devlin et al.
    2019, appendix A.3: 2e-5 to 5e-5). A six-layer, 23 M parameter one needs more, and the more
    labels the more: a head over many labels is learned from few rows of each. Measured with
    all-MiniLM-L6-v2: two labels do best at 5e-5, 77 at 3e-4.
    """
    if parameters < 40_000_000:
        return min(3e-4, 5e-5 * math.sqrt(labels / 2))
    if parameters < 90_000_000:
        return 5e-5
    if parameters < 200_000_000:
        return 2e-5
    return 1e-5


def epochs(rows: int, labels: int) -> int:
    """Passes over the training rows: more where rows, or rows of a label, are few.

    The checkpoint of the best epoch is kept, so a pass too many costs time, not quality.
    """
    passes = 10 if rows < 1_000 else 6 if rows < 5_000 else 4 if rows < 20_000 else 3
    return passes + 2 if labels >= 20 else passes


def careful_defaults(
    parameters: int,
    rows: int,
    labels: int,
    given: Mapping[str, Any],
    task: Task = "single_label",
) -> dict[str, Any]:
    """TrainingArguments keys for a model of `parameters`, on `rows` with `labels` labels.

    `given` are the recipe's own keys, which some defaults have to suit.
    """
    import torch

    batch_size = 16 if rows < 8_000 else 32
    cuda = torch.cuda.is_available() and not given.get("use_cpu")
    # Emulated bf16, on cards before Ampere, is slower than fp32.
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "learning_rate": learning_rate(parameters, labels),
        "num_train_epochs": epochs(rows, labels),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 64,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "group_by_length": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        # The best and the last: with 1 the Trainer deletes the last when training stops early.
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        # Thresholds come after training: several labels are compared without them.
        "metric_for_best_model": "macro_f1" if task == "single_label" else "average_precision",
        "logging_steps": 10,
        "report_to": "none",
        "bf16": bf16 and not given.get("fp16"),
        "dataloader_pin_memory": cuda,
    }
