"""All waiting connections are accepted in one turn of the loop, also with uvloop."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop

from service.http.accepting import Accepting

CALLERS = 100
TURNS = 4


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def connected(listener: socket.socket, *, helped: bool) -> int:
    """How many callers are connected after some turns of the loop; all are answered in the end."""
    server = uvicorn.Server(uvicorn.Config(application, http="httptools", lifespan="off"))
    server.config.load()
    server.lifespan = SimpleNamespace(state={})  # type: ignore[assignment]
    callers = []
    for _ in range(CALLERS):
        caller = socket.create_connection(listener.getsockname())
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        callers.append(caller)
    loop = asyncio.get_running_loop()
    accepting = Accepting(server)
    server.servers = [await loop.create_server(accepting.make_protocol, sock=listener)]
    server.started = helped
    if helped:
        accepting.listen([listener])
    for _ in range(TURNS):
        await asyncio.sleep(0)
    found = len(server.server_state.connections)
    server.started = True
    for caller in callers:
        caller.setblocking(False)
        assert (await loop.sock_recv(caller, 1000)).startswith(b"HTTP/1.1 200")
        caller.close()
    accepting.close()
    server.servers[0].close()
    return found


@pytest.fixture
def listener() -> Any:
    with socket.create_server(("127.0.0.1", 0), backlog=CALLERS) as made:
        made.setblocking(False)
        yield made


def test_uvloop_alone_accepts_one_connection_in_a_turn(listener: socket.socket) -> None:
    """If this fails, uvloop has fixed it, and `service.http.accepting` is no longer needed."""
    assert uvloop.run(connected(listener, helped=False)) <= TURNS


def test_all_waiting_connections_are_accepted_in_one_turn(listener: socket.socket) -> None:
    assert uvloop.run(connected(listener, helped=True)) == CALLERS


def test_the_loop_of_asyncio_needs_no_help(listener: socket.socket) -> None:
    async def begins() -> bool:
        return Accepting(uvicorn.Server(uvicorn.Config(application))).is_needed

    assert not asyncio.run(begins())
