"""The surroundings of a server: its home, its disk, the clock, the file of API keys."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from service.http.routes import BENTOML_ROUTES, HUB_ROUTE, MODEL_ROUTE, ROUTES
from tests.faults.test_processes import pids_of_workers
from tests.servers import SERVICE, Server, free_port, samples, serving, serving_process

pytestmark = pytest.mark.faults

SECONDS = 60
# Shifts the wall clock of one process by the seconds in a file, and no other clock.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int values = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += shift();
    return values;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
"""


def line_of(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()} somebody\n"


def replace(path: Path, content: str) -> None:
    """Replace a file as Kubernetes does: written under another name, then renamed."""
    new = path.with_name("new")
    new.write_text(content, "utf-8")
    new.replace(path)


def test_api_keys_can_be_replaced_under_load(tiny_package: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    replace(keys, line_of("first") + line_of("second"))
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_API_KEYS_FILE": str(keys)}
    statuses: dict[str, Counter[int]] = {key: Counter() for key in ("first", "second")}
    ended = threading.Event()
    with serving(SERVICE, environment, log=tmp_path / "log") as address:
        server = Server(address, tmp_path / "log")

        def ask(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return server.ask("/classify", {"input": "hello"}, headers=headers)[0]

        def keep_asking(key: str) -> None:
            while not ended.is_set():
                statuses[key][ask(key)] += 1

        callers = [threading.Thread(target=keep_asking, args=("second",)) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            replace(keys, line_of("second"))
            wait_for(lambda: ask("first") == 401)
            replace(keys, "the key itself\n")
            time.sleep(2.5)
            assert ask("second") == 200
            replace(keys, line_of("second") + line_of("third"))
            wait_for(lambda: ask("third") == 200)
        finally:
            ended.set()
            for caller in callers:
                caller.join(SECONDS)
    assert set(statuses["second"]) == {200}
    log = (tmp_path / "log").read_text("utf-8")
    assert "the API keys did not change" in log and "the key itself" not in log


def wait_for(holds: object) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.2)


BODY = b'{"input": "hello"}'


def half_sent(server: Server, key: str) -> socket.socket:
    """A connection on which a request with ten bytes of its body was sent."""
    connection = server.connect()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    kind = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    connection.sendall((head + kind).encode() + BODY[:10])
    # The server has begun to read it before the clock is set.
    time.sleep(0.2)
    return connection


def made_shim(folder: Path) -> Path:
    """The library that shifts the clock."""
    (folder / "shim.c").write_text(SHIM, "utf-8")
    shim = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(shim), str(folder / "shim.c"), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        pytest.skip("there is no gcc to make the clock with")
    return shim


def check_requests_under_way(server: Server, key: str, shift: Path, seconds: int) -> None:
    """Set the clock while bodies arrive: one that continues is in time, one that stops is late."""
    with half_sent(server, key) as goes_on, half_sent(server, key) as does_not:
        shift.write_text(str(seconds))
        goes_on.sendall(BODY[10:])
        assert goes_on.recv(12) == b"HTTP/1.1 200"
        assert does_not.recv(12) == b"HTTP/1.1 408"


def test_the_server_survives_a_clock_that_is_set(tiny_package: Path, tmp_path: Path) -> None:
    shim = made_shim(tmp_path)
    shift = tmp_path / "shift"
    shift.write_text("0")
    keys = tmp_path / "keys"
    keys.write_text(line_of("first"))
    port = free_port()
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_API_KEYS_FILE": str(keys),
        "WHETSTONE_PROBE_PORT": str(port),
        "WHETSTONE_WORKERS": "2",
        "WHETSTONE_BODY_TIMEOUT_MS": "3000",
        "LD_PRELOAD": str(shim),
        "CLOCK_SHIFT": str(shift),
    }
    with serving(SERVICE, environment, log=tmp_path / "log") as address:
        server = Server(address, tmp_path / "log")
        for number, seconds in enumerate((0, 86_400 * 400, -86_400 * 400, 3600, 0)):
            held = "first" if number < 4 else "other"
            check_requests_under_way(server, held, shift, seconds)
            key = "first" if number < 3 else "other"
            headers = {"Authorization": f"Bearer {key}"}
            if number == 3:
                replace(keys, line_of("other"))
                wait_for(
                    lambda: server.ask("/classify", {"input": "a"}, headers=headers)[0] == 200  # noqa: B023
                )
                # The other worker checks the file at another time.
                time.sleep(2.5)
            for _ in range(10):
                status, answer, _ = server.ask("/classify", {"input": "hello"}, headers=headers)
                assert status == 200
            # The clock was really shifted.
            assert abs(answer["created"] - (time.time() + seconds)) < 60
            for asked in (server, Server(f"http://127.0.0.1:{port}", tmp_path / "log")):
                for path in ("/livez", "/readyz"):
                    assert asked.ask(path, method="GET")[0] == 200
    assert "Traceback" not in (tmp_path / "log").read_text("utf-8")


def test_the_server_runs_with_a_read_only_home(tiny_package: Path, tmp_path: Path) -> None:
    """A file in place of the home: even the superuser cannot write there."""
    home = tmp_path / "home"
    home.write_text("")
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "HOME": str(home),
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    with serving(SERVICE, environment, log=tmp_path / "log") as address:
        server = Server(address, tmp_path / "log")
        assert server.ask("/classify", {"input": "hello"})[0] == 200
        assert server.ask("/metrics", method="GET")[0] == 200
    assert home.read_text() == ""


# Without capabilities, even the superuser writes only where the mode allows it.
WITHOUT_RIGHTS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
# Like a pod with readOnlyRootFilesystem: only one folder is writable.
READ_ONLY_ROOT = [
    *["unshare", "--mount", "sh", "-c"],
    'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"',
]


@pytest.mark.parametrize("kind", ["home", "root"])
def test_one_writable_folder_is_enough(tiny_package: Path, tmp_path: Path, kind: str) -> None:
    home, writable = tmp_path / "home", tmp_path / "writable"
    home.mkdir()
    home.chmod(0o555)
    writable.mkdir()
    prefix = WITHOUT_RIGHTS if kind == "home" else [*READ_ONLY_ROOT, str(writable)]
    asked = 'touch "$1"/ours && ! touch "$0"/strange'
    tried = [*prefix, "sh", "-c", asked, str(home), str(writable)]
    try:
        values = subprocess.run(tried, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        pytest.skip(f"there is no {prefix[0]} here")
    if values.returncode:
        pytest.skip("rights cannot be taken away here: run this as root")
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_WORKERS": "2",
        "HOME": str(home),
        "BENTOML_HOME": str(writable / "bentoml"),
        "TMPDIR": str(writable),
    }
    log = tmp_path / "log"
    with serving_process(SERVICE, environment, log=log, prefix=prefix) as (address, _):
        server = Server(address, log)
        assert server.ask("/classify", {"input": "hello"})[0] == 200
        for path in ("/livez", "/readyz"):
            assert server.ask(path, method="GET")[0] == 200
        wait_for(lambda: ready_workers(server) == 2)
    assert list(home.iterdir()) == []
    assert "Traceback" not in log.read_text("utf-8")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, timeout=SECONDS).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here: run this as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=SECONDS)


