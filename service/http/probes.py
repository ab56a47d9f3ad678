"""`/livez` and `/readyz` on a port and a thread of their own.

In an overload the event loop answers thousands of requests before a probe has its turn. Measured
with 1,600 connections, this took seconds, after which Kubernetes restarts a server that is only
busy. A probe on this port waits for no request. It tells whether the event loop and inference make
progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping

# The size of a probe: one line and a few headers.
MAX_BYTES = 8_192
# The time in which a probe must arrive, in seconds.
MAX_SECONDS = 2.0
# Open connections; for one more, the oldest is closed.
MAX_CONNECTIONS = 64


class ProbesError(Exception):
    """The server cannot listen on the port; the message says why."""


def listen(port: int, *, shared: bool = False) -> socket.socket:
    """Listen on all addresses of this machine.

    Args:
        shared: other processes may listen on the same port in the same way.

    Raises:
        ProbesError: another process uses the port.
    """
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=six, reuse_port=shared
        )
    except OSError as error:
        raise ProbesError(
            f"the server cannot listen on port {port} ({error.strerror}): choose another one"
        ) from None


class Probes:
    """Answers `GET PATH` with 200 or 503.

    Args:
        port: on all addresses of this machine.
        checks: for each path, whether to answer 200.
        shared: other processes listen on the same port, and the system chooses between them.

    Raises:
        ProbesError: another process uses the port.
    """

    def __init__(
        self, port: int, checks: Mapping[str, Callable[[], bool]], *, shared: bool = False
    ) -> None:
        self._checks = checks
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._listener = listen(port, shared=shared)
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listener, limit=MAX_BYTES)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MAX_CONNECTIONS:
            next(iter(self._open)).close()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer_to(head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            del self._open[writer]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer_to(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD") or path not in self._checks:
            status = "404 Not Found"
        else:
            status = "200 OK" if self._checks[path]() else "503 Service Unavailable"
        return f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
