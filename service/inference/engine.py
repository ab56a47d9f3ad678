"""Token-budget micro-batching: windows of many callers → batches for idle threads → answers.

    engine = Engine(classifier, threads=2)
    engine.submit(encoded, on_done=answer)   # `answer(outcome)` is called when it is done

A queue in front of one ONNX Runtime session that several threads share. A thread that is idle takes
a batch at once, so that texts are batched only while all threads are busy and no text waits for
others to come. A batch is bounded by its tokens, padding included, and by the share of them that is
padding. Long texts are tokenized by the same threads (where a GPU computes, by others), out of the
same queue: both stages have one order, one deadline and one admission (`queue`, `admission`).

One long pause in a batch can make the measured time per token so large that every request is
refused, and then no batch would ever measure it again, or only small ones that weigh little. So
what is refused while there is nothing to do is measured all the same: its longest window is a batch
for nobody, at most one a second, and where it takes less time than was thought, that is believed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from service.decisions import FloatArray
from service.inference.admission import (
    ESTIMATE_SHARE,
    FIRST_SECONDS_PER_TOKEN,
    QUEUE_TOKENS,
    Admission,
    ClosedError,
    Load,
    OverloadedError,
    Place,
)
from service.inference.computing import Computing, Model, joined, stacked
from service.inference.jobs import Failed, Job, Outcome, Stage, TokenizingTask
from service.inference.queue import Batch, Queue
from service.inference.threads import Pool, make_pools, start_threads, yield_to_others
from service.inference.tokenizing import EncodedText, Window
from service.inference.totals import EngineState, Totals
from service.inference.workload import Workload

logger = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 128, "cuda": 16_384}
# A part is due after so many times the time that it and those before it take a thread: large, and
# long texts wait for short ones that come later; small, and the queue becomes first in, first out.
PATIENCE = 8.0
# A refusal makes an engine that has nothing to do measure again, after so many seconds.
MEASURE_AFTER = 1.0


class Engine:
    """The queue and its threads; every method may be called from any thread.

    Args:
        model: what runs a batch; called by several threads at once.
        answers: what is made of a batch's logits, of shape (windows, labels), an item for each
            window, and so what a request gets a list of; without it, the logits.
        threads: batches that run side by side.
        tokenizer_threads: threads of their own for tokenizing; with 0, those of the batches do it.
        batch_tokens: tokens of a batch at most, padding included; a longer text is a batch alone.
        queue_tokens: tokens that may wait; one request alone may be larger.
        clock: seconds; it never goes back.
        seconds_per_token: what is believed before a batch was measured.
    """

    def __init__(
        self,
        model: Model,
        *,
        answers: Callable[[FloatArray], Sequence[Any]] | None = None,
        threads: int,
        tokenizer_threads: int = 0,
        batch_tokens: int = BATCH_TOKENS["cpu"],
        queue_tokens: int = QUEUE_TOKENS,
        clock: Callable[[], float] = monotonic,
        seconds_per_token: float = FIRST_SECONDS_PER_TOKEN,
    ) -> None:
        self.threads = threads
        self.batch_tokens = batch_tokens
        self.queue_tokens = queue_tokens
        self.admission = Admission(
            threads=threads,
            tokenizer_threads=tokenizer_threads or threads,
            queue_tokens=queue_tokens,
            clock=clock,
            seconds_per_token=seconds_per_token,
        )
        self._computing = Computing(model, answers or list)
        self._assemble: Callable[[list[Any]], Any] = list if answers else stacked
        self._clock = clock
        self._lock = threading.Lock()
        self._queue = Queue(batch_tokens)
        self._workload = Workload(self._queue, clock, apart=bool(tokenizer_threads))
        self._closing = False
        # When a batch for nobody was last queued.
        self._measured_at = clock()
        self._totals = Totals()
        self._pools = make_pools(self._lock, apart=bool(tokenizer_threads))
        counts: dict[Stage, int] = {"inference": threads, "tokenizing": tokenizer_threads}
        self._threads = start_threads(self._pools, counts, self._serve)

    @property
    def threads_alive(self) -> bool:
        """Whether every thread is there; they end when the engine is closed, and never else."""
        return self._closing or all(thread.is_alive() for thread in self._threads)

    @property
    def running_seconds(self) -> float:
        """How long what is longest under way has taken; 0 where nothing is."""
        with self._lock:
            return self._workload.longest_running

    def state(self) -> EngineState:
        """What an operator may want to know; as dear as the queue is long."""
        with self._lock:
            oldest = self._queue.oldest()
            return EngineState(
                batches=self._totals.batches,
                tokens=self._totals.tokens,
                padded_tokens=self._totals.padded_tokens,
                waiting_windows=self._queue.windows,
                waiting_tokens=self._queue.tokens,
                waiting_seconds=self._queue.task_seconds,
                oldest_seconds=0.0 if oldest is None else self._clock() - oldest,
                running_seconds=self._workload.longest_running,
                failed_jobs=dict(self._totals.failed_jobs),
            )

    def check(self, seconds: float) -> None:
        """Refuse what would be refused however short it is, before it is tokenized.

        Args:
            seconds: from now to the deadline.

        Raises:
            EngineError: as `submit`.
        """
        with self._lock:
            if self._closing:
                raise ClosedError("the engine is shutting down")
            is_full = self._queue.tokens >= self.queue_tokens
            if not is_full and self.admission.is_light(self._workload.ahead(), seconds):
                return
            try:
                self._admit(Load(1), self.admission.token_rate.value, seconds)
            except OverloadedError:
                # With nothing to do it may be tokenized: `submit` measures by it.
                if not self._is_idle():
                    raise

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
            on_done: called once from one of the threads, unless the job was cancelled before.
            promised_tokens: how many tokens they are likely to have, for inference to follow.
            seconds: from now to the deadline.

        Raises:
            EngineError: as `submit`.
        """
        longest = max(task.seconds for task in tasks)
        takes = sum(task.seconds for task in tasks)
        with self._lock:
            own = Load(promised_tokens * ESTIMATE_SHARE, takes)
            try:
                place = self._admit(own, longest, seconds)
            except OverloadedError:
                # With nothing to do it is tokenized: `submit` knows its tokens, and measures.
                if not self._is_idle():
                    raise
                place = Place(0.0, 0.0, self.admission.seconds(own))
            now = self._clock()
            job = Job("tokenizing", len(tasks), joined, on_done, now)
            job.promised_tokens = promised_tokens
            # Others may go before for as long as the work itself justifies, and no longer than the
            # deadline leaves.
            patience = min(PATIENCE, place.patience(longest) / max(takes, 1e-9))
            job.expected = now + max(place.before + takes, patience * takes + longest)
            self._take_on(job, place)
            per_second = 1 / max(self.admission.token_rate.value, 1e-9)
            self._queue.push_tasks(job, tasks, patience, per_second)
            self._pools["tokenizing"].wake(len(tasks))
        return job

    def submit(
        self,
        texts: Sequence[EncodedText],
        on_done: Callable[[Outcome[Any]], object],
        *,
        seconds: float | None = None,
        since: float | None = None,
    ) -> Job[Any]:
        """Queue all windows of a request; the result has an item for each.

        Args:
            texts: at least one.
            on_done: called once from one of the threads, unless the job was cancelled before.
            seconds: from now to the deadline; without one only the queue's size counts.
            since: when the request came to be tokenized, so that it keeps its place in the order.

        Raises:
            OverloadedError: it could not be done in time, or the queue is full.
            ClosedError: the engine is shutting down.
        """
        windows = [window for text in texts for window in text.windows]
        longest = max(windows, key=len)
        tokens = sum(map(len, windows))
        with self._lock:
            rate = self.admission.token_rate.value
            # A window is one thread's work, and the last one may be the longest.
            last = len(longest) * rate
            try:
                place = self._admit(Load(tokens), last, seconds)
            except OverloadedError:
                if self._is_idle():
                    self._measure_again(longest)
                raise
            now = self._clock()
            job = Job("inference", len(windows), self._assemble, on_done, now, since)
            # Seconds per token by which others may go before, as in `tokenize`.
            pace = min(rate * PATIENCE, place.patience(last) / tokens)
            # What is due later by design is not late when it comes later.
            job.expected = now + max(place.before + place.own, pace * tokens + last)
            self._take_on(job, place)
            self._push(job, windows, pace)
        return job

    def run(self, texts: Sequence[EncodedText]) -> Any:
        """Answer a request and wait for it: the result, as `submit` has it.

        Raises:
            EngineError: as `submit`.
            Exception: whatever inference raised.
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
        """Drop what is left of a job; `on_done` is not called any more."""
        with self._lock:
            self._close_job(job)
            self.admission.learn_lateness(job)

    def answered(self, job: Job[Any]) -> None:
        """Say that a job's answer has reached its caller; how late counts for what comes next."""
        # Nearly always it is not late, and there is nothing to learn.
        if self._clock() > job.expected:
            with self._lock:
                self.admission.learn_lateness(job)

    def failed(self, stage: Stage, error: Exception) -> None:
        """Count and log what failed where its caller runs, as what fails in the threads."""
        logger.error("%s failed: %s", stage, type(error).__name__)
        with self._lock:
            self._totals.count_failure(error)

    def close(self, timeout: float | None = None) -> None:
        """Take no more work, finish what is queued, end the threads; give up after `timeout` s."""
        with self._lock:
            self._closing = True
            for pool in self._pools.values():
                pool.work_came.notify_all()
        until = math.inf if timeout is None else monotonic() + timeout
        for thread in self._threads:
            thread.join(None if timeout is None else max(0.0, until - monotonic()))

    # What follows is called with the lock held, except where it says otherwise.

    def _admit(self, own: Load, last: float, seconds: float | None) -> Place:
        if self._closing:
            raise ClosedError("the engine is shutting down")
        waiting, work = self._queue.tokens, self._workload
        try:
            return self.admission.admit(work.ahead(), waiting, own, last, seconds)
        except OverloadedError:
            if seconds is None or not self.admission.may_go_first(seconds):
                raise
            before = work.urgent(self.admission.seconds, self.threads)
            place = self.admission.admit_urgent(before, waiting, own, last, seconds, work.in_turn)
            if place is None:
                raise
            return place

    def _take_on(self, job: Job[Any], place: Place) -> None:
        """Keep what a job was promised, once it is known when it is expected."""
        self.admission.promise(job, place)
        self._workload.add(job)

    def _is_idle(self) -> bool:
        """Whether nothing waits or runs, nor was measured just now."""
        age = self._clock() - self._measured_at
        return self._workload.is_empty and age > MEASURE_AFTER

    def _measure_again(self, window: Window) -> None:
        """Run a window for nobody: does a token take less time by now?"""
        self._measured_at = self._clock()
        job = Job("inference", 1, stacked, lambda _outcome: None, self._measured_at)
        job.is_measurement = True
        self._push(job, [window], 0.0)

    def _push(self, job: Job[Any], windows: Sequence[Window], pace: float) -> None:
        """Queue windows, each due after `pace` seconds per token up to it."""
        self._queue.push_windows(job, windows, pace)
        self._pools["inference"].wake(len(windows))

    def _close_job(self, job: Job[Any]) -> None:
        """Pass over what is left of `job`."""
        if job.is_open:
            job.is_open = False
            self._queue.drop(job)
            self._workload.remove(job)

    def _serve(self, pool: Pool) -> None:
        """What each thread does; without the lock."""
        yield_to_others()
        # A batch is timed from the end of the one before it, where there was work all the time:
        # what passes between two batches is lost to those who wait, too.
        began = self._clock()
        while True:
            with self._lock:
                while not self._queue.has(*pool.stages):
                    if self._closing:
                        return
                    pool.wait()
                    began = self._clock()
                batch = self._take(pool)
            began = self._run(batch, began)

    def _take(self, pool: Pool) -> Batch:
        batch = self._queue.take(pool.idle, *pool.stages)
        now = self._clock()
        for entry in batch.entries:
            entry.job.take(now)
        self._workload.begin(batch, now)
        return batch

    def _run(self, batch: Batch, began: float) -> float:
        """Compute one batch, and return when that was done; without the lock.

        An error is the outcome of those in it, and of nobody else.
        """
        parts = self._computing.parts(batch)
        ended = self._clock()
        over: list[Job[Any]] = []
        with self._lock:
            self._workload.end()
            if batch.stage == "inference":
                self._totals.count(batch)
                self._learn(batch, ended - began, parts)
            for entry, part in zip(batch.entries, parts, strict=True):
                job = entry.job
                if not job.is_open:
                    continue
                if isinstance(part, Failed):
                    job.fail(part.error)
                    self._totals.count_failure(part.error)
                elif not job.put(entry.place, part, ended):
                    continue
                self._close_job(job)
                over.append(job)
        for job in over:
            try:
                job.tell()
            except Exception as raised:  # noqa: BLE001 - a caller's fault must not end the thread
                logger.error("a caller could not be told: %s", type(raised).__name__)
        return ended

    def _learn(self, batch: Batch, took: float, parts: list[Any]) -> None:
        """What a token took in this batch; of one that failed that says nothing."""
        if any(isinstance(part, Failed) for part in parts):
            return
        if any(entry.job.is_measurement for entry in batch.entries):
            self.admission.token_rate.believe_less(took, batch.padded_tokens)
        else:
            self.admission.token_rate.learn(took, batch.padded_tokens)
