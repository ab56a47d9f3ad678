"""The totals of an engine since its start; the engine's lock guards every call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from service.inference.errors import NotFiniteError
from service.inference.queue import Batch

# Why a computation failed: an exception, or logits that are not finite.
FAILURES = ("error", "not_finite")


class EngineState(NamedTuple):
    """Totals since the start, and what waits and runs at the moment.

    `failed_jobs` counts by `FAILURES`; `waiting_seconds` is the tokenizing that waits;
    `oldest_seconds` and `running_seconds` are the ages of the oldest waiting job and of the oldest
    running batch, 0 where there is none.
    """

    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    waiting_windows: int = 0
    waiting_tokens: int = 0
    waiting_seconds: float = 0.0
    oldest_seconds: float = 0.0
    running_seconds: float = 0.0
    failed_jobs: Mapping[str, int] = {}


class Totals:
    """Counts batches of inference, and jobs that failed."""

    def __init__(self) -> None:
        self.batches = 0
        self.tokens = 0
        self.padded_tokens = 0
        self.failed_jobs = Counter(dict.fromkeys(FAILURES, 0))

    def count(self, batch: Batch) -> None:
        """Count a batch that was computed or has failed."""
        self.batches += 1
        self.padded_tokens += batch.padded_tokens
        # The work of a window is its tokens.
        self.tokens += int(sum(entry.work for entry in batch.entries))

    def count_failure(self, error: Exception) -> None:
        """Count a job that has failed."""
        reason = "not_finite" if isinstance(error, NotFiniteError) else "error"
        self.failed_jobs[reason] += 1
