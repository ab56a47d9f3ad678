"""Wait in the event loop for work that the engine's threads do."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.http.errors import ClientGoneError, deadline_passed, refusal_of
from service.http.request import Request
from service.inference.engine import Engine
from service.inference.errors import EngineError
from service.inference.jobs import Job, Outcome

Result = TypeVar("Result")

# A request that takes so long, in seconds, is watched for its caller's end.
WATCH_AFTER = 0.1


class Waiter:
    """Starts work in one engine and waits for its outcomes, in one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outcomes: _Outcomes | None = None

    async def wait(
        self,
        request: Request,
        begin: Callable[[Callable[[Outcome[Result]], object]], Job[Result]],
        watch_after: float = WATCH_AFTER,
    ) -> tuple[Job[Result], Outcome[Result]]:
        """Begin work and wait for its outcome.

        Args:
            request: gives the deadline.
            begin: starts the work; it gets the function that the outcome is handed to.
            watch_after: seconds after which the caller is watched.

        Raises:
            RequestError: the engine refused the work, or the deadline passed.
            ClientGoneError: the caller left.
        """
        if request.seconds_left <= 0:
            raise deadline_passed()
        loop = asyncio.get_running_loop()
        if self._outcomes is None or self._outcomes.loop is not loop:
            self._outcomes = _Outcomes(loop)
        waiting: _Waiting[Result] = _Waiting(request, self._outcomes)
        try:
            job = begin(waiting.tell)
        except EngineError as error:
            raise refusal_of(error, request.behind) from None
        try:
            return job, await waiting.outcome(watch_after)
        except BaseException:
            self._engine.cancel(job)
            raise


class _Outcomes:
    """Outcomes on their way to the event loop, which is woken once for all of a batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._arrived: deque[tuple[_Waiting[Any], Outcome[Any]]] = deque()
        self._is_woken = False

    def tell(self, waiting: _Waiting[Any], outcome: Outcome[Any]) -> None:
        """Hand an outcome over; from any thread."""
        self._arrived.append((waiting, outcome))
        if not self._is_woken:
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        # First: an outcome that arrives from now on wakes the loop again.
        self._is_woken = False
        while self._arrived:
            waiting, outcome = self._arrived.popleft()
            waiting.finish(outcome)


class _Waiting(Generic[Result]):
    """One request that waits for one outcome, until its deadline, and while its caller stays."""

    def __init__(self, request: Request, outcomes: _Outcomes) -> None:
        self._request = request
        self._outcomes = outcomes
        self._loop = outcomes.loop
        self._done: asyncio.Future[Outcome[Result]] = self._loop.create_future()
        self._watcher: asyncio.Task[None] | None = None

    def tell(self, outcome: Outcome[Result]) -> None:
        """Hand the outcome over; from any thread."""
        self._outcomes.tell(self, outcome)

    async def outcome(self, watch_after: float) -> Outcome[Result]:
        """The outcome; the caller is watched after so many seconds.

        Raises:
            RequestError: the deadline passed.
            ClientGoneError: the caller left.
        """
        soon = min(self._request.seconds_left, watch_after)
        self._timer = self._loop.call_later(soon, self._look)
        try:
            return await self._done
        finally:
            self._timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()

    def _look(self) -> None:
        """Give up at the deadline; before it, begin to watch the caller."""
        left = self._request.seconds_left
        if left <= 0:
            self._fail(deadline_passed())
            return
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._watch())
        self._timer = self._loop.call_later(left, self._look)

    async def _watch(self) -> None:
        # The body was read, so nothing but the end of the connection can follow.
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._fail(ClientGoneError())

    def finish(self, outcome: Outcome[Result]) -> None:
        """Let the request go on, where it still waits."""
        if not self._done.done():
            self._done.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
