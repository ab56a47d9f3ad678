"""How long a request may have waited before the event loop came to it.

In an overload a turn of the loop takes long, and what arrives meanwhile waits in its socket. A
deadline that began only when the request was read would promise what its caller no longer waits
for.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import NamedTuple


class Arrival(NamedTuple):
    """The earliest time of a request, on the clock of `time.monotonic`.

    `behind` is how many seconds the loop needed for the two turns that it may have waited for.
    """

    moment: float
    behind: float


class Turns:
    """When the last turns of the running event loop began, while requests come.

    Without requests nothing is measured.

    What a turn hands to the application was read in the turn before it. It was not yet there when
    the turn before that looked. So it came after the beginning of that one.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # The beginnings of the turn before last, of the last one, and of this one.
        self._begun = (0.0, 0.0, 0.0)
        self._has_request = False

    def look(self) -> Arrival:
        """When the request that is served now can have come. Every request asks once."""
        self._has_request = True
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            now = monotonic()
            self._begun = (now, now, now)
            self._loop.call_soon(self._begin)
        return Arrival(self._begun[0], self._begun[2] - self._begun[0])

    def _begin(self) -> None:
        """A turn begins; the next one is looked at only if this one served a request."""
        if not self._has_request or self._loop is None:
            self._loop = None
            return
        self._has_request = False
        self._begun = (*self._begun[1:], monotonic())
        self._loop.call_soon(self._begin)
