"""Probes on a port of their own are answered however busy the server is."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress

import pytest

from service.http.probes import MAX_BYTES, MAX_CONNECTIONS, Probes, ProbesError, listen
from tests.servers import free_port

SECONDS = 30


def status(port: int, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.read() == b""
        return answer.status
    finally:
        connection.close()


def test_each_path_has_its_own_check() -> None:
    state = {"alive": True}
    port = free_port()
    Probes(port, {"/livez": lambda: state["alive"], "/readyz": lambda: False})
    assert (status(port, "/livez"), status(port, "/readyz?verbose")) == (200, 503)
    state["alive"] = False
    assert status(port, "/livez", "HEAD") == 503
    assert status(port, "/metrics") == 404
    assert status(port, "/livez", "POST") == 404


def test_a_check_that_raises_is_not_a_success() -> None:
    def broken() -> bool:
        raise RuntimeError

    port = free_port()
    Probes(port, {"/livez": broken, "/readyz": lambda: True})
    with pytest.raises(http.client.RemoteDisconnected):
        status(port, "/livez")
    assert status(port, "/readyz") == 200


def test_silent_and_talkative_connections_do_not_block_probes() -> None:
    port = free_port()
    Probes(port, {"/livez": lambda: True})
    silent = []
    for _ in range(3 * MAX_CONNECTIONS):
        silent.append(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
    try:
        assert status(port, "/livez") == 200
        talker = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        # Closed, with or without a reset.
        with talker, suppress(ConnectionError):
            talker.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 4 * MAX_BYTES)
            assert talker.recv(100) == b""
        assert status(port, "/livez") == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_port_in_use_is_refused_with_a_sentence() -> None:
    with socket.create_server(("", 0)) as taken, pytest.raises(ProbesError, match="choose another"):
        listen(taken.getsockname()[1])


def test_several_processes_may_share_a_port() -> None:
    first = listen(0, shared=True)
    with first, listen(first.getsockname()[1], shared=True):
        pass
