"""`/livez` and `/readyz` on a port and a thread of their own.

In an overload the event loop answers thousands of requests before a probe has its turn: measured
with 1,600 connections, seconds, after which Kubernetes restarts a server that only has much to do.
Here a probe waits for nobody, and says whether the loop and inference move.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping

# A probe is a line and a few headers.
MOST_BYTES = 8_192
# So long a stranger may take to send them, in seconds.
MOST_SECONDS = 2.0
# Connections at a time; one more, and the one that came first is closed.
MOST_CONNECTIONS = 64


class ProbesError(Exception):
    """The port cannot be listened on; the message says why."""


def listen(port: int, *, shared: bool = False) -> socket.socket:
    """A listener on all addresses of this machine.

    Args:
        shared: other processes may listen on the same port in the same way.

    Raises:
        ProbesError: somebody else has the port.
    """
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=six, reuse_port=shared
        )
    except OSError as error:
        raise ProbesError(
            f"port {port} cannot be listened on ({error.strerror}): choose another one"
        ) from None


class Probes:
    """Answers `GET PATH` by whether it is so: 200 or 503.

    Args:
        port: of all addresses of this machine.
        answers: what each path asks.
        shared: other processes listen on the same port, and the system chooses who is asked.

    Raises:
        ProbesError: somebody else has the port.
    """

    def __init__(
        self, port: int, answers: Mapping[str, Callable[[], bool]], *, shared: bool = False
    ) -> None:
        self._answers = answers
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._listener = listen(port, shared=shared)
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listener, limit=MOST_BYTES)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MOST_CONNECTIONS:
            next(iter(self._open)).close()
        try:
            async with asyncio.timeout(MOST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._of(head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            del self._open[writer]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _of(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD") or path not in self._answers:
            status = "404 Not Found"
        else:
            status = "200 OK" if self._answers[path]() else "503 Service Unavailable"
        return f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
