"""Probes on a port of their own: they are answered whatever else there is to do."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress

import pytest

from service.probes import MOST_BYTES, MOST_CONNECTIONS, Probes, ProbesError, listen
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


def test_each_path_is_answered_by_what_it_asks() -> None:
    state = {"alive": True}
    port = free_port()
    Probes(port, {"/livez": lambda: state["alive"], "/readyz": lambda: False})
    assert (status(port, "/livez"), status(port, "/readyz?verbose")) == (200, 503)
    state["alive"] = False
    assert status(port, "/livez", "HEAD") == 503
    assert status(port, "/metrics") == 404
    assert status(port, "/livez", "POST") == 404


def test_an_answer_that_fails_is_no_yes() -> None:
    def broken() -> bool:
        raise RuntimeError

    port = free_port()
    Probes(port, {"/livez": broken, "/readyz": lambda: True})
    with pytest.raises(http.client.RemoteDisconnected):
        status(port, "/livez")
    assert status(port, "/readyz") == 200


def test_strangers_who_connect_and_say_nothing_or_too_much_keep_nobody_out() -> None:
    port = free_port()
    Probes(port, {"/livez": lambda: True})
    silent = []
    for _ in range(3 * MOST_CONNECTIONS):
        silent.append(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
    try:
        assert status(port, "/livez") == 200
        talker = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        # Closed, with or without a reset.
        with talker, suppress(ConnectionError):
            talker.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 4 * MOST_BYTES)
            assert talker.recv(100) == b""
        assert status(port, "/livez") == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_port_that_somebody_has_is_said() -> None:
    with socket.create_server(("", 0)) as taken, pytest.raises(ProbesError, match="choose another"):
        listen(taken.getsockname()[1])


def test_several_processes_may_share_a_port() -> None:
    first = listen(0, shared=True)
    with first, listen(first.getsockname()[1], shared=True):
        pass
