"""Draining after a signal, a thread that hangs, and the first line of the log."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.package.manifest import read_manifest
from tests.closed_loop import BODY, SECONDS, ClosedLoop
from tests.servers import SERVICE, classify, get, samples, serving, serving_process

REQUEST = (
    b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY


def test_every_request_before_the_signal_is_answered(tiny_package: Path, tmp_path: Path) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_DRAIN_MS": "2000"}
    log = tmp_path / "log"
    with serving_process(SERVICE, environment, log=log) as (address, process):
        signalled: list[float] = []
        clients = [ClosedLoop(address, signalled) for _ in range(16)]
        for client in clients:
            client.start()
        # A connection that was answered once and is idle until the drain has begun.
        silent = http.client.HTTPConnection(urlsplit(address).netloc, timeout=SECONDS)
        silent.request("GET", "/readyz")
        assert silent.getresponse().read()
        time.sleep(1)
        # The worker has not accepted all of these connections when the signal comes.
        waiting = []
        for _ in range(200):
            connection = socket.create_connection(
                (urlsplit(address).hostname, urlsplit(address).port), timeout=SECONDS
            )
            connection.sendall(REQUEST)
            waiting.append(connection)
        signalled.append(time.monotonic())
        process.send_signal(signal.SIGTERM)
        while "draining" not in log.read_text("utf-8"):
            assert time.monotonic() < signalled[0] + SECONDS
            time.sleep(0.01)
        silent.request("GET", "/readyz")
        answer = silent.getresponse()
        assert (answer.status, answer.getheader("connection")) == (503, "close")
        answer.read()
        silent.close()
        heads = []
        for connection in waiting:
            with connection:
                heads.append(connection.recv(12))
        assert set(heads) == {b"HTTP/1.1 200"}
        for client in clients:
            client.join(SECONDS)
        process.wait(SECONDS)
        took = time.monotonic() - signalled[0]
    assert [client.lost for client in clients if client.lost] == []
    assert {status for client in clients for status in client.statuses} == {200}
    assert all(client.closes for client in clients)
    # The drain, and the time that uvicorn and BentoML need to end.
    assert took < 2 + 20


def test_a_drain_ends_at_once_without_open_connections(tiny_package: Path, tmp_path: Path) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_DRAIN_MS": "60000"}
    with serving_process(SERVICE, environment, log=tmp_path / "log") as (address, process):
        classify(address, {"input": "hello"})
        process.terminate()
        process.wait(30)


def test_a_thread_that_hangs_fails_the_liveness_probe_and_the_server_still_ends(
    tiny_package: Path, tmp_path: Path
) -> None:
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_THREADS": "2",
        "WHETSTONE_STALL_MS": "700",
        "WHETSTONE_TIMEOUT_MS": "1500",
        "WHETSTONE_BODY_TIMEOUT_MS": "1500",
        "WHETSTONE_ACCESS_LOG": "1",
        "WEDGE": str(tmp_path / "wedge"),
    }
    target = "tests.wedged:TextClassifier"
    log = tmp_path / "log"
    with serving_process(target, environment, log=log) as (address, process):
        assert get(address, "/livez")[0] == 200
        (tmp_path / "wedge").touch()
        body = {"input": "a b c d " * 20}
        with pytest.raises(OSError, match="504"):
            classify(address, body)
        # The other thread still answers, but the probe reports the one that hangs.
        classify(address, {"input": "hello"})
        assert get(address, "/livez")[0] == 503
        values = samples(get(address, "/metrics")[1])
        assert values["whetstone_last_progress_timestamp_seconds",] < time.time() - 1
        # The metrics show the cause after a restart.
        assert values["whetstone_requests_total", "/livez", "200"] == 1
        assert values["whetstone_requests_total", "/livez", "503"] == 1
        lines = [line for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
        logged = [json.loads(line) for line in lines]
        assert [line["status"] for line in logged if line["route"] == "/livez"] == [503]
        assert {line["route"] for line in logged} >= {"/classify"}
        assert "/metrics" not in {line["route"] for line in logged}
        process.terminate()
        process.wait(30)


def test_the_first_log_line_names_the_model_and_the_limits(
    tiny_package: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_MAX_TEXTS": "7"}
    with serving(SERVICE, environment, log=log):
        pass
    manifest = read_manifest(tiny_package)
    (line,) = [line for line in log.read_text("utf-8").splitlines() if "serving tiny:" in line]
    expected = f"tiny:{manifest.version}, {manifest.precision}, 3 labels, no API key needed, on cpu"
    assert expected in line
    assert re.search(r"\d+ threads, batches of 128 tokens", line)
    assert "at most 7 texts of 100000 characters in 1048576 bytes" in line
