"""Token-budget micro-batching: windows of many callers → batches for idle threads → answers.

    engine = Engine(classifier, Capacity(threads=2))
    engine.submit(encoded, on_done=answer)   # calls `answer(outcome)` when it is done

The engine is a queue in front of one ONNX Runtime session, which several threads share. An idle
thread takes a batch at once: texts are batched only while all threads are busy, and no text waits
for others to arrive. A batch is limited in its tokens, padding included, and in the share of them
that is padding. Long texts are tokenized by the same threads (by other threads where a GPU
computes), from the same queue. Both stages have one order, one deadline and one admission
(`queue`, `admission`, `schedule`).

One long pause in a batch can raise the measured time per token so much that every request is
refused. No batch would then measure it again. Therefore an idle engine that refuses a request
computes its longest window all the same, for nobody, at most once a second. If this takes less time
than expected, the measured time is lowered.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from service.inference.admission import FIRST_SECONDS_PER_TOKEN, Admission
from service.inference.capacity import Capacity
from service.inference.computing import Computing, Model, join, stack
from service.inference.decisions import FloatArray
from service.inference.jobs import Failed, Job, Outcome, Stage, TokenizingTask
from service.inference.queue import Batch
from service.inference.schedule import Schedule
from service.inference.threads import Pool, lower_thread_priority, make_pools, start_threads
from service.inference.tokenizing import EncodedText
from service.inference.totals import EngineState

logger = logging.getLogger(__name__)


class Engine:
    """The schedule and its threads; every method may be called from any thread.

    Args:
        model: runs a batch; several threads call it at once.
        capacity: how much is computed at once, and how much may wait.
        answers: makes an item for each window from a batch's logits, of shape (windows, labels). A
            request's result is the list of its items; without `answers` it is its logits.
        clock: seconds; it never goes back.
        seconds_per_token: the time per token before a batch is measured.
    """

    def __init__(
        self,
        model: Model,
        capacity: Capacity,
        *,
        answers: Callable[[FloatArray], Sequence[Any]] | None = None,
        clock: Callable[[], float] = monotonic,
        seconds_per_token: float = FIRST_SECONDS_PER_TOKEN,
    ) -> None:
        self.capacity = capacity
        self._computing = Computing(model, answers or list)
        self._assemble: Callable[[list[Any]], Any] = list if answers else stack
        self._clock = clock
        self._lock = threading.Lock()
        self._pools = make_pools(self._lock, apart=bool(capacity.tokenizer_threads))
        self._schedule = Schedule(capacity, self._pools, clock, seconds_per_token)
        self._threads = start_threads(
            self._pools,
            {"inference": capacity.threads, "tokenizing": capacity.tokenizer_threads},
            self._serve,
        )

    @property
    def admission(self) -> Admission:
        """What decides whether a request is accepted."""
        return self._schedule.admission

    @property
    def threads_alive(self) -> bool:
        """Whether every thread lives. Threads end only when the engine is closed."""
        return self._schedule.is_closing or all(thread.is_alive() for thread in self._threads)

    @property
    def running_seconds(self) -> float:
        """How many seconds the oldest running batch has taken; 0 where nothing runs."""
        with self._lock:
            return self._schedule.longest_running

    def state(self) -> EngineState:
        """Totals and present state, for metrics; the cost grows with the length of the queue."""
        with self._lock:
            return self._schedule.state()

    def check(self, seconds: float, tokens: float = 1) -> None:
        """Refuse, before it is tokenized, a request that `submit` would refuse.

        Args:
            seconds: from now to the deadline.
            tokens: about as many as it has.

        Raises:
            EngineError: as `submit`.
        """
        with self._lock:
            self._schedule.check(seconds, tokens)

    def tokenize(
        self,
        tasks: Sequence[TokenizingTask],
        on_done: Callable[[Outcome[list[EncodedText]]], object],
        *,
        promised_tokens: int,
        seconds: float | None = None,
    ) -> Job[list[EncodedText]]:
        """Queue the texts of a request that are to be tokenized, part by part.

        Args:
            tasks: at least one.
            on_done: called once from one of the threads, unless the job is canceled before.
            promised_tokens: how many tokens the texts are likely to have, for the inference that
                follows.
            seconds: from now to the deadline.

        Raises:
            EngineError: as `submit`.
        """
        with self._lock:
            place = self._schedule.admit_tasks(tasks, promised_tokens, seconds)
            job = Job("tokenizing", len(tasks), join, on_done, self._clock())
            job.promised_tokens = promised_tokens
            self._schedule.add_tasks(job, tasks, place)
        return job

    def submit(
        self,
        texts: Sequence[EncodedText],
        on_done: Callable[[Outcome[Any]], object],
        *,
        seconds: float | None = None,
        since: float | None = None,
        background: bool = False,
    ) -> Job[Any]:
        """Queue all windows of a request; the result has an item for each.

        Args:
            texts: at least one.
            on_done: called once from one of the threads, unless the job is canceled before.
            seconds: from now to the deadline; without one only the size of the queue counts.
            since: when the request arrived to be tokenized, so that it keeps its place in the
                order.
            background: compute it only while nothing else waits; it delays no other request.

        Raises:
            OverloadedError: it could not be done in time, or the queue is full.
            ClosedError: the engine is shutting down.
        """
        windows = [window for text in texts for window in text.windows]
        longest = max(windows, key=len)
        tokens = sum(map(len, windows))
        with self._lock:
            if background:
                self._schedule.admit_background(tokens, longest, seconds)
            else:
                place = self._schedule.admit_windows(tokens, longest, seconds)
            job = Job("inference", len(windows), self._assemble, on_done, self._clock(), since)
            if background:
                self._schedule.add_background(job, windows)
            else:
                self._schedule.add_windows(job, windows, tokens, longest, place)
        return job

    def run(self, texts: Sequence[EncodedText]) -> Any:
        """Submit a request and wait for its result.

        Raises:
            EngineError: as `submit`.
            Exception: the exception of the computation.
        """
        done = threading.Event()
        outcomes: list[Outcome[Any]] = []

        def keep(outcome: Outcome[Any]) -> None:
            outcomes.append(outcome)
            done.set()

        self.submit(texts, keep)
        done.wait()
        outcome = outcomes[0]
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome.result

    def cancel(self, job: Job[Any]) -> None:
        """Drop what is left of a job; `on_done` is no longer called."""
        with self._lock:
            self._schedule.close_job(job)
            if not job.is_background:
                self.admission.learn_lateness(job)

    def confirm(self, job: Job[Any]) -> None:
        """Record that a job's answer has reached its caller; its lateness affects admission."""
        # Nearly every answer is in time, and then there is nothing to learn. A background job is
        # late because others went first.
        if self._clock() > job.expected and not job.is_background:
            with self._lock:
                self.admission.learn_lateness(job)

    def record_failure(self, stage: Stage, error: Exception) -> None:
        """Count and log a failure outside the engine's threads, like one inside them."""
        logger.error("%s failed: %s", stage, type(error).__name__)
        with self._lock:
            self._schedule.totals.count_failure(error)

    def close(self, timeout: float | None = None) -> None:
        """Take no more work, finish the queue, end the threads; give up after `timeout` seconds."""
        with self._lock:
            self._schedule.is_closing = True
            for pool in self._pools.values():
                pool.work_came.notify_all()
        until = math.inf if timeout is None else monotonic() + timeout
        for thread in self._threads:
            thread.join(None if timeout is None else max(0.0, until - monotonic()))

    def _serve(self, pool: Pool) -> None:
        """Compute batches until the engine is closed; each thread runs this."""
        lower_thread_priority()
        # Under load, a batch is timed from the end of the batch before it: those who wait lose the
        # time between two batches, too.
        began = self._clock()
        while True:
            with self._lock:
                while not self._schedule.has_work(pool):
                    if self._schedule.is_closing:
                        return
                    pool.wait()
                    began = self._clock()
                batch = self._schedule.take(pool)
            began = self._run(batch, began)

    def _run(self, batch: Batch, began: float) -> float:
        """Compute one batch and tell the callers; return when the computation ended."""
        parts = self._computing.parts(batch)
        ended = self._clock()
        with self._lock:
            over = self._schedule.finish(batch, parts, began, ended)
        for job in over:
            try:
                job.tell()
            except Exception as error:  # noqa: BLE001 - a caller's fault must not end the thread
                logger.error("a caller could not be told: %s", type(error).__name__)
        return ended
