"""Accept all waiting connections in one turn of uvloop, which itself accepts only one.

libuv accepts one connection in a turn of its loop (libuv#3696). Under load a turn takes as long as
all requests that arrived meanwhile, so new connections wait for seconds. So do the probes of
Kubernetes, which connect anew each time. Measured with 256 connections, the slowest request took as
long as the whole load; with this module it took a tenth of a second. asyncio's own loop accepts all
waiting connections itself, so nothing is done there.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

# Connections in one turn; the next turn accepts the rest.
ACCEPTED_AT_ONCE = 1024
CHECK_SECONDS = 0.01


class Accepting:
    """Accepts connections on the listeners of a uvicorn server, in addition to it."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._connecting: set[asyncio.Task[object]] = set()
        # asyncio's own loop accepts all waiting connections.
        self.is_needed = type(self._loop).__module__.startswith("uvloop")
        self._begins = self._loop.create_task(self._begin()) if self.is_needed else None

    async def _begin(self) -> None:
        """Begin when uvicorn listens, which is after its application has started."""
        while not self._server.started:
            if self._server.should_exit:
                return
            await asyncio.sleep(CHECK_SECONDS)
        self.listen([listener for each in self._server.servers for listener in each.sockets])

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections from these listeners."""
        for listener in listeners:
            # uvloop watches the descriptor itself, and allows one watcher for each.
            copy = socket.socket(fileno=os.dup(listener.fileno()))
            copy.setblocking(False)
            self._listeners.append(copy)
            self._loop.add_reader(copy, self._accept, copy)

    def close(self) -> None:
        """Accept no more; open connections stay open."""
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
                # No connection is left, or no file descriptor: uvloop's own turn reports that.
                return
            connection.setblocking(False)
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(self.make_protocol, connection)
            )
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def make_protocol(self) -> asyncio.Protocol:
        """The protocol that uvicorn makes for a connection."""
        server = self._server
        make: Any = server.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return protocol
