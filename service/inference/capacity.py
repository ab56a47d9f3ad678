"""How much an engine computes at once, and how much may wait for it."""

from __future__ import annotations

from dataclasses import dataclass

# Tokens of a batch at most, by device.
BATCH_TOKENS = {"cpu": 128, "cuda": 16_384}
QUEUE_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Capacity:
    """The size of an engine.

    Attributes:
        threads: batches that run at once.
        tokenizer_threads: threads that only tokenize; with 0, the threads of the batches do it.
        batch_tokens: tokens of a batch at most, padding included. A longer window is a batch alone.
        queue_tokens: tokens that may wait. A request may be larger when nothing else waits.
    """

    threads: int
    tokenizer_threads: int = 0
    batch_tokens: int = BATCH_TOKENS["cpu"]
    queue_tokens: int = QUEUE_TOKENS
