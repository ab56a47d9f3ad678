"""Token-budget micro-batching: windows of many callers → batches for idle threads → answers.

    engine = Engine(classifier, threads=2)
    job = engine.submit(encoded, on_done=answer)   # `answer(job)` is called when it is done

A queue in front of one ONNX Runtime session that several threads share. A thread that is idle
takes a batch at once, so that texts are batched only while all threads are busy and no text waits
for others to come. A batch is bounded by its tokens, padding included, and by the share of them
that is padding.

**Whose turn it is.** Every window is due at its arrival plus a time that grows with the tokens of
the request up to it, and the window that is due first goes first, together with others of like
length. A short text thus overtakes a long one that came before it, and the windows of one large
request take turns with everybody else's. A window can be overtaken only by what arrives within that
time after it, so nothing starves. It is deadline-driven scheduling (Liu and Layland, "Scheduling
Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 20(1), 1973, section 7): the
deadline is what the work itself would justify, or the request's own where that is tighter. Where
long texts are late, that alone would put all of them before a short one; so after a batch of a long
text the short ones have a turn of as many tokens, and wait for one such batch, not for many.

**What is refused.** The time that a token takes is measured all the time. A request is refused at
once when the work before it and its own would take it past its deadline, or when the queue holds
as many tokens as it may. One long pause in a batch can make that time so large that every request
is refused, and then no batch would ever measure it again, or only small ones that weigh little. So
what is refused while there is nothing to do is measured all the same: its longest window is a batch
for nobody, at most one a second, and where it takes less time than was thought, that is believed.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal, NamedTuple, Protocol

import numpy as np

from service.classifier import EncodedText, Window
from service.decisions import FloatArray

logger = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 128, "cuda": 16_384}
QUEUE_TOKENS = 65_536
# Of a batch's tokens, at most this share is padding.
MAX_PADDING = 0.1
# A text is due after so many times the time that its tokens take a thread: large, and long texts
# wait for short ones that come later; small, and the queue becomes first in, first out.
PATIENCE = 8.0
# Refuse what would be ready only after this share of the time it has, less what answers were late
# by recently: the measured time per token is a mean, and batches are not taken strictly in turn.
USABLE_TIME = 0.75
# In so many seconds, half of a lateness is forgotten.
LATENESS_HALF_LIFE = 5.0
# How fast the measured time per token follows a change: the weight of 1,000 new tokens.
FOLLOWING = 0.1
# By so much less than others of the process an inference thread weighs where cores are short: at 5
# a third.
NICER = 5
MOST_NICENESS = 19
# A refusal makes an engine that has nothing to do measure again, after so many seconds.
MEASURE_AFTER = 1.0
# Before anything was measured: seconds per token of a small encoder on one core.
FIRST_SECONDS_PER_TOKEN = 2e-4


Reason = Literal["queue_full", "deadline", "too_long"]


class EngineError(Exception):
    """A request that the engine does not take.

    EngineError
    ├── OverloadedError      the queue is full, or the deadline could not be met
    └── ClosedError          the engine is shutting down
    """


class OverloadedError(EngineError):
    """Come again after `retry_after` seconds.

    `reason`: `queue_full`, `deadline` (it could not be met), or `too_long`: not even alone.
    """

    def __init__(self, retry_after: float, reason: Reason) -> None:
        super().__init__(f"refused: {reason}")
        self.retry_after = retry_after
        self.reason: Reason = reason


class ClosedError(EngineError):
    """The engine takes no more work."""


class Model(Protocol):
    """What the engine runs: `service.classifier.Classifier`, or a stand-in for a measurement."""

    def logits(self, encodings: Sequence[Window]) -> FloatArray:
        """Shape (windows, labels)."""


class Job:
    """One request in the engine: `logits` of shape (windows, labels) once it is done.

    `error` is the exception instead, where inference failed. `queued` and `inference` are seconds:
    waiting for the first batch, and from there to the end of the last one.
    """

    __slots__ = (
        "_closed",
        "_expected",
        "_first_taken",
        "_for_nobody",
        "_on_done",
        "_submitted",
        "_unfinished",
        "_waiting_tokens",
        "_waiting_windows",
        "error",
        "inference",
        "logits",
        "queued",
    )

    def __init__(self, windows: int, tokens: int, on_done: Callable[[Job], object]) -> None:
        self.logits: FloatArray | None = None
        self.error: Exception | None = None
        self.queued = 0.0
        self.inference = 0.0
        self._on_done = on_done
        self._submitted = monotonic()
        self._expected = 0.0
        self._first_taken = 0.0
        self._unfinished = windows
        self._waiting_windows = windows
        self._waiting_tokens = tokens
        self._for_nobody = False
        # Answered, failed or cancelled: what is left of it in the queue is passed over.
        self._closed = False


class EngineState(NamedTuple):
    """Totals since the start, and what is there now; seconds are ages, 0 where there is none."""

    batches: int
    tokens: int
    padded_tokens: int
    waiting_windows: int
    waiting_tokens: int
    oldest_seconds: float
    running_seconds: float


# When it is due, its number (which makes tuples compare before jobs do), the job, its place in the
# job, its token ids.
_Entry = tuple[float, int, Job, int, Window]


def yield_to_others() -> None:
    """Let this thread wait for others where cores are short; for threads that compute.

    In an overload every refusal is the event loop's work. With as many busy inference threads as
    cores it gets its turns late, and then everything is late: refusals, and answers that are ready.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may forbid what needs no privilege.
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(MOST_NICENESS, niceness + NICER))


