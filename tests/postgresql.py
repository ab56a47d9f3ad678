"""A real PostgreSQL, Debian's, for the tests of what several machines share."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.servers import free_port

START_SECONDS = 60
USER = "whetstone"
# What must never be printed. The server asks for it, so that a wrong one is refused.
PASSWORD = "s3cret:{of}/the@study%"  # noqa: S105 - of a server that the test starts
PASSWORD_IN_URL = "s3cret%3A%7Bof%7D%2Fthe%40study%25"  # noqa: S105


def binaries() -> Path:
    """The folder of `initdb` and `postgres`; without them the test fails."""
    # Debian keeps them out of PATH, a folder for each version.
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")]
    for path in found:
        if path is not None:
            return Path(path).parent
    pytest.fail("install Debian's postgresql: make test-postgresql-setup")


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A server with an empty cluster in `folder`, ended after; its port on the loopback address."""
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    word = folder / "password"
    word.write_text(PASSWORD, "utf-8")
    word.chmod(0o644)
    data, log, port = folder / "data", folder / "log", free_port()
    make = [binaries() / "initdb", "-D", data, "-U", USER, "--pwfile", word]
    subprocess.run(
        [*make, "--auth=scram-sha-256", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
        **as_user,
    )
    words = [binaries() / "postgres", "-D", data, "-p", str(port), "-c", "fsync=off"]
    words += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with log.open("w") as lines:
        process = subprocess.Popen(words, stdout=lines, stderr=lines, cwd=folder, **as_user)
    try:
        _wait_until_ready(process, port, log)
        yield port
    finally:
        # The fast shutdown, which does not wait for clients.
        process.send_signal(signal.SIGINT)
        process.wait(timeout=START_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with _connect(port):
                return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)


def _connect(port: int) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1",
        port=port,
        user=USER,
        password=PASSWORD,
        dbname="postgres",
        autocommit=True,
    )


def drop_database(address: str) -> None:
    """Delete a database, from under those who use it."""
    parts = urlsplit(address)
    with _connect(int(parts.port or 0)) as connection:
        connection.execute(f"drop database {parts.path[1:]} with (force)".encode())


@pytest.fixture(scope="module")
def make_database() -> Iterator[Callable[[], str]]:
    """A function that makes an empty database and returns its address, as `--storage` takes it."""
    with (
        # Not tmp_path, whose parents are closed to other users.
        tempfile.TemporaryDirectory(prefix="whetstone-postgresql-") as folder,
        serving(Path(folder)) as port,
    ):
        names = (f"studies{number}" for number in itertools.count(1))

        def make() -> str:
            name = next(names)
            with _connect(port) as connection:
                connection.execute(f"create database {name}".encode())
            return f"postgresql://{USER}:{PASSWORD_IN_URL}@127.0.0.1:{port}/{name}"

        yield make
