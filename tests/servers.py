"""Real servers in real processes, for the tests that need one, and our routes without one."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.api_keys import ApiKeys
from service.classifier import Classifier
from service.inference.engine import Engine
from service.routes import Routes
from service.settings import Settings
from tests.conftest import ROOT

SERVICE = "service.service:TextClassifier"
BENTOML = str(Path(sys.executable).with_name("bentoml"))
START_SECONDS = 120
# Far above what the tiny model takes; below what a person would wait.
SECONDS = 30


class Server:
    """A running server and its log."""

    def __init__(self, address: str, log: Path) -> None:
        self.log = log
        self.address = address
        parts = urlsplit(address)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers; `body` is bytes, or is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        try:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            given = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, content if method == "POST" else None, given)
            answer = connection.getresponse()
            read = answer.read()
            try:
                decoded = json.loads(read)
            except ValueError:
                decoded = read.decode()
            return answer.status, decoded, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=SECONDS)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(
    target: str,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    *,
    log: Path | None = None,
) -> Iterator[str]:
    """`bentoml serve TARGET ARGUMENTS`, in its own process; yields its address, ends it after.

    What it prints goes to the file `log` where there is one.
    """
    with serving_process(target, environment, arguments, log=log) as (address, _):
        yield address


@contextmanager
def serving_process(
    target: str,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    *,
    log: Path | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same, for tests that end the process themselves; `prefix` is a command that starts it."""
    port = free_port()
    output = log.open("w", encoding="utf-8") if log else None
    server = subprocess.Popen(
        [*prefix, BENTOML, "serve", target, "--host", "127.0.0.1", "--port", str(port), *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(server, address)
        yield address, server
    finally:
        server.terminate()
        server.communicate(timeout=60)
        if output:
            output.close()


def _wait_until_ready(server: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise AssertionError(f"the server ended: {server.communicate()[0]}")
        try:
            if get(address, "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not get ready")


def get(address: str, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def classify(address: str, body: Any) -> Any:
    """The decoded answer to `POST /classify`."""
    request = urllib.request.Request(
        f"{address}/classify",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def routes_of(
    classifier: Classifier,
    *,
    threads: int = 1,
    keys: ApiKeys | None = None,
    metrics: Any = None,
    **settings: Any,
) -> Iterator[Routes]:
    """Our routes in this process, serving `classifier` by a real engine."""
    chosen = Settings(**settings)
    routes = Routes(chosen, keys)
    batch_tokens = chosen.batch_tokens or 128
    engine = Engine(
        classifier,
        answers=classifier.row_answers,
        threads=threads,
        batch_tokens=batch_tokens,
        queue_tokens=chosen.queue_tokens,
    )
    routes.attach(classifier, engine, metrics)
    try:
        yield routes
    finally:
        routes.close()
