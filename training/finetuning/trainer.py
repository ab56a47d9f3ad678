"""A training plan → the `Trainer` that carries it out: encoded rows, loss and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalPrediction

from service.inference.decisions import aggregate_windows, probabilities
from training.data.encoding import EncodedSplit, by_length, encode_split, make_targets
from training.evaluation.metrics import validation_metrics
from training.finetuning.callbacks import Progress, SpareEvaluations, StopEarly
from training.finetuning.fine_tuner import SHARE, FineTuner
from training.finetuning.losses import Loss, weighted_loss

if TYPE_CHECKING:
    from service.package.manifest import Aggregation, Task
    from training.finetuning.plan import TrainingPlan

# The digits that logits in fp32 carry: a loss that differs only behind them is not lower.
LOSS_DECIMALS = 7
# Tensor cores multiply by eights (NVIDIA, Deep Learning Performance Guide).
TENSOR_CORE_MULTIPLE = 8


@dataclass(frozen=True)
class ValidationMetrics:
    """The Trainer's `compute_metrics` over texts; windows are combined as in the package.

    The loss replaces the Trainer's, which is a mean over batches of different sizes, and over the
    rows that fill up the batches of several processes.
    """

    encoded: EncodedSplit
    targets: np.ndarray
    task: Task
    aggregation: Aggregation | None
    loss: Loss

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Loss and scores of logits of shape (windows, labels)."""
        logits = np.asarray(prediction.predictions, dtype=np.float32)
        windows = self.encoded.windows
        loss = self.loss(
            torch.from_numpy(logits).double(),
            torch.from_numpy(np.repeat(self.targets, windows, axis=0)),
            shares=torch.from_numpy(self.encoded.window_shares()),
        )
        probs = aggregate_windows(
            probabilities(logits, self.task), windows, self.task, self.aggregation
        )
        return {
            "loss": round(float(loss), LOSS_DECIMALS),
            **validation_metrics(probs, self.targets, self.task),
        }


def make_trainer(
    plan: TrainingPlan,
    *,
    model_init: Callable[[], PreTrainedModel] | None = None,
    cache: Path | None = None,
) -> FineTuner:
    """The Trainer that trains the model of `plan`.

    Args:
        model_init: makes a new model for every trial, instead of the one model of `plan`.
        cache: folder for token ids.
    """
    data, arguments, tuning = plan.data, plan.arguments, plan.tuning
    ordered = by_length(data.validation)
    train, validation = (
        encode_split(split, plan.tokenizer, data.labels, data.task, plan.text_encoding, cache)
        for split in (data.train, ordered)
    )
    table = train.table
    if plan.text_encoding.window_stride is not None:
        table = table.add_column(SHARE, train.window_shares())
    loss = weighted_loss(plan.class_weights, data.task, arguments.label_smoothing_factor)
    on_cuda = arguments.device.type == "cuda"
    trainer: FineTuner = FineTuner(
        model=plan.model if model_init is None else None,
        model_init=model_init,
        args=arguments,
        train_dataset=table,
        eval_dataset=validation.table,
        processing_class=plan.tokenizer,
        data_collator=DataCollatorWithPadding(
            plan.tokenizer, pad_to_multiple_of=TENSOR_CORE_MULTIPLE if on_cuda else None
        ),
        compute_loss_func=loss,
        compute_metrics=ValidationMetrics(
            encoded=validation,
            targets=make_targets(ordered, data.labels, data.task),
            task=data.task,
            aggregation=plan.text_encoding.aggregation,
            loss=loss,
        ),
        callbacks=[Progress(), SpareEvaluations()],
    )
    trainer.tuning = tuning
    trainer.validation_rows = len(data.validation)
    if tuning.early_stopping_patience:
        trainer.add_callback(StopEarly(tuning.early_stopping_patience))
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer
