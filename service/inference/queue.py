"""What waits, and whose turn it is: parts of many jobs → the next batch for an idle thread.

Two kinds of parts wait in one order. Windows are batched with others of similar length. Texts that
are still to be tokenized are taken one by one. The order is that of `Entry.due`: a part is due at
its job's arrival, plus a time that grows with the job's work up to this part. A short text thus
overtakes a long one that arrived before it, at both stages, and the parts of a large request take
turns with everybody else's. Only what arrives within that time can overtake a part, so nothing
starves. This is deadline-driven scheduling (Liu and Layland, "Scheduling Algorithms for
Multiprogramming in a Hard-Real-Time Environment", JACM 20(1), 1973, section 7). The deadline is
what the work itself justifies, or the request's own deadline where that is tighter.

Urgent parts are due before all others. `admission` accepts them only where the others can wait.

Background windows are taken only where nothing else waits, in the order of their arrival. They
never share a batch with other windows. Their batches are small, because what arrives meanwhile
waits for the end of a running batch.

Where long parts are late, this order alone would put all of them before a short one. Therefore,
after a long part, the short ones have a turn of as much work. A short part waits for one long part,
not for many.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.inference.jobs import Job, Stage, TokenizingTask
from service.inference.tokenizing import Window

# When urgent parts are due. Among each other they keep the order of their arrival.
URGENT = -math.inf
# Parts of closed jobs are skipped when their turn comes. When there are this many more of them than
# of open parts, they are removed at once: their texts may be large.
MAX_CLOSED_PARTS = 64
# The largest share of a batch's tokens that is padding.
MAX_PADDING = 0.1
# The tokens of a batch of background windows, as a share of those of other batches.
BACKGROUND_SHARE = 0.25


class Entry(NamedTuple):
    """A part of a job that waits.

    `number` is the part's place in the order of arrival; with it, entries never compare jobs.
    `work` is the tokens of a window, or the seconds that tokenizing is likely to take. `cost` is
    the same in tokens.
    """

    due: float
    number: int
    job: Job[Any]
    place: int
    content: Any
    work: float
    cost: float


class Batch(NamedTuple):
    """What one thread computes next: windows padded to `width` together, or one task."""

    stage: Stage
    entries: list[Entry]
    width: int = 0

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model computes, padding included; 0 for a task."""
        return self.width * len(self.entries)


