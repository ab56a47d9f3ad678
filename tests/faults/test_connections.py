"""Clients that hang, vanish, come in crowds, or ask for too much at once."""

from __future__ import annotations

import http.client
import json
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults.test_processes import wait_until, workers_of
from tests.servers import SECONDS, SERVICE, Server, free_port, serving, serving_process
from tests.test_operation import samples

pytestmark = pytest.mark.faults

# Far above what any of this takes, and below what a leak would.
MOST_MEMORY = 256 * 1024**2
BYSTANDERS = 20
HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def server(tiny_package: Path, tmp_path: Path) -> Iterator[Server]:
    log = tmp_path / "log"
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_BODY_TIMEOUT_MS": "3000"}
    with serving_process(SERVICE, environment, log=log) as (address, process):
        made = Server(address, log)
        (worker,) = workers_of(process.pid)
        files, memory = worker.num_fds(), worker.memory_info().rss
        yield made
        # Whatever happened: the next one is answered, and nothing was said of anybody's text.
        for path, body in (("/classify", {"input": "hello"}), ("/predict", {"inputs": "hello"})):
            assert made.ask(path, body)[0] == 200
        for path in ("/livez", "/readyz", "/metrics"):
            assert made.ask(path, method="GET")[0] == 200
        # The same worker, with what the connections took given back.
        assert workers_of(process.pid) == [worker]
        wait_until(lambda: worker.num_fds() <= files + 20, "connections that are closed")
        assert worker.memory_info().rss < memory + MOST_MEMORY
    said = log.read_text("utf-8")
    assert "Traceback" not in said and "secret" not in said


def crowd_of(server: Server, text: str, count: int = 80) -> Counter[int]:
    """Statuses of a crowd with a long text each, and of bystanders in a hurry."""
    statuses: Counter[int] = Counter()
    lock = threading.Lock()

    def ask(body: dict[str, object], headers: dict[str, str]) -> None:
        status = server.ask("/classify", body, headers=headers)[0]
        with lock:
            statuses[status] += 1

    hurried = {"X-Request-Timeout-Ms": "300"}
    bystander = ({"input": "where is my parcel"}, hurried)
    crowd = [({"input": text}, {})] * count + [bystander] * BYSTANDERS
    threads = [threading.Thread(target=ask, args=each) for each in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return statuses


def test_heads_that_never_end(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.connect()).sendall(HEAD + b"X-Half: ")
        assert server.ask("/classify", {"input": "hello"})[0] == 200


def test_thousands_of_idle_connections(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 3000 if hard < 0 else min(3000, hard - 500)
    if count < 1000:
        pytest.skip(f"this process may have {hard} files open: raise the limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(server.connect())
        assert server.ask("/classify", {"input": "hello"})[0] == 200


def test_bodies_that_trickle_in_are_given_up(server: Server) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(100)]
        for connection in slow:
            connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"input":')
        assert server.ask("/classify", {"input": "hello"})[0] == 200
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 408"


def test_clients_that_vanish(server: Server) -> None:
    body = json.dumps({"input": ["secret word " * 30] * 20}).encode()
    for number in range(400):
        with server.connect() as connection:
            sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
            # In the middle of the head, of the body, or right after it.
            connection.sendall(sent[: (20, 200, len(sent))[number % 3]])


def test_routes_that_nobody_has_make_no_series(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=SECONDS)
    for number in range(2000):
        connection.request("GET", f"/secret/{number}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    connection.close()
    found = samples(server.ask("/metrics", method="GET")[1])
    routes = {key[1] for key in found if key[0] == "whetstone_requests_total"}
    assert len(routes) < 10
    assert found["whetstone_requests_total", "other", "404"] == 2000


def test_with_tracing_neither_do_models_that_nobody_has(tiny_package: Path, tmp_path: Path) -> None:
    """Every request passes BentoML's middlewares then, and their metrics go by path."""
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_TRACING_URL": f"http://127.0.0.1:{free_port()}/v1/traces",
    }
    with serving(SERVICE, environment, log=tmp_path / "log") as address:
        server = Server(address, tmp_path / "log")

        def ask(suffix: str) -> None:
            assert server.ask("/v1/models/tiny", method="GET")[0] == 200
            for path in ("/v1/models/secret", "/secret/"):
                assert server.ask(path + suffix, method="GET")[0] == 404

        ask("")
        # Asking is counted, too: the second answer has a series for the first.
        server.ask("/metrics", method="GET")
        before = server.ask("/metrics", method="GET")[1]
        for number in range(200):
            ask(str(number))
        after = server.ask("/metrics", method="GET")[1]
        assert "secret" not in after
        assert len(after.splitlines()) < len(before.splitlines()) + 10
        assert server.ask("/classify", {"input": "hello"})[0] == 200


@pytest.mark.parametrize("text", ["x" * 100_000, "中" * 100_000, ("w" * 99 + "\n") * 1000])
def test_a_crowd_of_long_texts_and_bystanders_in_a_hurry(server: Server, text: str) -> None:
    """Everybody gets an answer: the work, a refusal, or that it is too late."""
    statuses = crowd_of(server, text)
    assert set(statuses) <= {200, 429, 504}
    assert statuses.total() == 80 + BYSTANDERS
