"""The computed hyperparameters: from the sizes of model and data, each with its reason.

Every value is a default: a key of the recipe or the command line wins.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.package.manifest import Task
from training.common.threads import own_cores
from training.data.validation_share import GATE_ROWS
from training.finetuning.formulas import (
    FLOOR_OF_STEPS,
    LONG_ROW,
    MIDDLING,
    SMALL,
    SMALLEST_BATCH,
    batch_size,
    epochs,
    learning_rate,
    multiplies_bf16,
)
from training.recipe.arguments import Default

if TYPE_CHECKING:
    from training.data.encoding import RowSizes
    from training.finetuning.pooling import Pooling

# Fewer validation rows do not tell when training has to stop.
ROWS_TO_STOP_BY = 200
# Sun et al. 2019 (arXiv:1905.05583, Catastrophic Forgetting): with 4e-4 BERT-base does not converge
# any more, and 2e-5 keeps it from forgetting.
DESTRUCTIVE = 1e-4
# Passes over rows that are not too few for a number of steps: for less than 150 rows a label, for
# less than 500, and for more.
USUAL_EPOCHS = (10, 6, 3)
HEAD_LR_FACTOR = Default(
    1.0, "one rate for all: the head has learned before the encoder moves, or with it"
)
# The same for every workload.
CONVENTIONS = {
    "lr_scheduler_type": Default("linear", "to 0, as BERT was fine-tuned (Devlin et al. 2019)"),
    "warmup_ratio": Default(0.1, "the new head's first gradients are noise; as BERT's"),
    "weight_decay": Default(0.01, "as BERT's; not of biases and norms"),
    "max_grad_norm": Default(1.0, "as BERT's: one odd batch does not undo others"),
    "label_smoothing_factor": Default(0.0, "probabilities are calibrated after training"),
    "group_by_length": Default(True, "batches of like length need little padding"),
}


def _trains_on_gpu(stated: Mapping[str, Any]) -> bool:
    import torch

    return torch.cuda.is_available() and not stated.get("use_cpu")


@dataclass(frozen=True)
class Workload:
    """What is trained, by size: the facts that the defaults are computed from.

    `assigned_labels` counts the labels of all rows, which may have several or none; None means one
    label a row. `processes` train together. `sizes` is None where each row is one short window.
    `promises` says whether the validation rows have to prove a precision.
    """

    parameters: int
    rows: int
    labels: int
    task: Task = "single_label"
    assigned_labels: int | None = None
    validation_rows: int = ROWS_TO_STOP_BY
    set_aside: bool = False
    processes: int = 1
    pooling: Pooling = "model"
    sizes: RowSizes | None = None
    promises: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the encoder is a small one."""
        return self.parameters < SMALL

    @property
    def rows_of_label(self) -> float:
        """Rows of a label, on average."""
        assigned = self.rows if self.assigned_labels is None else self.assigned_labels
        return assigned / self.labels

    @property
    def windows(self) -> int:
        """Windows of all rows: the number that steps are counted by."""
        return self.rows if self.sizes is None else self.sizes.windows

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return LONG_ROW if self.sizes is None else self.sizes.longest


@dataclass(frozen=True)
class _Schedule:
    """Passes over the rows by default, those in force, and the windows seen in all of them."""

    default_epochs: int
    epochs: float
    seen: int

    @classmethod
    def of(cls, workload: Workload, stated: Mapping[str, Any]) -> _Schedule:
        batch = int(stated.get("per_device_train_batch_size") or SMALLEST_BATCH)
        default = epochs(workload.rows_of_label, math.ceil(workload.windows / batch))
        in_force = float(stated.get("num_train_epochs") or default)
        return cls(default, in_force, round(workload.windows * in_force))


def default_hyperparameters(workload: Workload, stated: Mapping[str, Any]) -> dict[str, Default]:
    """The default of each key that is computed or differs from transformers' own.

    Args:
        stated: the recipe's own keys, which some defaults have to suit.
    """
    schedule = _Schedule.of(workload, stated)
    cuda = _trains_on_gpu(stated)
    batch = batch_size(workload.parameters, schedule.seen, cuda=cuda, longest=workload.longest)
    return {
        **_rates(workload, stated, batch),
        **_length(workload, schedule),
        **_batches(workload, schedule, batch, cuda=cuda),
        **CONVENTIONS,
        **_checkpoints(workload.task),
        **_surroundings(stated, cuda=cuda),
    }


def _rates(workload: Workload, stated: Mapping[str, Any], batch: int) -> dict[str, Default]:
    """The learning rates, which suit the batch in force: it may be the recipe's."""
    processes = workload.processes
    per_device = int(stated.get("per_device_train_batch_size") or batch / processes)
    windows = per_device * processes * int(stated.get("gradient_accumulation_steps") or 1)
    # The windows of a text say together as much as one text.
    texts = round(windows * workload.rows / workload.windows)
    rate = learning_rate(workload.parameters, workload.labels, texts, workload.pooling)
    size = f"{workload.parameters / 1e6:.3g} M parameters"
    if workload.is_small:
        return {
            "learning_rate": Default(
                rate,
                f"{size}, {workload.labels} labels: small encoders need more with more labels "
                "(measured)",
            ),
            "layerwise_lr_decay": Default(1.0, "a small encoder has to move as a whole"),
            "head_lr_factor": HEAD_LR_FACTOR,
        }
    return {
        "learning_rate": Default(
            rate,
            f"{size}: above a few 1e-5 encoders of this size forget (Devlin et al. 2019, A.3)",
        ),
        "layerwise_lr_decay": Default(
            0.95, "lower layers hold what is general and move less (Sun et al. 2019)"
        ),
        "head_lr_factor": HEAD_LR_FACTOR,
    }


