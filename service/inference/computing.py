"""Compute one batch: the model is called here, and every failure becomes a value."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from service.inference.decisions import FloatArray
from service.inference.errors import NotFiniteError
from service.inference.jobs import Failed
from service.inference.queue import Batch
from service.inference.tokenizing import EncodedText, Window

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What the engine runs: a `Classifier`, or a stand-in in a benchmark."""

    def logits(self, windows: Sequence[Window], /) -> FloatArray:
        """Shape (windows, labels)."""


class Computing:
    """Computes batches; several threads use it at once.

    Args:
        model: runs a batch.
        answers: makes an item for each window from a batch's logits, of shape (windows, labels).
    """

    def __init__(self, model: Model, answers: Callable[[FloatArray], Sequence[Any]]) -> None:
        self._model = model
        self._answers = answers

    def parts(self, batch: Batch) -> list[Any]:
        """The result of each entry, or `Failed`; no exception is raised."""
        try:
            if batch.stage == "tokenizing":
                return [batch.entries[0].content()]
            return self._answered(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, the thread goes on
            # Neither message nor trace: both may hold a part of a text.
            logger.error("%s failed for a batch: %s", batch.stage, type(error).__name__)
            return [Failed(error)] * len(batch.entries)

    def _answered(self, batch: Batch) -> list[Any]:
        """The answer to each window of a batch; `Failed` where its logits are not finite."""
        logits = self._model.logits([entry.content for entry in batch.entries])
        if logits.ndim != 2 or len(logits) != len(batch.entries):
            raise ValueError(f"logits of shape {logits.shape} for {len(batch.entries)} windows")
        finite = np.isfinite(logits)
        if finite.all():
            return list(self._answers(logits))
        is_finite = [bool(row.all()) for row in finite]
        answers = iter(self._answers(logits[is_finite]))
        logger.error("the model's logits are not finite for %d windows", is_finite.count(False))
        failed = Failed(NotFiniteError())
        return [next(answers) if each else failed for each in is_finite]


def stack(rows: list[FloatArray]) -> FloatArray:
    """The rows of all windows, of shape (windows, labels); a copy that shares no batch's memory."""
    return np.array(rows, dtype=np.float32)


def join(parts: list[list[EncodedText]]) -> list[EncodedText]:
    """The texts of all parts of a request, in order."""
    return list(chain.from_iterable(parts))