class Engine:
    """The queue and its threads; every method may be called from any thread.

    Args:
        model: what runs a batch; called by several threads at once.
        threads: batches that run side by side.
        batch_tokens: tokens of a batch at most, padding included; a longer text is a batch alone.
        queue_tokens: tokens that may wait; one request alone may be larger.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int,
        batch_tokens: int = BATCH_TOKENS["cpu"],
        queue_tokens: int = QUEUE_TOKENS,
    ) -> None:
        self.threads = threads
        self.batch_tokens = batch_tokens
        self.queue_tokens = queue_tokens
        self._model = model
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)
        # Entries by length, each list a heap: the first one is due first.
        self._waiting: dict[int, list[_Entry]] = {}
        self._waiting_windows = 0
        self._waiting_tokens = 0
        self._running_tokens = 0
        # Tokens that short texts may take before the next long one.
        self._short_turn = 0
        self._idle = 0
        self._number = 0
        self._closing = False
        self._seconds_per_token = FIRST_SECONDS_PER_TOKEN
        self._seen_tokens = 0
        self._lateness = 0.0
        self._lateness_at = monotonic()
        # When a batch for nobody was last queued.
        self._measured_at = monotonic()
        # When each batch that runs began, by its thread.
        self._running_since: dict[int, float] = {}
        # Totals since the start, for measurements.
        self.batches = 0
        self.tokens = 0
        self.padded_tokens = 0
        self._workers = [
            threading.Thread(target=self._serve, name=f"inference-{index}", daemon=True)
            for index in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def delay(self) -> float:
        """Seconds after which new work would be started, by what is waiting and running."""
        with self._lock:
            return self._seconds(self._waiting_tokens + self._running_tokens)

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._waiting_tokens

    @property
    def whole(self) -> bool:
        """Whether every thread is there; they end when the engine is closed, and never else."""
        return self._closing or all(worker.is_alive() for worker in self._workers)

    @property
    def running_seconds(self) -> float:
        """How long the batch that is longest under way has taken; 0 where none is."""
        with self._lock:
            return self._longest_running()

    def state(self) -> EngineState:
        """What an operator may want to know; as dear as the queue is long."""
        with self._lock:
            # A list is in the order in which its entries are due, not in that of their coming.
            came = (
                entry[2]._submitted
                for entries in self._waiting.values()
                for entry in entries
                if not entry[2]._closed
            )
            oldest = min(came, default=math.inf)
            return EngineState(
                self.batches,
                self.tokens,
                self.padded_tokens,
                self._waiting_windows,
                self._waiting_tokens,
                max(0.0, monotonic() - oldest),
                self._longest_running(),
            )

    def submit(
        self,
        texts: Sequence[EncodedText],
        on_done: Callable[[Job], object],
        *,
        seconds: float | None = None,
    ) -> Job:
        """Queue all windows of a request.

        Args:
            texts: at least one.
            on_done: called once from one of the threads, unless the job was cancelled before.
            seconds: from now to the deadline; without one only the queue's size counts.

        Raises:
            OverloadedError: it could not be done in time, or the queue is full.
            ClosedError: the engine is shutting down.
        """
        windows = [window for text in texts for window in text.windows]
        longest = max(windows, key=len)
        tokens = sum(len(window) for window in windows)
        with self._lock:
            ahead = self._waiting_tokens + self._running_tokens
            try:
                spare, own, last = self._admit(tokens, len(longest), seconds)
            except OverloadedError:
                if self._is_idle():
                    self._measure_again(longest)
                raise
            job = Job(len(windows), tokens, on_done)
            # Seconds per token by which others may go before: as long as the work itself justifies,
            # and no longer than the deadline leaves.
            pace = min(self._seconds_per_token * PATIENCE, max(0.0, spare - last) / tokens)
            self._push(job, windows, pace)
            # What is due later by design is not late when it comes later.
            job._expected = job._submitted + max(self._seconds(ahead) + own, pace * tokens + last)
        return job

    def check(self, seconds: float) -> None:
        """Refuse what would be refused however short it is, before it is tokenized.

        Args:
            seconds: from now to the deadline.

        Raises:
            EngineError: as `submit`.
        """
        with self._lock:
            try:
                self._admit(1, 1, seconds)
            except OverloadedError:
                # With nothing to do it may be tokenized: `submit` measures by it.
                if not self._is_idle():
                    raise

    def _admit(
        self, tokens: int, longest: int, seconds: float | None
    ) -> tuple[float, float, float]:
        """With the lock held: seconds to spare before own work, of own work, of its last window.

        Raises:
            EngineError: as `submit`.
        """
        if self._closing:
            raise ClosedError("the engine is shutting down")
        ahead = self._seconds(self._waiting_tokens + self._running_tokens)
        usable = math.inf if seconds is None else seconds * USABLE_TIME
        spare = usable - self._margin(usable) - ahead
        # A window is one thread's work, and the last one may be the longest.
        last = longest * self._seconds_per_token
        own = max(self._seconds(tokens), last)
        late = own > spare
        full = self._waiting_tokens + tokens > self.queue_tokens
        if late or (full and self._waiting_tokens):
            too_long = late and own > usable
            raise OverloadedError(
                ahead, "too_long" if too_long else "deadline" if late else "queue_full"
            )
        return spare, own, last

    def _is_idle(self) -> bool:
        """Whether nothing waits or runs, nor was measured just now; with the lock held."""
        has_work = self._waiting_windows or self._running_since
        return not has_work and monotonic() - self._measured_at > MEASURE_AFTER

    def _measure_again(self, window: Window) -> None:
        """Run a window for nobody: does a token take less time by now? With the lock held."""
        self._measured_at = monotonic()
        job = Job(1, len(window), lambda _job: None)
        job._for_nobody = True
        self._push(job, [window], 0.0)

    def _push(self, job: Job, windows: Sequence[Window], pace: float) -> None:
        """Queue a job's windows, each due after `pace` seconds per token; with the lock held."""
        read = 0
        for place, window in enumerate(windows):
            length = len(window)
            read += length
            self._number += 1
            entry = (job._submitted + pace * read, self._number, job, place, window)
            heapq.heappush(self._waiting.setdefault(length, []), entry)
        self._waiting_windows += len(windows)
        self._waiting_tokens += read
        if self._idle:
            self._work_came.notify(min(self._idle, len(windows)))

    def run(self, texts: Sequence[EncodedText]) -> FloatArray:
        """Answer a request and wait for it: logits of shape (windows, labels).

        Raises:
            EngineError: as `submit`.
            Exception: whatever inference raised.
        """
        done = threading.Event()
        job = self.submit(texts, lambda _job: done.set())
        done.wait()
        if job.logits is None:
            raise job.error or RuntimeError("no logits and no error")
        return job.logits

    def cancel(self, job: Job) -> None:
        """Drop what is left of a job; `on_done` is not called any more."""
        with self._lock:
            self._close_job(job)
            self._learn_lateness(job)

    def answered(self, job: Job) -> None:
        """Say that a job's answer has reached its caller; how late counts for what comes next."""
        with self._lock:
            self._learn_lateness(job)

    def close(self, timeout: float | None = None) -> None:
        """Take no more work, finish what is queued, end the threads; give up after `timeout` s."""
        with self._lock:
            self._closing = True
            self._work_came.notify_all()
        until = math.inf if timeout is None else monotonic() + timeout
        for worker in self._workers:
            worker.join(None if timeout is None else max(0.0, until - monotonic()))

    def _longest_running(self) -> float:
        """With the lock held."""
        began = min(self._running_since.values(), default=math.inf)
        return max(0.0, monotonic() - began)

    def _seconds(self, tokens: int) -> float:
        return tokens * self._seconds_per_token / self.threads

    def _margin(self, usable: float) -> float:
        """Seconds to allow for lateness; never more than half, or one stall would refuse it all."""
        age = monotonic() - self._lateness_at
        return min(self._lateness * math.exp2(-age / LATENESS_HALF_LIFE), usable / 2)

    def _learn_lateness(self, job: Job) -> None:
        """Keep the largest lateness of recent answers; with the lock held."""
        now = monotonic()
        lateness = now - job._expected
        age = now - self._lateness_at
        if lateness > self._lateness * math.exp2(-age / LATENESS_HALF_LIFE):
            self._lateness, self._lateness_at = lateness, now

    def _close_job(self, job: Job) -> bool:
        """Pass over what is left of `job`; whether it was open. With the lock held."""
        if job._closed:
            return False
        job._closed = True
        self._waiting_windows -= job._waiting_windows
        self._waiting_tokens -= job._waiting_tokens
        return True

    def _serve(self) -> None:
        """What each thread does."""
        yield_to_others()
        # A batch is timed from the end of the one before it, where there was work all the time:
        # what passes between two batches is lost to those who wait, too.
        began = monotonic()
        while True:
            with self._lock:
                while not self._waiting_windows:
                    if self._closing:
                        return
                    self._idle += 1
                    self._work_came.wait()
                    self._idle -= 1
                    began = monotonic()
                batch, width = self._take()
                self._running_tokens += width * len(batch)
                self._running_since[threading.get_ident()] = monotonic()
            began = self._run(batch, width, began)

    def _take(self) -> tuple[list[_Entry], int]:
        """The next batch and its padded width, with the lock held and something waiting."""
        heads = [(self._first_of(length), length) for length in list(self._waiting)]
        waiting = [(entry, length) for entry, length in heads if entry is not None]
        short = [(entry, length) for entry, length in waiting if not self._is_long(length)]
        _, width = min(short if short and self._short_turn > 0 else waiting)
        # What waits is shared with the threads that are idle, too.
        share = -(-self._waiting_windows // (self._idle + 1))
        budget = max(self.batch_tokens, width)
        batch: list[_Entry] = []
        used = 0
        for length in sorted(self._waiting, key=lambda length: abs(length - width)):
            wider = max(width, length)
            while len(batch) < share and self._first_of(length) is not None:
                padded = wider * (len(batch) + 1)
                if padded > budget or padded - used - length > MAX_PADDING * padded:
                    break
                entry = heapq.heappop(self._waiting[length])
                batch.append(entry)
                used += length
                width = wider
                job = entry[2]
                job._waiting_windows -= 1
                job._waiting_tokens -= length
            if len(batch) == share or width * (len(batch) + 1) > budget:
                break
        self._waiting_windows -= len(batch)
        self._waiting_tokens -= used
        padded = width * len(batch)
        if self._is_long(width):
            self._short_turn = padded
        else:
            self._short_turn = max(0, self._short_turn - padded)
        return batch, width

    def _is_long(self, length: int) -> bool:
        """Whether a text leaves no room for others in its batch."""
        return length > self.batch_tokens // 2

    def _first_of(self, length: int) -> _Entry | None:
        """The entry of that length which is due first; those of closed jobs are dropped."""
        entries = self._waiting[length]
        while entries:
            if not entries[0][2]._closed:
                return entries[0]
            heapq.heappop(entries)
        del self._waiting[length]
        return None

    def _run(self, batch: list[_Entry], width: int, began: float) -> float:
        """Answer one batch, and return when that was done.

        An error is the answer of those in it, and of nobody else.
        """
        started = monotonic()
        logits: FloatArray | None = None
        error: Exception | None = None
        try:
            logits = self._model.logits([entry[4] for entry in batch])
        except Exception as raised:  # noqa: BLE001 - whatever it was, the thread goes on
            error = raised
            # No message and no trace: either may hold a part of a text.
            logger.error("inference failed for a batch: %s", type(raised).__name__)
        ended = monotonic()
        done: list[Job] = []
        padded = width * len(batch)
        with self._lock:
            self._running_tokens -= padded
            del self._running_since[threading.get_ident()]
            self.batches += 1
            self.padded_tokens += padded
            self.tokens += sum(len(entry[4]) for entry in batch)
            if error is None and any(entry[2]._for_nobody for entry in batch):
                # One window may be slow by chance: it may tell only that less time is enough.
                self._seconds_per_token = min(self._seconds_per_token, (ended - began) / padded)
            elif error is None:
                self._learn(ended - began, padded)
            for row, (_, _, job, place, _) in enumerate(batch):
                if job._closed:
                    continue
                if not job._first_taken:
                    job._first_taken = started
                    job.queued = started - job._submitted
                if logits is None:
                    job.error = error
                    self._close_job(job)
                    done.append(job)
                    continue
                if job.logits is None:
                    rows = job._unfinished
                    job.logits = np.empty((rows, logits.shape[1]), dtype=np.float32)
                job.logits[place] = logits[row]
                job._unfinished -= 1
                if not job._unfinished:
                    self._close_job(job)
                    done.append(job)
        for job in done:
            job.inference = ended - job._first_taken
            try:
                job._on_done(job)
            except Exception as raised:  # noqa: BLE001 - a caller's fault must not end the thread
                logger.error("a caller could not be told: %s", type(raised).__name__)
        return ended

    def _learn(self, took: float, tokens: int) -> None:
        """Move the measured seconds per token towards those of one batch, by its tokens."""
        self._seen_tokens += tokens
        # The mean of everything until there is enough of it to forget the oldest.
        weight = max(1 - (1 - FOLLOWING) ** (tokens / 1000), tokens / self._seen_tokens)
        self._seconds_per_token += weight * (took / tokens - self._seconds_per_token)
