"""What an engine has accepted and in which order it computes it; one lock guards every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.inference.admission import ESTIMATE_SHARE, Admission, Load, Place
from service.inference.capacity import Capacity
from service.inference.computing import stack
from service.inference.errors import ClosedError, OverloadedError
from service.inference.jobs import Failed, Job, TokenizingTask
from service.inference.queue import Batch, Queue
from service.inference.threads import Pool, Pools
from service.inference.tokenizing import Window
from service.inference.totals import EngineState, Totals
from service.inference.workload import Workload

# A part is due after so many times the time that it and the parts before it take one thread. With a
# large value long texts wait for short ones that arrive later; with a small value the queue becomes
# first in, first out.
PATIENCE = 8.0
# An idle engine that refuses a request measures its speed again, at most once in so many seconds.
MEASURE_AFTER = 1.0


class Schedule:
    """Joins queue, workload and admission; the engine's lock guards every call.

    Args:
        capacity: the size of the engine.
        pools: the threads that take batches.
        clock: seconds; it never goes back.
        seconds_per_token: the time per token before a batch is measured.
    """

    def __init__(
        self,
        capacity: Capacity,
        pools: Pools,
        clock: Callable[[], float],
        seconds_per_token: float,
    ) -> None:
        self.admission = Admission(capacity, clock, seconds_per_token)
        self.totals = Totals()
        self.is_closing = False
        self._capacity = capacity
        self._pools = pools
        self._clock = clock
        self._queue = Queue(capacity.batch_tokens)
        apart = bool(capacity.tokenizer_threads)
        self._workload = Workload(self._queue, clock, apart=apart)
        # When a measurement was last queued.
        self._measured_at = clock()

    @property
    def longest_running(self) -> float:
        """How many seconds the oldest running batch has taken; 0 where nothing runs."""
        return self._workload.longest_running

    def state(self) -> EngineState:
        """The totals and the present state; the cost grows with the length of the queue."""
        oldest = self._queue.oldest()
        return EngineState(
            batches=self.totals.batches,
            tokens=self.totals.tokens,
            padded_tokens=self.totals.padded_tokens,
            waiting_windows=self._queue.windows,
            waiting_tokens=self._queue.tokens,
            waiting_seconds=self._queue.task_seconds,
            oldest_seconds=0.0 if oldest is None else self._clock() - oldest,
            running_seconds=self._workload.longest_running,
            failed_jobs=dict(self.totals.failed_jobs),
        )

    def check(self, seconds: float, tokens: float = 1) -> None:
        """Refuse a request of about so many tokens, if it would be refused by `admit_windows`.

        Raises:
            EngineError: as `admit`.
        """
        if self.is_closing:
            raise ClosedError("the engine is shutting down")
        is_full = self._queue.tokens >= self._capacity.queue_tokens
        if not is_full and self.admission.is_light(self._workload.ahead(), seconds):
            return
        try:
            self._admit(Load(tokens), self.admission.token_rate.value, seconds)
        except OverloadedError:
            # An idle engine lets it be tokenized: `admit_windows` then measures its speed again.
            if not self._is_idle():
                raise

    def admit_tasks(
        self, tasks: Sequence[TokenizingTask], promised_tokens: int, seconds: float | None
    ) -> Place:
        """The place of texts that are to be tokenized.

        Raises:
            EngineError: as `admit_windows`.
        """
        takes = sum(task.seconds for task in tasks)
        longest = max(task.seconds for task in tasks)
        own = Load(promised_tokens * ESTIMATE_SHARE, takes)
        try:
            return self._admit(own, longest, seconds)
        except OverloadedError:
            # An idle engine tokenizes it: `admit_windows` then knows its tokens, and measures.
            if not self._is_idle():
                raise
            return Place(0.0, 0.0, self.admission.seconds(own))

    def admit_windows(self, tokens: int, longest: Window, seconds: float | None) -> Place:
        """The place of windows that have so many tokens together.

        Raises:
            OverloadedError: they could not be computed in time, or the queue is full.
            ClosedError: the engine is shutting down.
        """
        try:
            return self._admit(Load(tokens), self._seconds_of(longest), seconds)
        except OverloadedError:
            if self._is_idle():
                self._measure_again(longest)
            raise

    def add_tasks(self, job: Job[Any], tasks: Sequence[TokenizingTask], place: Place) -> None:
        """Queue the texts of an admitted job, part by part."""
        takes = sum(task.seconds for task in tasks)
        longest = max(task.seconds for task in tasks)
        # Others may go first for as long as the work itself justifies, and no longer than the
        # deadline leaves.
        patience = min(PATIENCE, place.patience(longest) / max(takes, 1e-9))
        job.expected = job.submitted + max(place.before + takes, patience * takes + longest)
        self._accept(job, place)
        per_second = 1 / max(self.admission.token_rate.value, 1e-9)
        self._queue.push_tasks(job, tasks, patience, per_second)
        self._pools["tokenizing"].wake(len(tasks))

    def add_windows(
        self, job: Job[Any], windows: Sequence[Window], tokens: int, longest: Window, place: Place
    ) -> None:
        """Queue the windows of an admitted job."""
        # One thread computes a window, and the longest one may come last.
        last = self._seconds_of(longest)
        # Seconds per token by which others may go first, as in `add_tasks`.
        pace = min(self.admission.token_rate.value * PATIENCE, place.patience(last) / tokens)
        # A later answer that this order intends is not late.
        job.expected = job.submitted + max(place.before + place.own, pace * tokens + last)
        self._accept(job, place)
        self._push(job, windows, pace)

    def admit_background(self, tokens: int, longest: Window, seconds: float | None) -> None:
        """Refuse background windows that could not be done behind everything that waits now.

        Raises:
            EngineError: as `admit_windows`.
        """
        if self.is_closing:
            raise ClosedError("the engine is shutting down")
        waiting = self._queue.background_tokens
        ahead = self._workload.ahead()
        ahead = ahead._replace(tokens=ahead.tokens + waiting)
        last = self._seconds_of(longest)
        self.admission.admit(ahead, waiting, Load(tokens), last, seconds)

    def add_background(self, job: Job[Any], windows: Sequence[Window]) -> None:
        """Queue the windows of an admitted background job.

        No promise is recorded, so it restricts no other request: neither the workload nor the
        admission of others knows it before it runs.
        """
        job.is_background = True
        self._queue.push_background(job, windows)
        self._pools["inference"].wake(len(windows))

    def close_job(self, job: Job[Any]) -> None:
        """Drop what is left of a job."""
        if job.is_open:
            job.is_open = False
            self._queue.drop(job)
            if not job.is_background:
                self._workload.remove(job)

    def has_work(self, pool: Pool) -> bool:
        """Whether something waits that threads of this pool compute."""
        return self._queue.has(*pool.stages)

    def take(self, pool: Pool) -> Batch:
        """The next batch for a thread of this pool, which `has_work`."""
        batch = self._queue.take(pool.idle, *pool.stages)
        now = self._clock()
        for entry in batch.entries:
            entry.job.take(now)
        self._workload.begin(batch, now)
        return batch

    def finish(
        self, batch: Batch, parts: Sequence[Any], began: float, ended: float
    ) -> list[Job[Any]]:
        """Keep the parts of a computed batch; return the jobs that this completes or fails.

        A failure belongs to the jobs of this batch, and to no other.
        """
        self._workload.end()
        if batch.stage == "inference":
            self.totals.count(batch)
            # A small batch of background windows takes longer by token than a full one.
            if not batch.entries[0].job.is_background:
                self._learn(batch, ended - began, parts)
        over: list[Job[Any]] = []
        for entry, part in zip(batch.entries, parts, strict=True):
            job = entry.job
            if not job.is_open:
                continue
            if isinstance(part, Failed):
                job.fail(part.error)
                self.totals.count_failure(part.error)
            elif not job.put(entry.place, part, ended):
                continue
            self.close_job(job)
            over.append(job)
        return over

    def _seconds_of(self, window: Window) -> float:
        return len(window) * self.admission.token_rate.value

    def _admit(self, own: Load, last: float, seconds: float | None) -> Place:
        """The place of work in its turn, or else before all that is not urgent."""
        if self.is_closing:
            raise ClosedError("the engine is shutting down")
        admission, work = self.admission, self._workload
        waiting = self._queue.tokens
        try:
            return admission.admit(work.ahead(), waiting, own, last, seconds)
        except OverloadedError:
            if seconds is None or not admission.may_go_first(seconds):
                raise
            before = work.seconds_to_urgent(admission.seconds, self._capacity.threads)
            place = admission.admit_urgent(before, waiting, own, last, seconds, work.in_turn)
            if place is None:
                raise
            return place

    def _accept(self, job: Job[Any], place: Place) -> None:
        self.admission.promise(job, place)
        self._workload.add(job)

    def _push(self, job: Job[Any], windows: Sequence[Window], pace: float) -> None:
        """Queue windows, each due after `pace` seconds per token up to it."""
        self._queue.push_windows(job, windows, pace)
        self._pools["inference"].wake(len(windows))

    def _is_idle(self) -> bool:
        """Whether nothing waits or runs, and nothing was measured just now."""
        age = self._clock() - self._measured_at
        return self._workload.is_empty and age > MEASURE_AFTER

    def _measure_again(self, window: Window) -> None:
        """Compute a window that nobody waits for, to measure the time per token again."""
        self._measured_at = self._clock()
        job = Job("inference", 1, stack, lambda _outcome: None, self._measured_at)
        job.is_measurement = True
        self._push(job, [window], 0.0)

    def _learn(self, batch: Batch, seconds: float, parts: Sequence[Any]) -> None:
        """Measure the time per token of a batch, unless it failed."""
        if any(isinstance(part, Failed) for part in parts):
            return
        if any(entry.job.is_measurement for entry in batch.entries):
            self.admission.token_rate.lower(seconds, batch.padded_tokens)
        else:
            self.admission.token_rate.learn(seconds, batch.padded_tokens)
