"""Real servers in processes of their own, and our routes in this process, for tests."""

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

from prometheus_client.parser import text_string_to_metric_families

from service.http.api_keys import ApiKeys
from service.http.routes import Routes
from service.inference.capacity import BATCH_TOKENS, Capacity
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.settings import Settings
from tests.conftest import ROOT

SERVICE = "service.service:TextClassifier"
BENTOML = str(Path(sys.executable).with_name("bentoml"))
START_SECONDS = 120
# Far longer than the tiny model takes, and shorter than a person would wait.
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
            all_headers = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, content if method == "POST" else None, all_headers)
            answer = connection.getresponse()
            raw = answer.read()
            try:
                decoded = json.loads(raw)
            except ValueError:
                decoded = raw.decode()
            return answer.status, decoded, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=SECONDS)


def free_port() -> int:
    """A port that no process listens on, and that the system gives to no other one by itself.

    The system chooses from 32,768 on where a process asks for any port, as BentoML's supervisor
    does; a port from there can be taken before the server that it was meant for listens on it.
    """
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port has been used")


# Each process of tests begins at another place, and uses no port twice.
_FIRST_PORT, _PORTS = 10_000, 22_000
_ports = (_FIRST_PORT + (os.getpid() * 997 + number) % _PORTS for number in range(_PORTS))


@contextmanager
def serving(
    target: str,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    *,
    log: Path | None = None,
) -> Iterator[str]:
    """Run `bentoml serve TARGET ARGUMENTS` in its own process; yield its address.

    Its output goes to the file `log`, if one is given.
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
    """Like `serving`, for tests that end the process themselves.

    `prefix` is a command that starts the server.
    """
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


def samples(exposed: str) -> dict[tuple[str, ...], float]:
    """The values in the text of `/metrics`, by name and by the values of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


@contextmanager
def routes_of(
    classifier: Classifier,
    *,
    threads: int = 1,
    keys: ApiKeys | None = None,
    metrics: Any = None,
    **settings: Any,
) -> Iterator[Routes]:
    """Our routes in this process, which serve `classifier` with a real engine."""
    all_settings = Settings(**settings)
    routes = Routes(all_settings, keys)
    capacity = Capacity(
        threads=threads,
        batch_tokens=all_settings.batch_tokens or BATCH_TOKENS["cpu"],
        queue_tokens=all_settings.queue_tokens,
    )
    engine = Engine(classifier, capacity, answers=classifier.row_answers)
    routes.attach(classifier, engine, metrics)
    try:
        yield routes
    finally:
        routes.lifecycle.close()
