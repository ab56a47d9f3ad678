"""Learning rate, batch size and epochs, from the sizes of model and data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.finetuning.pooling import Pooling

# Parameters below which an encoder is a small one, of BERT-base's size, and larger than that.
SMALL = 40_000_000
MIDDLING = 90_000_000
LARGE = 200_000_000
SMALLEST_BATCH = 16
# The least steps of a training with batches larger than that.
FEW_STEPS = 500
# The least steps of a training: with fewer, little is learned from few rows.
FLOOR_OF_STEPS = 100
# Tokens of a row up to which the largest batches are used: the default of max_length.
LONG_ROW = 256
# Rows in all epochs from which a GPU takes batches of 128.
MANY_SEEN = 150_000


def learning_rate(
    parameters: int, labels: int, batch: int = 32, pooling: Pooling = "model"
) -> float:
    """Peak learning rate of AdamW.

    Encoders of BERT-base's size and above forget what they know above a few 1e-5 (Devlin et al.
    2019, appendix A.3: 2e-5 to 5e-5). An encoder of six layers and 23 M parameters needs more, and
    still more with many labels: a head over many labels is learned from few rows of each. Measured
    with all-MiniLM-L6-v2 and the first token's head: two labels do best at 5e-5, 77 at 3e-4, and
    above that all lose. Over the mean of the tokens, which represents a text from the start, 1e-4
    is enough for 77 labels.

    These rates are for batches of up to 32. With larger batches the rate grows as their square root
    (Malladi et al. 2022, arXiv:2205.10287, for AdamW), for small encoders up to the rates above.
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

    Measured with all-MiniLM-L6-v2 and at least FEW_STEPS steps: batches of 64 end where those of 32
    do and are a quarter faster on CPUs; 16 at the same rate end 1.5 points lower (77 labels, 7,200
    rows); with 60,000 rows 128 end there, too. For larger encoders 32 is published most often. A
    GPU, which is idle most of the time in steps so small, takes as many rows as for small encoders.
    A batch of rows longer than LONG_ROW has no more tokens than the largest batch of rows of that
    length: more would need more memory.

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

    Few rows have to be seen more often; with many rows, more passes only overfit. Rows so few that
    ten passes are a few dozen steps are seen until there are FLOOR_OF_STEPS.

    Args:
        steps: of one pass.
    """
    if rows_of_label >= 150:
        return 6 if rows_of_label < 500 else 3
    return max(10, math.ceil(FLOOR_OF_STEPS / steps))


def multiplies_bf16(*, cpu: bool = False) -> bool:
    """Whether the device that trains has instructions for bf16; emulated, bf16 is slower than fp32.

    Args:
        cpu: the CPU trains, whatever other devices there are.
    """
    import torch

    if not cpu and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not cpu and torch.accelerator.is_available():
        return False
    # Newer than `torch.accelerator`.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