class Queue:
    """Parts of jobs, in the order in which they are due; the engine's lock guards every call.

    Args:
        batch_tokens: tokens of a batch at most, padding included; a longer window is a batch alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self.windows = 0
        self.tokens = 0
        self.tasks = 0
        # Seconds that the waiting tasks are likely to take one thread.
        self.task_seconds = 0.0
        # Windows and tokens of background jobs; the counts above are without them.
        self.background_windows = 0
        self.background_tokens = 0
        self._batch_tokens = batch_tokens
        # Windows by length; each list is a heap whose first entry is due first.
        self._by_length: dict[int, list[Entry]] = {}
        self._tasks: list[Entry] = []
        self._background: deque[Entry] = deque()
        # The cost that short parts may take before the next long part.
        self._short_turn = 0.0
        self._number = 0
        # The number of parts of closed jobs that may still be here.
        self._closed_parts = 0

    def push_windows(self, job: Job[Any], windows: Sequence[Window], pace: float) -> None:
        """Queue a job's windows, each due after `pace` seconds per token up to it."""
        tokens = 0
        since = URGENT if job.is_urgent else job.since
        for place, window in enumerate(windows):
            length = len(window)
            tokens += length
            due = since + pace * tokens
            entry = self._entry(due, job, place, window, length, length)
            heapq.heappush(self._by_length.setdefault(length, []), entry)
        self.windows += len(windows)
        self.tokens += tokens

    def push_background(self, job: Job[Any], windows: Sequence[Window]) -> None:
        """Queue a background job's windows behind everything else."""
        for place, window in enumerate(windows):
            length = len(window)
            self._background.append(self._entry(math.inf, job, place, window, length, length))
            self.background_windows += 1
            self.background_tokens += length

    def push_tasks(
        self, job: Job[Any], tasks: Sequence[TokenizingTask], patience: float, per_second: float
    ) -> None:
        """Queue a job's tasks, each due after `patience` times the seconds of the tasks up to it.

        Args:
            per_second: tokens of inference that take as long as a second of tokenizing.
        """
        total = 0.0
        since = URGENT if job.is_urgent else job.since
        for place, (work, seconds) in enumerate(tasks):
            total += seconds
            due = since + patience * total
            entry = self._entry(due, job, place, work, seconds, seconds * per_second)
            heapq.heappush(self._tasks, entry)
        self.tasks += len(tasks)
        self.task_seconds += total

    def _entry(
        self, due: float, job: Job[Any], place: int, content: Any, work: float, cost: float
    ) -> Entry:
        self._number += 1
        job.waiting_parts += 1
        job.waiting_work += work
        return Entry(due, self._number, job, place, content, work, cost)

    def drop(self, job: Job[Any]) -> None:
        """Stop counting the parts of a closed job."""
        if job.is_background:
            self._drop_background(job)
            return
        self._subtract(job.stage, job.waiting_parts, job.waiting_work)
        self._closed_parts += job.waiting_parts
        job.waiting_parts, job.waiting_work = 0, 0.0
        if self._closed_parts > MAX_CLOSED_PARTS + self.windows + self.tasks:
            for entries in (self._tasks, *self._by_length.values()):
                entries[:] = [entry for entry in entries if entry.job.is_open]
                heapq.heapify(entries)
            self._closed_parts = 0

    def _drop_background(self, job: Job[Any]) -> None:
        self.background_windows -= job.waiting_parts
        self.background_tokens -= round(job.waiting_work)
        job.waiting_parts, job.waiting_work = 0, 0.0
        self._background = deque(entry for entry in self._background if entry.job is not job)

    def has(self, *stages: Stage) -> bool:
        """Whether a part of one of the stages waits."""
        return self._has_foreground(stages) or bool(
            "inference" in stages and self.background_windows
        )

    def _has_foreground(self, stages: Sequence[Stage]) -> bool:
        """Whether a part that is not in the background waits."""
        return bool(
            ("inference" in stages and self.windows) or ("tokenizing" in stages and self.tasks)
        )

    def oldest(self) -> float | None:
        """When the oldest waiting job arrived; the cost grows with the length of the queue."""
        waiting = (self._tasks, *self._by_length.values())
        # A heap is ordered by when its entries are due, not by their arrival.
        arrivals = (
            entry.job.submitted for entries in waiting for entry in entries if entry.job.is_open
        )
        return min(arrivals, default=None)

    def take(self, idle: int, *stages: Stage) -> Batch:
        """The next batch of these stages, which something waits for.

        Args:
            idle: the number of other idle threads, which share the waiting windows.
        """
        if not self._has_foreground(stages):
            return self._take_background(idle)
        chosen, length = self._next(stages)
        if chosen.job.stage == "tokenizing":
            batch = Batch("tokenizing", [heapq.heappop(self._tasks)])
            cost = chosen.cost
        else:
            batch = self._batch_around(length, idle)
            cost = batch.padded_tokens
        for entry in batch.entries:
            entry.job.waiting_parts -= 1
            entry.job.waiting_work -= entry.work
        self._subtract(batch.stage, len(batch.entries), sum(entry.work for entry in batch.entries))
        long = self._is_long(max(chosen.cost, batch.width))
        self._short_turn = cost if long else max(0.0, self._short_turn - cost)
        return batch

    def _take_background(self, idle: int) -> Batch:
        """The background windows that arrived first, in a small batch."""
        share = -(-self.background_windows // (idle + 1))
        budget = self._batch_tokens * BACKGROUND_SHARE
        entries: list[Entry] = []
        width = used = 0
        while self._background and len(entries) < share:
            length = len(self._background[0].content)
            wider = max(width, length)
            padded = wider * (len(entries) + 1)
            if entries and (padded > budget or padded - used - length > MAX_PADDING * padded):
                break
            entries.append(self._background.popleft())
            width, used = wider, used + length
        for entry in entries:
            entry.job.waiting_parts -= 1
            entry.job.waiting_work -= entry.work
        self.background_windows -= len(entries)
        self.background_tokens -= used
        return Batch("inference", entries, width)

    def _next(self, stages: Sequence[Stage]) -> tuple[Entry, int]:
        """The entry whose turn it is, and the length of its window; 0 for a task."""
        task = _first(self._tasks) if "tokenizing" in stages else None
        waiting = [] if task is None else [(task, 0)]
        if "inference" in stages:
            for length in list(self._by_length):
                first = _first(self._by_length[length])
                if first is None:
                    del self._by_length[length]
                else:
                    waiting.append((first, length))
        chosen = min(waiting)
        if self._short_turn > 0 and not chosen[0].job.is_urgent:
            short = [each for each in waiting if not self._is_long(each[0].cost)]
            chosen = min(short or waiting)
        return chosen

    def _batch_around(self, width: int, idle: int) -> Batch:
        """The window of that length which is due first, with others of similar length."""
        # Idle threads get their share of what waits.
        share = -(-self.windows // (idle + 1))
        budget = max(self._batch_tokens, width)
        entries: list[Entry] = []
        used = 0
        for length in sorted(self._by_length, key=lambda length: abs(length - width)):
            wider = max(width, length)
            waiting = self._by_length[length]
            while len(entries) < share and _first(waiting) is not None:
                padded = wider * (len(entries) + 1)
                if padded > budget or padded - used - length > MAX_PADDING * padded:
                    break
                entries.append(heapq.heappop(waiting))
                used += length
                width = wider
            if len(entries) == share or width * (len(entries) + 1) > budget:
                break
        return Batch("inference", entries, width)

    def _is_long(self, cost: float) -> bool:
        """Whether a part leaves no room for another one like it in a batch."""
        return cost > self._batch_tokens // 2

    def _subtract(self, stage: Stage, parts: int, work: float) -> None:
        """Stop counting parts that no longer wait."""
        if stage == "inference":
            self.windows -= parts
            self.tokens -= round(work)
            return
        self.tasks -= parts
        # The sum of fractions would not return to 0 exactly.
        self.task_seconds = self.task_seconds - work if self.tasks else 0.0


def _first(entries: list[Entry]) -> Entry | None:
    """The entry of a heap that is due first; entries of closed jobs are removed."""
    while entries:
        if entries[0].job.is_open:
            return entries[0]
        heapq.heappop(entries)
    return None
