"""The work that an engine has accepted: what waits, what runs, and what tokenizing will bring."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from service.inference.admission import Load
from service.inference.jobs import Job
from service.inference.queue import Batch, Queue


class Workload:
    """Adds up the work; the engine's lock guards every call.

    Args:
        queue: what waits.
        clock: seconds; it never goes back.
        apart: whether other threads than those of the batches tokenize.
    """

    def __init__(self, queue: Queue, clock: Callable[[], float], *, apart: bool) -> None:
        # Tokens that the requests at the tokenizing stage are likely to bring.
        self.promised_tokens = 0
        # The jobs that wait or run: those that go in turn, and the urgent ones.
        self.in_turn: set[Job[Any]] = set()
        self._urgent: set[Job[Any]] = set()
        self._queue = queue
        self._clock = clock
        self._apart = apart
        # By thread: when its batch began, and the batch's work. Then the sums over all threads.
        self._running: dict[int, tuple[float, Load]] = {}
        self._running_tokens = 0.0
        self._running_tokenizing = 0.0

    def add(self, job: Job[Any]) -> None:
        """Add an accepted job."""
        self.promised_tokens += job.promised_tokens
        (self._urgent if job.is_urgent else self.in_turn).add(job)

    def remove(self, job: Job[Any]) -> None:
        """Remove a job that is completed, failed or canceled."""
        self.promised_tokens -= job.promised_tokens
        (self._urgent if job.is_urgent else self.in_turn).discard(job)

    def begin(self, batch: Batch, now: float) -> None:
        """Record that this thread begins to compute a batch."""
        task = batch.entries[0].work if batch.stage == "tokenizing" else 0.0
        self._running[threading.get_ident()] = now, Load(batch.padded_tokens, task)
        self._add_up()

    def end(self) -> None:
        """Record that this thread has computed its batch."""
        del self._running[threading.get_ident()]
        self._add_up()

    def _add_up(self) -> None:
        # Once for each batch, because every request needs the sums.
        self._running_tokens = sum([load.tokens for _, load in self._running.values()])
        self._running_tokenizing = sum([load.tokenizing for _, load in self._running.values()])

    def ahead(self) -> Load:
        """All the work before a request that arrives now."""
        queue = self._queue
        return Load(
            queue.tokens + self.promised_tokens + self._running_tokens,
            queue.task_seconds + self._running_tokenizing,
        )

    def seconds_to_urgent(self, seconds: Callable[[Load], float], threads: int) -> float:
        """Seconds until an urgent request that arrives now can begin.

        Where no other urgent job waits, the request needs one thread: the one whose batch ends
        first. Otherwise it begins no later than all threads are done with all urgent work (Graham,
        "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17(2), 1969).

        The cost grows with the number of urgent jobs.

        Args:
            seconds: how long a load takes all threads.
            threads: their number.
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
        """How many seconds the oldest running batch has taken; 0 where nothing runs."""
        began = min((since for since, _ in self._running.values()), default=math.inf)
        return max(0.0, self._clock() - began)
