"""From SIGTERM to the end of a worker: every request that came before the signal is answered.

When uvicorn is told to end, it closes its listener and every idle connection at once. The kernel
then resets the connections that it had accepted for the listener, and a request that a client is
just writing on an open connection is lost. Therefore the signal begins a drain first. The worker
reports that it is not ready, goes on accepting and answering, and closes each connection with its
answer. uvicorn is told to end when no connection is left, or when the time is up.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType

import uvicorn

from service.http.accepting import Accepting

logger = logging.getLogger("bentoml.service")

# How long the loop accepts the connections that the kernel holds for the listener, in seconds.
BACKLOG_SECONDS = 0.2
CHECK_SECONDS = 0.05


class Draining:
    """Whether the worker is about to end.

    Args:
        seconds: the longest time to wait for open connections.
        force_after: seconds after which the worker ends although callers have not taken their
            answers.
        on_begin: called once, when the signal comes.
    """

    def __init__(
        self, seconds: float, force_after: float, on_begin: Callable[[], object] | None = None
    ) -> None:
        self.begun = False
        self._seconds = seconds
        self._force_after = force_after
        self._on_begin = on_begin
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None
        self._accepting: Accepting | None = None

    def take_over(self) -> None:
        """Receive SIGTERM before uvicorn does; called in its event loop.

        Does nothing where no uvicorn waits for the signal, as in a test.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(server, uvicorn.Server):
            self._server = server
            self._loop = asyncio.get_running_loop()
            self._accepting = Accepting(server)
            signal.signal(signal.SIGTERM, self._signalled)

    def _signalled(self, _signum: int, _frame: FrameType | None) -> None:
        assert self._server is not None and self._loop is not None  # noqa: S101
        if not self.begun:
            self.begun = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        logger.info("draining: no longer ready, answering the open requests")
        # First of all, so that the worker ends whatever else goes wrong.
        self._task = asyncio.get_running_loop().create_task(self._drain())
        if self._on_begin is not None:
            self._on_begin()

    async def _drain(self) -> None:
        server = self._server
        assert server is not None  # noqa: S101
        until = monotonic() + self._seconds
        await asyncio.sleep(min(BACKLOG_SECONDS, self._seconds))
        while server.server_state.connections and monotonic() < until:
            await asyncio.sleep(CHECK_SECONDS)
        if self._accepting is not None:
            self._accepting.close()
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(self._force_after)
        logger.warning("ending with %d connections open", len(server.server_state.connections))
        server.force_exit = True
