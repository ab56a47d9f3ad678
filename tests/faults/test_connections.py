"""Clients that hang, vanish, arrive in crowds, or ask for too much at once."""

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
from tests.servers import SECONDS, SERVICE, Server, free_port, samples, serving, serving_process

pytestmark = pytest.mark.faults

# More than any of these tests needs, and less than a leak would take.
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
        # Afterwards, requests are answered, and no text is in the log.
        for path, body in (("/classify", {"input": "hello"}), ("/predict", {"inputs": "hello"})):
            assert made.ask(path, body)[0] == 200
        for path in ("/livez", "/readyz", "/metrics"):
            assert made.ask(path, method="GET")[0] == 200
        # It is the same worker, and it has freed what the connections took.
        assert workers_of(process.pid) == [worker]
        wait_until(lambda: worker.num_fds() <= files + 20, "connections that are closed")
        assert worker.memory_info().rss < memory + MOST_MEMORY
    log_text = log.read_text("utf-8")
    assert "Traceback" not in log_text and "secret" not in log_text


def crowd_of(server: Server, text: str, count: int = 80) -> Counter[int]:
    """The statuses of a crowd with long texts, and of bystanders with short deadlines."""
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


def test_the_server_survives_heads_that_never_end(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.connect()).sendall(HEAD + b"X-Half: ")
        assert server.ask("/classify", {"input": "hello"})[0] == 200


def test_the_server_survives_thousands_of_idle_connections(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 3000 if hard < 0 else min(3000, hard - 500)
    if count < 1000:
        pytest.skip(f"this process may have {hard} files open: raise the limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(server.connect())
        assert server.ask("/classify", {"input": "hello"})[0] == 200


def test_slow_bodies_time_out(server: Server) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(100)]
        for connection in slow:
            connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"input":')
        assert server.ask("/classify", {"input": "hello"})[0] == 200
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 408"


def test_the_server_survives_clients_that_vanish(server: Server) -> None:
    body = json.dumps({"input": ["secret word " * 30] * 20}).encode()
    for number in range(400):
        with server.connect() as connection:
            sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
            # In the middle of the head or of the body, or right after it.
            connection.sendall(sent[: (20, 200, len(sent))[number % 3]])


def test_unknown_routes_create_no_series(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=SECONDS)
    for number in range(2000):
        connection.request("GET", f"/secret/{number}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    connection.close()
    values = samples(server.ask("/metrics", method="GET")[1])
    routes = {key[1] for key in values if key[0] == "whetstone_requests_total"}
    assert len(routes) < 10
    assert values["whetstone_requests_total", "other", "404"] == 2000


def test_unknown_models_create_no_series_with_tracing(tiny_package: Path, tmp_path: Path) -> None:
    """With tracing, requests pass BentoML's middlewares, which have a series for each path."""
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
        # The request itself is counted, so the second answer has a series for the first.
        server.ask("/metrics", method="GET")
        before = server.ask("/metrics", method="GET")[1]
        for number in range(200):
            ask(str(number))
        after = server.ask("/metrics", method="GET")[1]
        assert "secret" not in after
        assert len(after.splitlines()) < len(before.splitlines()) + 10
        assert server.ask("/classify", {"input": "hello"})[0] == 200


@pytest.mark.parametrize("text", ["x" * 100_000, "中" * 100_000, ("w" * 99 + "\n") * 1000])
def test_a_crowd_of_long_texts_and_urgent_requests_are_all_answered_in_time(
    server: Server, text: str
) -> None:
    """Every caller gets a result, a refusal, or a passed deadline."""
    statuses = crowd_of(server, text)
    assert set(statuses) <= {200, 429, 504}
    assert statuses.total() == 80 + BYSTANDERS
