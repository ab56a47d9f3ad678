"""Careful hyperparameters, computed from model size, rows and labels, each with its reason.

Every value is a default: a key of the recipe or the command line wins.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from service.model_package import Task
from training.threads import own_cores

if TYPE_CHECKING:
    from training.data.encoding import RowSizes
    from training.heads import Pooling

# Parameters below which an encoder is a small one, of BERT-base's size, and larger than that.
SMALL = 40_000_000
MIDDLING = 90_000_000
LARGE = 200_000_000
SMALLEST_BATCH = 16
# Steps that a training has at least where batches are larger than that.
FEW_STEPS = 500
# Steps that a training has at least: from fewer, what few rows have to say is not learned.
FLOOR_OF_STEPS = 100
# Fewer validation rows do not tell when training has to stop.
ROWS_TO_STOP_BY = 200
# Validation rows that the gates need, and that calibration does (`training.gates`,
# `training.calibrate`), with some more for what rounding by label and equal texts take.
GATE_ROWS = 160
CALIBRATED_ROWS = 60
# The largest share of the rows that is not trained on for that.
LARGEST_SHARE = 0.2
# Tokens of a row up to which the largest batches are taken: as many as texts are read by default.
LONG_ROW = 256
# Rows in all epochs from which a GPU takes 128.
MANY_SEEN = 150_000
# Sun et al. 2019 (arXiv:1905.05583, Catastrophic Forgetting): with 4e-4 BERT-base does not converge
# any more, and 2e-5 is what keeps it from forgetting.
DESTRUCTIVE = 1e-4


class Default(NamedTuple):
    """A value and, in half a sentence, why it is this one."""

    value: Any
    reason: str


def learning_rate(
    parameters: int, labels: int, batch: int = 32, pooling: Pooling = "model"
) -> float:
    """Peak learning rate of AdamW.

    Encoders of BERT-base's size and above forget what they know above a few 1e-5 (Devlin et al.
    2019, appendix A.3: 2e-5 to 5e-5). A six-layer, 23 M parameter one needs more, and the more
    labels the more: a head over many labels is learned from few rows of each. Measured with
    all-MiniLM-L6-v2 and the first token's head: two labels do best at 5e-5, 77 at 3e-4, and above
    that all lose. Over the mean of the tokens, which says what a text is about from the start,
    1e-4 is enough for 77.

    These are for batches of up to 32; with larger ones it grows as their square root (Malladi et
    al. 2022, arXiv:2205.10287, for AdamW), for small encoders no further than said.
    """
    larger = math.sqrt(max(1.0, batch / 32))
    if parameters < SMALL:
        most = 1e-4 if pooling == "mean" else 3e-4
        return min(most, 5e-5 * math.sqrt(labels / 2) * larger)
    if parameters < MIDDLING:
        return 5e-5 * larger
    if parameters < LARGE:
        return 2e-5 * larger
    return 1e-5 * larger


def batch_size(parameters: int, seen: int, *, cuda: bool, longest: int = LONG_ROW) -> int:
    """Rows of a step, in all processes together: as many as leave FEW_STEPS, from 16 on.

    Measured with all-MiniLM-L6-v2 where there are so many steps: 64 end where 32 do and are a
    quarter faster on CPUs, 16 at the same rate 1.5 points lower (77 labels, 7,200 rows); of 60,000
    rows 128 end there, too. Of larger encoders 32 is what was published most; a GPU, which is idle
    most of the time in steps so small, takes as many as of small ones. A batch of rows longer than
    LONG_ROW has no more tokens than the largest one of such rows: more would need more memory.

    Args:
        seen: training rows, or windows of them, in all epochs. Accumulated gradients are not
            counted: whoever asks for them wants larger batches.
        longest: tokens of the longest row.
    """
    largest = 64 if cuda or parameters < SMALL else 32
    batch = SMALLEST_BATCH
    while batch < largest and seen >= 2 * batch * FEW_STEPS:
        batch *= 2
    if cuda and seen >= MANY_SEEN:
        batch = largest = 128
    while batch > SMALLEST_BATCH and batch * longest > largest * LONG_ROW:
        batch //= 2
    return batch


def epochs(rows_of_label: float, steps: float = math.inf) -> int:
    """Passes over the training rows, by how many rows a label has on average.

    What is learned from few rows has to be seen more often; from many, more passes only overfit.
    So few that ten passes are a few dozen steps are seen until there are FLOOR_OF_STEPS.

    Args:
        steps: of one pass.
    """
    if rows_of_label >= 150:
        return 6 if rows_of_label < 500 else 3
    return max(10, math.ceil(FLOOR_OF_STEPS / steps))


def validation_share(rows: int) -> Default:
    """The share of the training rows that is set aside where no validation rows are given.

    A tenth; more where that makes the gates, or else calibration, possible, up to LARGEST_SHARE.
    With fewer rows each is worth more in the training than beside it.
    """
    for wanted, purpose in ((GATE_ROWS, "judge int8 by"), (CALIBRATED_ROWS, "calibrate by")):
        share = math.ceil(1000 * wanted / rows) / 1000
        if share <= LARGEST_SHARE:
            return Default(max(0.1, share), f"of {rows:,} rows at least {wanted}, to {purpose}")
    return Default(0.1, f"{rows:,} rows are few: each is worth more in the training")


def multiplies_bf16(*, cpu: bool = False) -> bool:
    """Whether the device that trains has instructions for bf16; emulated, it is slower than fp32.

    Args:
        cpu: the CPU trains, whatever else there is.
    """
    import torch

    if not cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not cpu and torch.accelerator.is_available():
        return False
    # Newer than `torch.accelerator`.
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _trains_on_gpu(given: Mapping[str, Any]) -> bool:
    import torch

    return torch.cuda.is_available() and not given.get("use_cpu")


def careful_defaults(
    parameters: int,
    rows: int,
    labels: int,
    given: Mapping[str, Any],
    task: Task = "single_label",
    *,
    assigned: int | None = None,
    validation: int = ROWS_TO_STOP_BY,
    processes: int = 1,
    pooling: Pooling = "model",
    sizes: RowSizes | None = None,
) -> dict[str, Default]:
    """Keys for a model of `parameters`, on `rows` with `labels` labels.

    Args:
        given: the recipe's own keys, which some defaults have to suit.
        assigned: labels of all rows together, which may have several or none; `rows` if not given.
        validation: rows that checkpoints are judged by.
        processes: that train together; each takes its share of a batch.
        sizes: of the rows; one window a row, not long, if not given.
    """
    cuda = _trains_on_gpu(given)
    bf16 = multiplies_bf16(cpu=bool(given.get("use_cpu")))
    of_label = (rows if assigned is None else assigned) / labels
    tracked = importlib.util.find_spec("tensorboard") is not None
    smallest = int(given.get("per_device_train_batch_size") or SMALLEST_BATCH)
    # Steps are of windows; what one of them says is worth so many texts.
    windows, longest = (rows, LONG_ROW) if sizes is None else (sizes.windows, sizes.longest)
    passes = epochs(of_label, math.ceil(windows / smallest))
    in_all = float(given.get("num_train_epochs") or passes)
    seen = round(windows * in_all)
    batch = batch_size(parameters, seen, cuda=cuda, longest=longest)
    shortened = batch < batch_size(parameters, seen, cuda=cuda)
    # The rate suits the batch in force, which may be the recipe's.
    together = processes * int(given.get("gradient_accumulation_steps") or 1)
    in_force = int(given.get("per_device_train_batch_size") or batch / processes) * together
    texts_in_force = round(in_force * rows / windows)
    unit = "rows" if windows == rows else "windows"
    share = max(1, batch // processes)
    shared = f"; {share * processes} in all processes together" if processes > 1 else ""
    stops = validation >= ROWS_TO_STOP_BY
    size = f"{parameters / 1e6:.3g} M parameters"
    return {
        "learning_rate": Default(
            learning_rate(parameters, labels, texts_in_force, pooling),
            f"{size}, {labels} labels: small encoders need more with more labels (measured)"
            if parameters < SMALL
            else f"{size}: above a few 1e-5 encoders of this size forget (Devlin et al. 2019, A.3)",
        ),
        "layerwise_lr_decay": Default(
            1.0 if parameters < SMALL else 0.95,
            "a small encoder has to move as a whole"
            if parameters < SMALL
            else "lower layers hold what is general and move less (Sun et al. 2019)",
        ),
        "head_lr_factor": Default(
            1.0, "one rate for all: the head has learned before the encoder moves, or with it"
        ),
        "num_train_epochs": Default(
            passes,
            f"{of_label:,.0f} rows a label: few are seen more often"
            if passes in (3, 6, 10)
            else f"{rows:,} rows are few: until there are {FLOOR_OF_STEPS} steps",
        ),
        "early_stopping_patience": Default(
            max(3, int(in_all // 2)) if stops else 0,
            "epochs without a better score or lower loss: fewer would cut off the slow end, where "
            "much of it is gained"
            if stops
            else f"{validation} validation rows do not tell when to stop",
        ),
        "per_device_train_batch_size": Default(
            share,
            (
                f"{unit} of up to {longest} tokens: long, so fewer of them"
                if shortened
                else f"{seen:,} {unit} in all epochs: few, so more steps"
                if batch < 32
                else f"{seen:,} {unit} in all epochs: enough for large batches, which are faster"
            )
            + shared,
        ),
        "per_device_eval_batch_size": Default(64, "without gradients, in the order of length"),
        "lr_scheduler_type": Default("linear", "to 0, as BERT was fine-tuned (Devlin et al. 2019)"),
        "warmup_ratio": Default(0.1, "the new head's first gradients are noise; as BERT's"),
        "weight_decay": Default(0.01, "as BERT's; not of biases and norms"),
        "max_grad_norm": Default(1.0, "as BERT's: one odd batch does not undo others"),
        "label_smoothing_factor": Default(0.0, "probabilities are calibrated after training"),
        "group_by_length": Default(True, "batches of like length need little padding"),
        "eval_strategy": Default("epoch", "the last epoch is kept, or one that is surely better"),
        "save_strategy": Default("epoch", "the last epoch is kept, or one that is surely better"),
        # With 1 the Trainer deletes the last when training stops early.
        "save_total_limit": Default(2, "the best and the last"),
        "load_best_model_at_end": Default(
            True, "the last epoch's is not, where one is surely better"
        ),
        "metric_for_best_model": Default(
            *(
                ("macro_f1", "every label counts alike")
                if task == "single_label"
                else ("average_precision", "thresholds are chosen after training")
            )
        ),
        "logging_steps": Default(10, "what the progress bar shows"),
        "report_to": Default(
            "tensorboard" if tracked else "none",
            "`tensorboard --logdir` shows it" if tracked else "tensorboard is not installed",
        ),
        "bf16": Default(
            bf16 and not given.get("fp16"),
            "fp16 was asked for"
            if given.get("fp16")
            else "the device multiplies in it"
            if bf16
            else "the device does not multiply in it",
        ),
        "dataloader_num_workers": Default(
            min(2, own_cores()) if cuda else 0,
            "a GPU does not wait for batches" if cuda else "the cores compute",
        ),
        "dataloader_pin_memory": Default(cuda, "for copies to a GPU" if cuda else "no GPU"),
    }


def warnings_about(given: Mapping[str, Any], parameters: int) -> list[str]:
    """What of the recipe's own keys is known to end badly, or late, a sentence each."""
    found = []
    rate = given.get("learning_rate")
    if rate is not None and rate > DESTRUCTIVE and parameters >= MIDDLING:
        found.append(
            f"learning_rate {rate:g} is above {DESTRUCTIVE:g}, where encoders of "
            f"{parameters / 1e6:.0f} M parameters lose what they know (Sun et al. 2019): "
            f"{learning_rate(parameters, 2):g} is the default"
        )
    if given.get("bf16") and not multiplies_bf16(cpu=bool(given.get("use_cpu"))):
        found.append(
            "bf16 is asked for, and this device has no instructions for it: fp32 is faster here"
        )
    if given.get("torch_compile") and not _trains_on_gpu(given):
        found.append(
            "torch_compile is asked for on a CPU, where compiling cost the embedded base about 60 "
            "CPU-seconds in its first 20 steps, and made none of them faster"
        )
    return found
