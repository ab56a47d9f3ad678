"""`Upgrade` headers over raw sockets: they are ignored, and a body is never taken for a request."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from service.http.upgrades import MAX_PIPELINED
from tests.servers import SERVICE, Server, serving

BODY = b'{"input": "where is my parcel"}'
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
UPGRADES = [
    JAVA,
    ("connection: upgrade", "upgrade: websocket"),
    ("CONNECTION: UPGRADE", "UPGRADE: h2c"),
    ("Upgrade: TLS/1.0, h2c", "Connection: keep-alive", "Connection: Upgrade"),
    ("Upgrade: h2c", "Upgrade: websocket", "Connection: upgrade,keep-alive"),
    ("Upgrade:", "Connection: Upgrade"),
]


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(SERVICE, {"WHETSTONE_PACKAGE": str(tiny_package)}, log=log) as address:
        yield Server(address, log)


def post(headers: Sequence[str], body: bytes = BODY, *, chunked: bool = False) -> bytes:
    """The bytes of a request to /classify."""
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    lines = ("POST /classify HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, size)
    return "\r\n".join([*lines, "", ""]).encode() + sent


def answers(stream: BinaryIO, count: int) -> list[tuple[int, bytes]]:
    """The statuses and bodies of the next answers."""
    results = []
    for _ in range(count):
        status = int(stream.readline().split()[1])
        size = 0
        while (line := stream.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        results.append((status, stream.read(size)))
    return results


@contextmanager
def connected(server: Server) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """A connection without Nagle's delay, and a reader of its answers."""
    with closing(server.connect()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # One reader for all answers: a second one would miss the bytes in the first one's buffer.
        with closing(connection.makefile("rb")) as stream:
            yield connection, stream


def talk(server: Server, parts: Sequence[bytes], count: int) -> list[tuple[int, bytes]]:
    """Send each part in a packet of its own; expect exactly so many answers."""
    with connected(server) as (connection, stream):
        for part in parts:
            connection.sendall(part)
            if len(parts) > 1:
                time.sleep(0.002)
        results = answers(stream, count)
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            assert stream.read(1) == b""
    return results


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("headers", UPGRADES)
def test_an_upgrade_is_ignored_and_the_body_read(
    server: Server, headers: Sequence[str], chunked: bool
) -> None:
    whole = post(headers, chunked=chunked)
    end = whole.index(b"\r\n\r\n") + 4
    for parts in ((whole,), (whole[:end], whole[end:]), (whole[: end + 5], whole[end + 5 :])):
        # Followed, on the same connection, by a request without such a header.
        results = talk(server, [*parts, post(())], 2)
        assert [status for status, _ in results] == [200, 200]
        first, second = (json.loads(body)["data"] for _, body in results)
        assert first == second


def test_a_request_may_be_cut_anywhere(server: Server) -> None:
    whole = post(JAVA)
    with connected(server) as (connection, stream):
        for cut in range(1, len(whole)):
            connection.sendall(whole[:cut])
            time.sleep(0.001)
            connection.sendall(whole[cut:])
            assert [status for status, _ in answers(stream, 1)] == [200], cut
    results = talk(server, [bytes([byte]) for byte in whole], 1)
    assert [status for status, _ in results] == [200]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("headers", [(), *UPGRADES])
def test_a_body_is_never_a_request(server: Server, headers: Sequence[str], chunked: bool) -> None:
    inner = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    whole = post(headers, inner, chunked=chunked)
    end = whole.index(b"\r\n\r\n") + 4
    for parts in ((whole,), (whole[:end], whole[end:])):
        ((status, body),) = talk(server, parts, 1)
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_json")


@pytest.mark.parametrize("headers", [(), JAVA])
def test_a_trailer_is_not_a_header(server: Server, headers: Sequence[str]) -> None:
    whole = post(headers, chunked=True)
    trailed = whole.removesuffix(b"\r\n") + b"X-Request-Timeout-Ms: none\r\n\r\n"
    results = talk(server, [trailed + post(())], 2)
    assert [status for status, _ in results] == [200, 200]


def test_pipelined_requests_are_answered(server: Server) -> None:
    parts = [post(headers, chunked=number % 2 == 0) for number, headers in enumerate(UPGRADES)]
    get = b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    results = talk(server, [b"".join([*parts, get, *parts])], 13)
    assert [status for status, _ in results] == [200] * 13
    assert b'"labels"' in results[6][1]


def test_a_connection_with_too_many_pipelined_requests_is_closed(server: Server) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert len(talk(server, [get * 200], 200)) == 200
    many = 40 * MAX_PIPELINED
    received = b""
    with connected(server) as (connection, stream), suppress(ConnectionError):
        connection.sendall(get * many)
        while part := stream.read1():
            received += part
            # An open connection would wait here for ever.
            assert received.count(b"HTTP/1.1 200") < many


@pytest.mark.parametrize(
    "head",
    [
        "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n",
        # Requests that two parsers could read differently.
        "POST /classify HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "POST /classify HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
        "POST /classify HTTP/1.1\r\nX: a\r\n Content-Length: 9\r\nContent-Length: 3\r\n",
        "POST /classify HTTP/1.1\r\nX: a\rContent-Length: 9\r\nContent-Length: 3\r\n",
        "POST /classify HTTP/1.1\r\nContent-Length : 3\r\n",
        "PRI * HTTP/2.0\r\n",
    ],
)
def test_an_invalid_request_stays_invalid(server: Server, head: str) -> None:
    for more in ("", "Connection: Upgrade\r\nUpgrade: h2c\r\n"):
        lines = head.split("\r\n", 1)
        whole = f"{lines[0]}\r\n{more}{lines[1]}\r\nabc"
        with closing(server.connect()) as connection:
            connection.sendall(whole.encode())
            read = connection.recv(65_536)
            assert read.startswith(b"HTTP/1.1 400")
            assert len(re.findall(b"HTTP/1.1", read)) == 1
            assert connection.recv(1) == b""


def test_a_client_that_expects_100_continue_gets_it(server: Server) -> None:
    whole = post((*JAVA, "Expect: 100-continue"))
    end = whole.index(b"\r\n\r\n") + 4
    with connected(server) as (connection, stream):
        connection.sendall(whole[:end])
        assert stream.readline() + stream.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(whole[end:])
        assert [status for status, _ in answers(stream, 1)] == [200]
