"""What is refused at once: work that could not be done by its deadline, and what a queue is for.

The time that a token takes is measured all the time, and so is how late answers were by recently. A
request is refused when the work before it and its own, at both stages, would take it past its
deadline, or when as many tokens wait as may.

A request that its turn would make too late may go before all others where its deadline is earlier
than theirs and they can wait so long: each of them keeps the end that it was promised. It is the
test of a sporadic task beside others that are scheduled by deadline (Chetto and Chetto, "Some
Results of the Earliest Deadline Scheduling Algorithm", IEEE TSE 15(10), 1989), with what each can
wait kept as a number instead of computed from the whole schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from service.inference.jobs import Job

QUEUE_TOKENS = 65_536
# Refuse what would be ready only after this share of the time it has, less what answers were late
# by recently: the measured time per token is a mean, and batches are not taken strictly in turn.
USABLE_TIME = 0.75
# In so many seconds, half of a lateness is forgotten.
LATENESS_HALF_LIFE = 5.0
# So much of its usable time who comes behind others leaves for requests that cannot wait.
RESERVE = 0.1
# What those still find of the queue, as a share of it, when it is full.
URGENT_QUEUE = 0.1
# What others can wait is looked up again after so many seconds: it is as dear as they are many.
LOOK_AGAIN = 0.02
# How fast a measured rate follows a change: the weight of so many new ones.
FOLLOWING = 0.1
FOLLOWED_TOKENS = 1000.0
# Before anything was measured: seconds per token of a small encoder on one core.
FIRST_SECONDS_PER_TOKEN = 2e-4
# How many tokens a text has is estimated before it is tokenized. Less of them than that count
# towards a refusal: only what is very likely to be too much is refused by an estimate.
ESTIMATE_SHARE = 0.5

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


class Rate:
    """What one of something takes, as the mean of what was measured, the newest weighing most.

    Args:
        first: what is believed before anything was measured.
        followed: so many new ones weigh `FOLLOWING`.
        believed: the first value weighs as much as so many that were measured.
    """

    def __init__(self, first: float, followed: float, believed: float = 0.0) -> None:
        self.value = first
        self._followed = followed
        self._seen = believed

    def learn(self, took: float, amount: float) -> None:
        """So many took `took` together."""
        self._seen += amount
        # The mean of everything until there is enough of it to forget the oldest.
        weight = max(1 - (1 - FOLLOWING) ** (amount / self._followed), amount / self._seen)
        self.value += weight * (took / amount - self.value)

    def believe_less(self, took: float, amount: float) -> None:
        """Learn from something that may have been slow by chance: only that less is enough."""
        self.value = min(self.value, took / amount)


class Lateness:
    """How late answers were by recently, in seconds: the largest, half forgotten after a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._largest = 0.0
        self._seen_at = clock()

    @property
    def now(self) -> float:
        """What is left of it."""
        if not self._largest:
            return 0.0
        age = self._clock() - self._seen_at
        return self._largest * math.exp2(-age / LATENESS_HALF_LIFE)

    def learn(self, seconds: float) -> None:
        """An answer was late by so much; one that was in time tells nothing."""
        if seconds > 0 and seconds > self.now:
            self._largest, self._seen_at = seconds, self._clock()


class Load(NamedTuple):
    """Work: tokens of inference, and seconds of tokenizing that one thread would take."""

    tokens: float = 0
    tokenizing: float = 0.0


class Place(NamedTuple):
    """Where admitted work stands.

    Seconds: of all that is before it, to spare before it must begin, of its own work on all
    threads, what is left to those who cannot wait, and by what it delays the others. What is urgent
    goes before everything that is not.
    """

    before: float
    spare: float
    own: float
    reserve: float = 0.0
    delay: float = 0.0
    urgent: bool = False

    def patience(self, last: float) -> float:
        """Seconds that others may go before work whose last part takes one thread `last`."""
        return 0.0 if self.urgent else max(0.0, self.spare - last)


