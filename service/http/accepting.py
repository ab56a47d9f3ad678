"""New connections, as many as wait: uvloop takes one in each turn of its loop.

libuv accepts one connection in a turn (libuv#3696). Under load a turn lasts as long as all requests
that came meanwhile, so callers who connect wait for seconds, and so do the probes of Kubernetes,
which connect anew each time: measured with 256 connections, the slowest request took as long as the
whole load, with this a tenth of a second. Where asyncio's own loop runs, which accepts as many as
there are, nothing is done.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

# Of what waits, in one turn; the next turn takes the rest.
ACCEPTED_AT_ONCE = 1024
LOOK_SECONDS = 0.01


class Accepting:
    """Accepts beside uvicorn whatever waits on its listeners, until it ends."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._connecting: set[asyncio.Task[object]] = set()
        # asyncio's own loop accepts as many as there are.
        self.is_needed = type(self._loop).__module__.startswith("uvloop")
        self._begins = self._loop.create_task(self._begin()) if self.is_needed else None

    async def _begin(self) -> None:
        """Once uvicorn listens, which is after its application has started."""
        while not self._server.started:
            if self._server.should_exit:
                return
            await asyncio.sleep(LOOK_SECONDS)
        self.listen([found for each in self._server.servers for found in each.sockets])

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Accept from these, too."""
        for listener in listeners:
            # uvloop watches the descriptor itself, and knows one watcher for each.
            copy = socket.socket(fileno=os.dup(listener.fileno()))
            copy.setblocking(False)
            self._listeners.append(copy)
            self._loop.add_reader(copy, self._accept, copy)

    def close(self) -> None:
        """Accept no more; what is connected stays."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        if self._server.should_exit:
            self.close()
            return
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except OSError:
                # There is none any more, or no descriptor is left: uvloop's own turn says so.
                return
            connection.setblocking(False)
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(self.make_protocol, connection)
            )
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def make_protocol(self) -> asyncio.Protocol:
        """What uvicorn makes for a connection."""
        server = self._server
        make: Any = server.config.http_protocol_class
        made: asyncio.Protocol = make(
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made
