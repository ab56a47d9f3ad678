"""A real S3 server on this machine, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec import filesystem

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "whetstone", "AWS_SECRET_ACCESS_KEY": "hush-hush"}


def ask(
    url: str, body: bytes = b"", method: str = "POST", headers: dict[str, str] | None = None
) -> bytes:
    request = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def answers(address: str) -> bool:
    try:
        ask(f"{address}/moto-api/data.json", method="GET")
    except OSError:
        return False
    return True


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    from tests.servers import free_port

    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: answers(address), 60)
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket, and an environment that reaches it and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nothing = tmp_path / "nothing"
    nothing.touch()
    found = CREDENTIALS | {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(nothing),
        "AWS_SHARED_CREDENTIALS_FILE": str(nothing),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    # A file system keeps the credentials that it was made with.
    filesystem("s3").clear_instance_cache()
    ask(f"{s3_server}/moto-api/reset", method="POST")
    ask(f"{s3_server}/models", method="PUT")
    return "s3://models/whetstone"
