"""A request's work, in parts that several threads compute → one outcome: complete, or failed.

A job holds what was computed so far and shows it to nobody. Its outcome is made once, when the last
part is there or when one has failed, so a result with a part that nobody computed cannot exist.
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

    `queued` and `running` are seconds: waiting for the first part to be taken, and from there to
    the end of the last one.
    """

    result: Result
    queued: float
    running: float


@dataclass(frozen=True, slots=True)
class Failed:
    """At least one part could not be computed; its exception may hold a part of a text."""

    error: Exception


Outcome: TypeAlias = Completed[Result] | Failed


class TokenizingTask(NamedTuple):
    """A part of a request's texts: `work` tokenizes them, in about `seconds` of one thread."""

    work: Callable[[], list[Any]]
    seconds: float


class Job(Generic[Result]):
    """The parts of one request at one stage; its engine's lock guards every call but `tell`.

    Args:
        parts: how many there are; at least one.
        assemble: makes the result of all parts, in their order.
        on_done: called once with the outcome, unless the job was cancelled before.
        submitted: seconds on the engine's clock.
    """

    __slots__ = (
        "_assemble",
        "_computed",
        "_error",
        "_first_taken",
        "_last_ended",
        "_on_done",
        "_parts",
        "can_wait",
        "expected",
        "is_measurement",
        "is_open",
        "is_urgent",
        "passed",
        "promised_tokens",
        "since",
        "stage",
        "submitted",
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
        # Where its place in the order counts from: the stage before it, where there was one.
        self.since = submitted if since is None else since
        # When it is expected to be ready, on the engine's clock.
        self.expected = submitted
        # It goes before everything that is not urgent.
        self.is_urgent = False
        # Seconds of urgent work that ever was: when it came, and when it has waited as long as it
        # can.
        self.passed = 0.0
        self.can_wait = math.inf
        # Of its parts in the queue: how many, and their tokens or seconds of tokenizing.
        self.waiting_parts = 0
        self.waiting_work = 0.0
        # Tokens that a tokenizing job is likely to bring to inference.
        self.promised_tokens = 0
        self.is_measurement = False
        # Not yet complete, failed or cancelled; what is left of others in the queue is passed over.
        self.is_open = True
        self._parts = parts
        self._assemble = assemble
        self._on_done = on_done
        self._computed: dict[int, Any] = {}
        self._error: Exception | None = None
        self._first_taken: float | None = None
        self._last_ended = 0.0

    def take(self, now: float) -> None:
        """A part of it begins to be computed."""
        if self._first_taken is None:
            self._first_taken = now

    def put(self, place: int, part: Any, now: float) -> bool:
        """Keep a part; whether it was the last one that was missing."""
        self._computed[place] = part
        self._last_ended = now
        return len(self._computed) == self._parts

    def fail(self, error: Exception) -> None:
        """Keep why there will be no result."""
        self._error = error
        self._computed.clear()

    def tell(self) -> None:
        """Make the outcome and hand it over; without the lock, by the thread that ended the job."""
        self._on_done(self._outcome())

    def _outcome(self) -> Outcome[Result]:
        if self._error is not None:
            return Failed(self._error)
        try:
            result = self._assemble([self._computed[place] for place in range(self._parts)])
        except Exception as error:  # noqa: BLE001 - whatever it was, there is no result
            return Failed(error)
        taken = self.submitted if self._first_taken is None else self._first_taken
        return Completed(result, taken - self.submitted, self._last_ended - taken)