def ready_workers(server: Server) -> float:
    """The number of ready workers in `/metrics`."""
    return samples(server.ask("/metrics", method="GET")[1]).get(("whetstone_ready",), 0.0)


def fill(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with path.open("wb", buffering=0) as filling:
        for size in (65_536, 512):
            with suppress(OSError):
                while True:
                    filling.write(b"x" * size)


def ask_everything(server: Server) -> None:
    """Request every route with several statuses, so that each needs room for its series."""
    names = {HUB_ROUTE: "/", MODEL_ROUTE: "/v1/models/tiny"}
    good = {"inputs": "hello"}
    for route in (*ROUTES, *sorted(BENTOML_ROUTES), "/nowhere"):
        path = names.get(route, route)
        server.ask(path, method="GET")
        for body in ({"input": "hello"}, good, {}, b"{"):
            server.ask(path, body)
        server.ask(path, good, headers={"Content-Type": "text/plain"})
        server.ask(path, good, headers={"X-Request-Timeout-Ms": "1"})


@pytest.mark.parametrize("workers", [1, 2])
def test_the_server_survives_a_full_disk(tiny_package: Path, tmp_path: Path, workers: int) -> None:
    """The folder of metrics and of the workers' reports has no room left."""
    log = tmp_path / "log"
    port = free_port()
    with small_disk(tmp_path / "small") as small:
        environment = {
            "WHETSTONE_PACKAGE": str(tiny_package),
            "WHETSTONE_WORKERS": str(workers),
            "WHETSTONE_STALL_MS": "3000",
            "WHETSTONE_PROBE_PORT": str(port),
            "BENTOML_HOME": str(small),
        }
        with serving_process(SERVICE, environment, log=log) as (address, process):
            server, probes = Server(address, log), Server(f"http://127.0.0.1:{port}", log)
            wait_for(lambda: ready_workers(server) == workers)
            before = pids_of_workers(process.pid)
            fill(small / "filling")
            ask_everything(server)
            # Longer than a worker may stay silent.
            until = time.monotonic() + 6
            while time.monotonic() < until:
                for asked in (server, probes):
                    for path in ("/livez", "/readyz"):
                        assert asked.ask(path, method="GET")[0] == 200
                assert server.ask("/classify", {"input": "hello"})[0] == 200
                time.sleep(0.2)
            assert pids_of_workers(process.pid) == before
            (small / "filling").unlink()
            assert ready_workers(server) == workers
            values = samples(server.ask("/metrics", method="GET")[1])
            assert values["whetstone_requests_total", "/predict", "200"] >= 1
    assert "Traceback" not in log.read_text("utf-8")