def _length(workload: Workload, schedule: _Schedule) -> dict[str, Default]:
    """How long is trained, and when training stops early."""
    rows, validation = workload.rows, workload.validation_rows
    if schedule.default_epochs in USUAL_EPOCHS:
        reason = f"{workload.rows_of_label:,.0f} rows a label: few are seen more often"
    else:
        reason = f"{rows:,} rows are few: until there are {FLOOR_OF_STEPS} steps"
    if validation >= ROWS_TO_STOP_BY:
        patience = Default(
            max(3, int(schedule.epochs // 2)),
            "epochs without a better score or lower loss: fewer would cut off the slow end, where "
            "much of it is gained",
        )
    else:
        patience = Default(0, f"{validation} validation rows do not tell when to stop")
    return {
        "num_train_epochs": Default(schedule.default_epochs, reason),
        "early_stopping_patience": patience,
        "train_on_all_rows": _on_all_rows(workload),
    }


def _on_all_rows(workload: Workload) -> Default:
    """Whether the rows that were set aside are trained on in the end."""
    if not workload.set_aside:
        return Default(False, "the validation rows have a file of their own")
    rows = workload.validation_rows
    if rows >= GATE_ROWS:
        return Default(False, f"{rows:,} validation rows judge the graph that ships")
    if workload.promises:
        return Default(
            False, f"{rows:,} validation rows prove the precision of the model that ships"
        )
    return Default(True, f"{rows:,} of {workload.rows + rows:,} rows are too many to leave out")


def _batches(
    workload: Workload, schedule: _Schedule, batch: int, *, cuda: bool
) -> dict[str, Default]:
    """The rows of a step, in each process."""
    processes = workload.processes
    unit = "rows" if workload.windows == workload.rows else "windows"
    seen = f"{schedule.seen:,} {unit} in all epochs"
    if batch < batch_size(workload.parameters, schedule.seen, cuda=cuda):
        reason = f"{unit} of up to {workload.longest} tokens: long, so fewer of them"
    elif batch < 32:
        reason = f"{seen}: few, so more steps"
    else:
        reason = f"{seen}: enough for large batches, which are faster"
    share = max(1, batch // processes)
    if processes > 1:
        reason += f"; {share * processes} in all processes together"
    return {
        "per_device_train_batch_size": Default(share, reason),
        "per_device_eval_batch_size": Default(64, "without gradients, in the order of length"),
    }


def _checkpoints(task: Task) -> dict[str, Default]:
    """When the model is evaluated and saved, and which checkpoint is kept."""
    if task == "single_label":
        measure = Default("macro_f1", "every label counts alike")
    else:
        measure = Default("average_precision", "thresholds are chosen after training")
    return {
        "eval_strategy": Default("epoch", "the last epoch is kept, or one that is surely better"),
        "save_strategy": Default("epoch", "the last epoch is kept, or one that is surely better"),
        # With 1 the Trainer deletes the last when training stops early.
        "save_total_limit": Default(2, "the best and the last"),
        "load_best_model_at_end": Default(
            True, "the last epoch's is not, where one is surely better"
        ),
        "metric_for_best_model": measure,
    }


def _surroundings(stated: Mapping[str, Any], *, cuda: bool) -> dict[str, Default]:
    """The keys that depend on the device and on the packages that are installed."""
    if importlib.util.find_spec("tensorboard") is not None:
        report_to = Default("tensorboard", "`tensorboard --logdir` shows it")
    else:
        report_to = Default("none", "tensorboard is not installed")
    if stated.get("fp16"):
        bf16 = Default(False, "fp16 was asked for")
    elif multiplies_bf16(cpu=bool(stated.get("use_cpu"))):
        bf16 = Default(True, "the device multiplies in it")
    else:
        bf16 = Default(False, "the device does not multiply in it")
    return {
        "logging_steps": Default(10, "what the progress bar shows"),
        "report_to": report_to,
        "bf16": bf16,
        "dataloader_num_workers": Default(
            min(2, own_cores()) if cuda else 0,
            "a GPU does not wait for batches" if cuda else "the cores compute",
        ),
        "dataloader_pin_memory": Default(cuda, "for copies to a GPU" if cuda else "no GPU"),
    }


def warnings_about(stated: Mapping[str, Any], parameters: int) -> list[str]:
    """A sentence for each of the recipe's own keys that is known to end badly, or late."""
    sentences = []
    rate = stated.get("learning_rate")
    if rate is not None and rate > DESTRUCTIVE and parameters >= MIDDLING:
        sentences.append(
            f"learning_rate {rate:g} is above {DESTRUCTIVE:g}, where encoders of "
            f"{parameters / 1e6:.0f} M parameters lose what they know (Sun et al. 2019): "
            f"{learning_rate(parameters, 2):g} is the default"
        )
    if stated.get("bf16") and not multiplies_bf16(cpu=bool(stated.get("use_cpu"))):
        sentences.append(
            "bf16 is asked for, and this device has no instructions for it: fp32 is faster here"
        )
    if stated.get("torch_compile") and not _trains_on_gpu(stated):
        sentences.append(
            "torch_compile is asked for on a CPU, where compiling cost the embedded base about 60 "
            "CPU-seconds in its first 20 steps, and made none of them faster"
        )
    return sentences
