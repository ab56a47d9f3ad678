"""A request's work, in parts that several threads compute → one outcome: completed or failed.

A job keeps computed parts to itself. Its outcome is made once, when the last part is there or when
a part has failed. Therefore a result with a missing part cannot exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

Result = TypeVar("Result")

Stage = Literal["tokenizing", "inference"]


@dataclass(frozen=True, slots=True)
class Completed(Generic[Result]):
    """Every part was computed.

    `queued` is the seconds until the first part was taken; `running` is the seconds from then to
    the end of the last part.
    """

    result: Result
    queued: float
    running: float


@dataclass(frozen=True, slots=True)
class Failed:
    """At least one part could not be computed; the exception may hold a part of a text."""

    error: Exception


Outcome: TypeAlias = Completed[Result] | Failed


class TokenizingTask(NamedTuple):
    """A part of a request's texts: `work` tokenizes them, in about `seconds` on one thread."""

    work: Callable[[], list[Any]]
    seconds: float


class Job(Generic[Result]):
    """The parts of one request at one stage; the engine's lock guards every call except `tell`.

    Args:
        stage: what is done with the parts.
        parts: their number; at least one.
        assemble: makes the result from all parts, in their order.
        on_done: called once with the outcome, unless the job is canceled before.
        submitted: seconds on the engine's clock.
        since: when its place in the queue counts from; `submitted` if None.
    """

    __slots__ = (
        "_assemble",
        "_computed",
        "_error",
        "_first_taken",
        "_last_ended",
        "_on_done",
        "_parts",
        "expected",
        "is_background",
        "is_measurement",
        "is_open",
        "is_urgent",
        "promised_tokens",
        "since",
        "stage",
        "submitted",
        "urgent_before",
        "urgent_limit",
        "waiting_parts",
        "waiting_work",
    )

    def __init__(
        self,
        stage: Stage,
        parts: int,
        assemble: Callable[[list[Any]], Result],
        on_done: Callable[[Outcome[Result]], object],
        submitted: float,
        since: float | None = None,
    ) -> None:
        self.stage: Stage = stage
        self.submitted = submitted
        self.since = submitted if since is None else since
        # When it is expected to be ready, on the engine's clock.
        self.expected = submitted
        # An urgent job goes before every job that is not urgent.
        self.is_urgent = False
        # A background job goes after every other job.
        self.is_background = False
        # Two values of the counter of urgent work (see `Admission`): when the job arrived, and up
        # to which value it can wait.
        self.urgent_before = 0.0
        self.urgent_limit = math.inf
        # The number of its parts in the queue, and their tokens or seconds of tokenizing.
        self.waiting_parts = 0
        self.waiting_work = 0.0
        # Tokens that a tokenizing job is likely to bring to inference.
        self.promised_tokens = 0
        self.is_measurement = False
        # Whether it is not yet completed, failed or canceled. The queue skips parts of others.
        self.is_open = True
        self._parts = parts
        self._assemble = assemble
        self._on_done = on_done
        self._computed: dict[int, Any] = {}
        self._error: Exception | None = None
        self._first_taken: float | None = None
        self._last_ended = 0.0

    def take(self, now: float) -> None:
        """Record that a thread begins to compute one of its parts."""
        if self._first_taken is None:
            self._first_taken = now

    def put(self, place: int, part: Any, now: float) -> bool:
        """Keep a computed part; return whether it was the last missing one."""
        self._computed[place] = part
        self._last_ended = now
        return len(self._computed) == self._parts

    def fail(self, error: Exception) -> None:
        """Keep the reason why there is no result."""
        self._error = error
        self._computed.clear()

    def tell(self) -> None:
        """Make the outcome and hand it over; called without the lock."""
        self._on_done(self._outcome())

    def _outcome(self) -> Outcome[Result]:
        if self._error is not None:
            return Failed(self._error)
        try:
            result = self._assemble([self._computed[place] for place in range(self._parts)])
        except Exception as error:  # noqa: BLE001 - whatever the reason, there is no result
            return Failed(error)
        taken = self.submitted if self._first_taken is None else self._first_taken
        return Completed(result, taken - self.submitted, self._last_ended - taken)
