"""What an engine has taken on: what waits, what runs, and what will come from tokenizing."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from service.inference.admission import Load
from service.inference.jobs import Job
from service.inference.queue import Batch, Queue


class Workload:
    """What there is to do; the engine's lock guards every call.

    Args:
        queue: what waits.
        clock: seconds; it never goes back.
        apart: whether texts are tokenized by other threads than those of the batches.
    """

    def __init__(self, queue: Queue, clock: Callable[[], float], *, apart: bool) -> None:
        # Tokens that requests being tokenized are likely to bring.
        self.promised_tokens = 0
        # What waits or runs, whether it is urgent or not.
        self.in_turn: set[Job[Any]] = set()
        self._urgent: set[Job[Any]] = set()
        self._queue = queue
        self._clock = clock
        self._apart = apart
        # What each thread computes, and since when; and the work of all of them together.
        self._running: dict[int, tuple[float, Load]] = {}
        self._running_tokens = 0.0
        self._running_tokenizing = 0.0

    def add(self, job: Job[Any]) -> None:
        """A job is taken on."""
        self.promised_tokens += job.promised_tokens
        (self._urgent if job.is_urgent else self.in_turn).add(job)

    def remove(self, job: Job[Any]) -> None:
        """A job is complete, failed or cancelled."""
        self.promised_tokens -= job.promised_tokens
        (self._urgent if job.is_urgent else self.in_turn).discard(job)

    def begin(self, batch: Batch, now: float) -> None:
        """This thread begins to compute a batch."""
        task = batch.entries[0].work if batch.stage == "tokenizing" else 0.0
        self._running[threading.get_ident()] = now, Load(batch.padded_tokens, task)
        self._add_up()

    def end(self) -> None:
        """This thread has computed its batch."""
        del self._running[threading.get_ident()]
        self._add_up()

    def _add_up(self) -> None:
        # Once a batch: every request asks for it.
        self._running_tokens = sum([load.tokens for _, load in self._running.values()])
        self._running_tokenizing = sum([load.tokenizing for _, load in self._running.values()])

    def ahead(self) -> Load:
        """All of it, as what comes now finds it."""
        queue = self._queue
        return Load(
            queue.tokens + self.promised_tokens + self._running_tokens,
            queue.task_seconds + self._running_tokenizing,
        )

    def urgent(self, seconds: Callable[[Load], float], threads: int) -> float:
        """Seconds until urgent work that comes now can begin; as dear as what is urgent is much.

        It needs one thread: that of the batch that ends first, where nothing urgent waits, and else
        no later than all threads are done with all of it (Graham, "Bounds on Multiprocessing Timing
        Anomalies", SIAM J. Appl. Math. 17(2), 1969).

        Args:
            seconds: how long all threads take for a load.
            threads: how many there are.
        """
        now = self._clock()
        left = [
            max(0.0, seconds(load) * threads - (now - began))
            for began, load in self._running.values()
            if load.tokens or not self._apart
        ]
        if not self._urgent:
            return min(left, default=0.0) if len(left) == threads else 0.0
        tokens, tokenizing = 0.0, 0.0
        for job in self._urgent:
            if job.stage == "inference":
                tokens += job.waiting_work
            else:
                tokens += job.promised_tokens
                tokenizing += job.waiting_work
        return sum(left) / threads + seconds(Load(tokens, tokenizing))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._queue.windows or self._queue.tasks or self._running)

    @property
    def longest_running(self) -> float:
        """How many seconds what is longest under way has taken; 0 where nothing is."""
        began = min((since for since, _ in self._running.values()), default=math.inf)
        return max(0.0, self._clock() - began)
