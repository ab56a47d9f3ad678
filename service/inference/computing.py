"""One batch → what each of its entries came to, or why it did not; the model is called here.

And what the parts of several batches come to together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from service.classifier import NotFiniteError
from service.decisions import FloatArray
from service.inference.jobs import Failed
from service.inference.queue import Batch
from service.inference.tokenizing import EncodedText, Window

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What the engine runs: `service.classifier.Classifier`, or a stand-in for a measurement."""

    def logits(self, encodings: Sequence[Window]) -> FloatArray:
        """Shape (windows, labels)."""


class Computing:
    """Computes batches, several threads at once.

    Args:
        model: what runs a batch.
        answers: what is made of a batch's logits, of shape (windows, labels): an item for each
            window.
    """

    def __init__(self, model: Model, answers: Callable[[FloatArray], Sequence[Any]]) -> None:
        self._model = model
        self._answers = answers

    def parts(self, batch: Batch) -> list[Any]:
        """What each entry came to, or `Failed`: whatever it was, nothing is raised."""
        size = len(batch.entries)
        try:
            if batch.stage == "tokenizing":
                return [batch.entries[0].content()]
            logits = self._model.logits([entry.content for entry in batch.entries])
            if logits.ndim != 2 or len(logits) != size:
                raise ValueError(f"logits of shape {logits.shape} for {size} windows")
            finite = np.isfinite(logits)
            if finite.all():
                return list(self._answers(logits))
            fine = [bool(row.all()) for row in finite]
            answers = iter(self._answers(logits[fine]))
        except Exception as raised:  # noqa: BLE001 - whatever it was, the thread goes on
            # No message and no trace: either may hold a part of a text.
            logger.error("%s failed for a batch: %s", batch.stage, type(raised).__name__)
            return [Failed(raised)] * size
        logger.error("the model computed no finite logits for %d windows", fine.count(False))
        failed = Failed(NotFiniteError())
        return [next(answers) if each else failed for each in fine]


def stacked(rows: list[FloatArray]) -> FloatArray:
    """The rows of all windows, of shape (windows, labels); a copy, which no batch shares."""
    return np.array(rows, dtype=np.float32)


def joined(parts: list[list[EncodedText]]) -> list[EncodedText]:
    """The texts of all parts of a request, in order."""
    return list(chain.from_iterable(parts))
