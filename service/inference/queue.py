"""What waits, and whose turn it is: parts of many jobs → the next batch for an idle thread.

Two kinds of parts wait in one order: windows, which are batched with others of like length, and
texts that are still to be tokenized, which are taken one by one. The order is that of `Entry.due`:
a part is due at its job's arrival plus a time that grows with the work of the job up to it. A short
text thus overtakes a long one that came before it, at either stage, and the parts of one large
request take turns with everybody else's. A part can be overtaken only by what arrives within that
time after it, so nothing starves. It is deadline-driven scheduling (Liu and Layland, "Scheduling
Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 20(1), 1973, section 7): the
deadline is what the work itself would justify, or the request's own where that is tighter.

What is urgent is due before everything else: `admission` lets it pass only where the others can
wait so long.

Where long parts are late, that alone would put all of them before a short one. So after a long part
the short ones have a turn of as much work, and wait for one such part, not for many.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.inference.jobs import Job, Stage, TokenizingTask
from service.inference.tokenizing import Window

# When urgent parts are due; among each other they go in the order in which they came.
URGENT = -math.inf
# What is left of closed jobs is passed over when its turn comes, unless there is more of it than of
# open ones, and than so many parts: their texts may be large.
MOST_LEFT = 64
# Of a batch's tokens, at most this share is padding.
MAX_PADDING = 0.1


class Entry(NamedTuple):
    """A part of a job that waits.

    `number` is the part's place in the order of arrival, which makes entries compare before jobs
    do. `work` is a window's tokens, or the seconds that tokenizing is likely to take; `cost` is the
    same in tokens.
    """

    due: float
    number: int
    job: Job[Any]
    place: int
    content: Any
    work: float
    cost: float


class Batch(NamedTuple):
    """What one thread computes next: windows as wide as `width` together, or one task."""

    stage: Stage
    entries: list[Entry]
    width: int = 0

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model computes, padding included; 0 of a task."""
        return self.width * len(self.entries)


class Queue:
    """Parts of jobs, in the order in which they are due; its engine's lock guards every call.

    Args:
        batch_tokens: tokens of a batch at most, padding included; a longer window is one alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self.windows = 0
        self.tokens = 0
        self.tasks = 0
        # Seconds that the waiting tasks are likely to take one thread.
        self.task_seconds = 0.0
        self._batch_tokens = batch_tokens
        # Windows by length, each list a heap: the first one is due first.
        self._by_length: dict[int, list[Entry]] = {}
        self._tasks: list[Entry] = []
        # Cost that short parts may take before the next long one.
        self._short_turn = 0.0
        self._number = 0
        # Parts of closed jobs that may still be here.
        self._left = 0

    def push_windows(self, job: Job[Any], windows: Sequence[Window], pace: float) -> None:
        """Queue a job's windows, each due after `pace` seconds per token up to it."""
        read = 0
        since = URGENT if job.is_urgent else job.since
        for place, window in enumerate(windows):
            length = len(window)
            read += length
            due = since + pace * read
            entry = self._entry(due, job, place, window, length, length)
            heapq.heappush(self._by_length.setdefault(length, []), entry)
        self.windows += len(windows)
        self.tokens += read

    def push_tasks(
        self, job: Job[Any], tasks: Sequence[TokenizingTask], patience: float, per_second: float
    ) -> None:
        """Queue a job's tasks, each due after `patience` times the seconds of those up to it.

        Args:
            per_second: tokens of inference that take as long as a second of tokenizing.
        """
        read = 0.0
        since = URGENT if job.is_urgent else job.since
        for place, (work, seconds) in enumerate(tasks):
            read += seconds
            due = since + patience * read
            entry = self._entry(due, job, place, work, seconds, seconds * per_second)
            heapq.heappush(self._tasks, entry)
        self.tasks += len(tasks)
        self.task_seconds += read

    def _entry(
        self, due: float, job: Job[Any], place: int, content: Any, work: float, cost: float
    ) -> Entry:
        self._number += 1
        job.waiting_parts += 1
        job.waiting_work += work
        return Entry(due, self._number, job, place, content, work, cost)

    def drop(self, job: Job[Any]) -> None:
        """Count what is left of a closed job no more."""
        self._leave(job.stage, job.waiting_parts, job.waiting_work)
        self._left += job.waiting_parts
        job.waiting_parts, job.waiting_work = 0, 0.0
        if self._left > MOST_LEFT + self.windows + self.tasks:
            for entries in (self._tasks, *self._by_length.values()):
                entries[:] = [entry for entry in entries if entry.job.is_open]
                heapq.heapify(entries)
            self._left = 0

    def has(self, *stages: Stage) -> bool:
        """Whether something of one of the stages waits."""
        return bool(
            ("inference" in stages and self.windows) or ("tokenizing" in stages and self.tasks)
        )

    def oldest(self) -> float | None:
        """When the first of the jobs that wait came; as dear as the queue is long."""
        waiting = (self._tasks, *self._by_length.values())
        # A list is in the order in which its entries are due, not in that of their coming.
        came = (
            entry.job.submitted for entries in waiting for entry in entries if entry.job.is_open
        )
        return min(came, default=None)

    def take(self, idle: int, *stages: Stage) -> Batch:
        """The next batch of these stages, of which something waits.

        Args:
            idle: other threads that wait for work of inference, which is shared with them.
        """
        task = _first(self._tasks) if "tokenizing" in stages else None
        waiting = [] if task is None else [(task, 0)]
        if "inference" in stages:
            for length in list(self._by_length):
                first = _first(self._by_length[length])
                if first is None:
                    del self._by_length[length]
                else:
                    waiting.append((first, length))
        chosen, length = min(waiting)
        if self._short_turn > 0 and not chosen.job.is_urgent:
            short = [found for found in waiting if not self._is_long(found[0].cost)]
            chosen, length = min(short or waiting)
        if chosen.job.stage == "tokenizing":
            batch = Batch("tokenizing", [heapq.heappop(self._tasks)])
            cost = chosen.cost
        else:
            batch = self._batch_around(length, idle)
            cost = batch.padded_tokens
        for entry in batch.entries:
            entry.job.waiting_parts -= 1
            entry.job.waiting_work -= entry.work
        self._leave(batch.stage, len(batch.entries), sum(entry.work for entry in batch.entries))
        long = self._is_long(max(chosen.cost, batch.width))
        self._short_turn = cost if long else max(0.0, self._short_turn - cost)
        return batch

    def _batch_around(self, width: int, idle: int) -> Batch:
        """The window of that length which is due first, with others of like length."""
        # What waits is shared with the threads that are idle, too.
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
        """Whether a part leaves no room for others in a batch."""
        return cost > self._batch_tokens // 2

    def _leave(self, stage: Stage, parts: int, work: float) -> None:
        if stage == "inference":
            self.windows -= parts
            self.tokens -= round(work)
            return
        self.tasks -= parts
        # Sums of fractions leave a rest.
        self.task_seconds = self.task_seconds - work if self.tasks else 0.0


def _first(entries: list[Entry]) -> Entry | None:
    """The entry that is due first; those of closed jobs are dropped."""
    while entries:
        if entries[0].job.is_open:
            return entries[0]
        heapq.heappop(entries)
    return None
