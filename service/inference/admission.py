"""Refuse at once what could not be done by its deadline, or what exceeds the queue.

The time per token is measured continuously, and so is the lateness of recent answers. A request is
refused when the work before it and its own work, at both stages, would take it past its deadline,
or when the queue is full.

A request that would be too late in its turn may go before all others, if its deadline is earlier
than theirs and they can wait that long. Each of them keeps the end that it was promised. This is
the acceptance test for a sporadic task beside others that are scheduled by deadline (Chetto and
Chetto, "Some Results of the Earliest Deadline Scheduling Algorithm", IEEE TSE 15(10), 1989). The
time that each request can wait is kept as a number, not computed from the whole schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from service.inference.capacity import Capacity
from service.inference.errors import OverloadedError
from service.inference.jobs import Job
from service.inference.rates import Lateness, Rate

# The share of a request's time, after the lateness of recent answers, in which its answer must be
# ready. The measured time per token is a mean, and batches are not taken strictly in order.
USABLE_TIME = 0.75
# The share of its usable time that a request behind others leaves to urgent requests.
RESERVE = 0.1
# The room that a full queue still has for urgent requests, as a share of its size.
URGENT_QUEUE = 0.1
# How often, in seconds, the time that all others can wait is computed again. The cost of this grows
# with their number.
LOOK_AGAIN = 0.02
# A rate of seconds per token forgets old measurements in so many tokens (see `Rate`).
MEMORY_TOKENS = 1000.0
# Seconds per token of a small encoder on one core, before anything is measured.
FIRST_SECONDS_PER_TOKEN = 2e-4
# The number of tokens of a text is an estimate until it is tokenized. Only this share of it counts
# towards a refusal, so that an estimate refuses only what is very likely to be too much.
ESTIMATE_SHARE = 0.5


class Load(NamedTuple):
    """Work: tokens of inference, and seconds of tokenizing on one thread."""

    tokens: float = 0
    tokenizing: float = 0.0


class Place(NamedTuple):
    """The place of admitted work among the rest, in seconds.

    `before` is the work before it; `spare` is the time until it must begin; `own` is its own work
    on all threads; `reserve` is the time that it leaves to urgent requests; `delay` is the time by
    which it delays others. Urgent work goes before everything that is not urgent.
    """

    before: float
    spare: float
    own: float
    reserve: float = 0.0
    delay: float = 0.0
    urgent: bool = False

    def patience(self, last: float) -> float:
        """How long others may go first, where its last part takes one thread `last` seconds."""
        return 0.0 if self.urgent else max(0.0, self.spare - last)


class Admission:
    """Decides by measured rates; the engine's lock guards every call.

    Args:
        capacity: the size of the engine.
        clock: seconds; it never goes back.
        seconds_per_token: the time per token before a batch is measured.
    """

    def __init__(
        self,
        capacity: Capacity,
        clock: Callable[[], float],
        seconds_per_token: float = FIRST_SECONDS_PER_TOKEN,
    ) -> None:
        self.token_rate = Rate(seconds_per_token, MEMORY_TOKENS)
        self._threads = capacity.threads
        self._tokenizer_threads = capacity.tokenizer_threads or capacity.threads
        self._queue_tokens = capacity.queue_tokens
        self._clock = clock
        self._lateness = Lateness(clock)
        # Urgent requests wait less, so their lateness is measured separately.
        self._urgent_lateness = Lateness(clock)
        # A counter of all seconds of urgent work that ever went first, and the value of it at which
        # the first of the waiting requests can wait no longer.
        self._urgent_seconds = 0.0
        self._urgent_limit = math.inf
        self._limit_computed_at = -math.inf
        # When the last of the requests that are not urgent must be ready.
        self._last_end = -math.inf

    def seconds(self, load: Load) -> float:
        """How long a load takes all threads."""
        inference = load.tokens * self.token_rate.value / self._threads
        return inference + load.tokenizing / self._tokenizer_threads

    def is_light(self, ahead: Load, seconds: float) -> bool:
        """Whether one more token would be in time behind `ahead`, however late answers were."""
        # The margin for lateness is half of the usable time at most.
        return self.seconds(ahead) + self.token_rate.value < seconds * USABLE_TIME / 2

    def admit(
        self, ahead: Load, waiting_tokens: float, own: Load, last: float, seconds: float | None
    ) -> Place:
        """The place of work that arrives now, in its turn.

        Args:
            ahead: the work that waits and runs.
            waiting_tokens: how many tokens of it wait.
            own: the work itself.
            last: seconds of its largest part, which one thread computes and which may come last.
            seconds: from now to the deadline; without one only the size of the queue counts.

        Raises:
            OverloadedError: it could not be done in time, or the queue is full.
        """
        before = self.seconds(ahead)
        usable = math.inf if seconds is None else seconds * USABLE_TIME
        spare = usable - self.margin(usable) - before
        reserve = usable * RESERVE if seconds is not None else 0.0
        takes = max(self.seconds(own), last)
        # With nothing before it, a request may use all of its time itself.
        late = takes > (spare - reserve if before else spare)
        full = bool(waiting_tokens) and waiting_tokens + own.tokens > self._queue_tokens
        if late or full:
            too_long = late and takes > usable
            raise OverloadedError(
                before, "too_long" if too_long else "deadline" if late else "queue_full"
            )
        return Place(before, spare - reserve, takes, reserve)

    def may_go_first(self, seconds: float) -> bool:
        """Whether some other request has a later deadline; otherwise the order stays as it is."""
        return self._clock() + seconds * USABLE_TIME < self._last_end

    def admit_urgent(
        self,
        before: float,
        waiting_tokens: float,
        own: Load,
        last: float,
        seconds: float,
        others: Iterable[Job[Any]],
    ) -> Place | None:
        """The place of work that can go before `others`, or None where it cannot.

        Args:
            before: seconds until running work, and urgent work that came before, lets it begin.
            waiting_tokens: as in `admit`.
            own: as in `admit`.
            last: as in `admit`.
            seconds: as in `admit`; `may_go_first` accepts it.
            others: the jobs that wait or run and are not urgent.
        """
        usable = seconds * USABLE_TIME
        spare = usable - self.margin(usable, urgent=True) - before
        takes = max(self.seconds(own), last)
        room = self._queue_tokens * (1 + URGENT_QUEUE)
        if takes > spare or waiting_tokens + own.tokens > room:
            return None
        delay = self.seconds(own)
        if delay > self._limit(others) - self._urgent_seconds:
            return None
        return Place(before, spare, takes, delay=delay, urgent=True)

    def _limit(self, others: Iterable[Job[Any]]) -> float:
        """The value of the urgent counter up to which all others can wait."""
        now = self._clock()
        if now >= self._limit_computed_at + LOOK_AGAIN:
            self._limit_computed_at = now
            self._urgent_limit = min((job.urgent_limit for job in others), default=math.inf)
        return self._urgent_limit

    def promise(self, job: Job[Any], place: Place) -> None:
        """Record the promise to an admitted job, whose `expected` end is set."""
        job.is_urgent = place.urgent
        if place.urgent:
            self._urgent_seconds += place.delay
            return
        job.urgent_before = self._urgent_seconds
        end = self._clock() + place.before + place.spare + place.reserve
        job.urgent_limit = self._urgent_seconds + max(0.0, end - job.expected)
        self._urgent_limit = min(self._urgent_limit, job.urgent_limit)
        self._last_end = max(self._last_end, end) if end < math.inf else self._last_end

    def margin(self, usable: float, *, urgent: bool = False) -> float:
        """Seconds to subtract for the lateness of recent answers.

        At most half of the usable time: otherwise one stall would refuse everything.
        """
        lateness = self._urgent_lateness if urgent else self._lateness
        return min(lateness.now, usable / 2)

    def learn_lateness(self, job: Job[object]) -> None:
        """Measure how late an answer is that reaches its caller now."""
        late = self._clock() - job.expected
        if job.is_urgent:
            self._urgent_lateness.learn(late)
        else:
            # The urgent work that went first meanwhile is not lateness.
            self._lateness.learn(late - (self._urgent_seconds - job.urgent_before))
