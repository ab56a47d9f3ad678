"""Windows of several texts → batches of similar length → padded arrays for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.inference.tokenizing import Window

# Tokens of a batch at most, padding included. Beyond a few thousand, larger batches only cost
# memory, because attention grows with the square of the length.
MAX_BATCH_TOKENS = 4096

Columns = dict[str, npt.NDArray[np.int64]]


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int, batch_tokens: int = MAX_BATCH_TOKENS
) -> list[list[int]]:
    """Indices grouped by similar length, longest first.

    Each batch has at most `batch_size` items and `batch_tokens` tokens, padding included. An item
    longer than that is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        current = batches[-1] if batches else []
        # The first item of a batch is its longest, so it sets the padded width.
        fits = current and (len(current) + 1) * lengths[current[0]] <= batch_tokens
        if fits and len(current) < batch_size:
            current.append(index)
        else:
            batches.append([index])
    return batches


class Padding:
    """How the model wants the windows of a batch padded.

    Args:
        settings: the padding of a tokenizer, as `tokenizers` describes it.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._multiple: int = settings["pad_to_multiple_of"] or 1
        self._id: int = settings["pad_id"]
        self._type_id: int = settings["pad_type_id"]
        self._on_the_left = settings["direction"] == "left"

    def pad(self, windows: Sequence[Window]) -> Columns:
        """The model's inputs by name, each of shape (windows, tokens of the longest window)."""
        longest = max(len(window) for window in windows)
        width = -(-longest // self._multiple) * self._multiple
        shape = (len(windows), width)
        ids = np.full(shape, self._id, dtype=np.int64)
        type_ids = np.full(shape, self._type_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, window in enumerate(windows):
            size = len(window)
            used = slice(width - size, width) if self._on_the_left else slice(size)
            ids[row, used] = window.ids
            type_ids[row, used] = window.type_ids
            mask[row, used] = 1
        return {"input_ids": ids, "token_type_ids": type_ids, "attention_mask": mask}