class Admission:
    """Judges by what is measured; its engine's lock guards every call.

    Args:
        threads: batches that run side by side.
        tokenizer_threads: tasks of tokenizing that run side by side.
        queue_tokens: tokens that may wait; one request alone may be larger.
        clock: seconds; it never goes back.
        seconds_per_token: what is believed before a batch was measured.
    """

    def __init__(
        self,
        *,
        threads: int,
        tokenizer_threads: int,
        queue_tokens: int,
        clock: Callable[[], float],
        seconds_per_token: float = FIRST_SECONDS_PER_TOKEN,
    ) -> None:
        self.token_rate = Rate(seconds_per_token, FOLLOWED_TOKENS)
        self._threads = threads
        self._tokenizer_threads = tokenizer_threads
        self._queue_tokens = queue_tokens
        self._clock = clock
        self._lateness = Lateness(clock)
        # Who goes before others waits shorter, and what was thought of that is less wrong.
        self._urgent_lateness = Lateness(clock)
        # Seconds of urgent work that ever went before others, and the same at which the first of
        # those that wait has waited as long as it can.
        self._passed = 0.0
        self._can_wait = math.inf
        self._looked_at = -math.inf
        # By when the last of those that are not urgent must be ready.
        self._last_end = -math.inf

    def seconds(self, load: Load) -> float:
        """How long all threads take for it."""
        inference = load.tokens * self.token_rate.value / self._threads
        return inference + load.tokenizing / self._tokenizer_threads

    def is_light(self, ahead: Load, seconds: float) -> bool:
        """Whether one token would be in time behind that, however late others were."""
        # The margin for lateness is half of the usable time at most.
        return self.seconds(ahead) + self.token_rate.value < seconds * USABLE_TIME / 2

    def admit(
        self, ahead: Load, waiting_tokens: float, own: Load, last: float, seconds: float | None
    ) -> Place:
        """Where work stands that comes now.

        Args:
            ahead: what waits and runs.
            waiting_tokens: how much of it is in the queue.
            own: the work itself.
            last: seconds of its largest part, which is one thread's work and may be its last.
            seconds: from now to the deadline; without one only the queue's size counts.

        Raises:
            OverloadedError: it could not be done in time, or the queue is full.
        """
        before = self.seconds(ahead)
        usable = math.inf if seconds is None else seconds * USABLE_TIME
        spare = usable - self.margin(usable) - before
        reserve = usable * RESERVE if seconds is not None else 0.0
        takes = max(self.seconds(own), last)
        # Where nothing is before it, it may need all of its time itself.
        late = takes > (spare - reserve if before else spare)
        full = bool(waiting_tokens) and waiting_tokens + own.tokens > self._queue_tokens
        if late or full:
            too_long = late and takes > usable
            raise OverloadedError(
                before, "too_long" if too_long else "deadline" if late else "queue_full"
            )
        return Place(before, spare - reserve, takes, reserve)

    def may_go_first(self, seconds: float) -> bool:
        """Whether others have later deadlines: else their order is the better one."""
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
        """Where work stands that can go before `others`, or None where it cannot.

        Args:
            before: seconds until what runs, and what is urgent too and came before, lets it begin.
            waiting_tokens, own, last, seconds: as `admit` has them; it `may_go_first`.
            others: what waits or runs and is not urgent.
        """
        now = self._clock()
        usable = seconds * USABLE_TIME
        spare = usable - self.margin(usable, urgent=True) - before
        takes = max(self.seconds(own), last)
        room = self._queue_tokens * (1 + URGENT_QUEUE)
        if takes > spare or waiting_tokens + own.tokens > room:
            return None
        if now >= self._looked_at + LOOK_AGAIN:
            self._looked_at = now
            self._can_wait = min((job.can_wait for job in others), default=math.inf)
        delay = self.seconds(own)
        if delay > self._can_wait - self._passed:
            return None
        return Place(before, spare, takes, delay=delay, urgent=True)

    def promise(self, job: Job[Any], place: Place) -> None:
        """Keep what was promised to an admitted job, whose `expected` is known by now."""
        job.is_urgent = place.urgent
        if place.urgent:
            self._passed += place.delay
            return
        job.passed = self._passed
        end = self._clock() + place.before + place.spare + place.reserve
        job.can_wait = self._passed + max(0.0, end - job.expected)
        self._can_wait = min(self._can_wait, job.can_wait)
        self._last_end = max(self._last_end, end) if end < math.inf else self._last_end

    def margin(self, usable: float, *, urgent: bool = False) -> float:
        """Seconds to allow for lateness; never more than half, or one stall would refuse it all."""
        lateness = self._urgent_lateness if urgent else self._lateness
        return min(lateness.now, usable / 2)

    def learn_lateness(self, job: Job[object]) -> None:
        """Keep how late an answer is that reaches its caller now."""
        late = self._clock() - job.expected
        if job.is_urgent:
            self._urgent_lateness.learn(late)
        else:
            # Those that it let pass are no lateness.
            self._lateness.learn(late - (self._passed - job.passed))
