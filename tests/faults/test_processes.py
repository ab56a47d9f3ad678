"""Workers that end, die or hang under load."""

from __future__ import annotations

import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.closed_loop import ClosedLoop
from tests.servers import SERVICE, classify, free_port, get, samples, serving_process

pytestmark = pytest.mark.faults

SECONDS = 60


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Check again and again, because a busy server answers late."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def workers_of(server: int) -> list[psutil.Process]:
    """The workers of the server with this process id."""
    values = []
    for child in psutil.Process(server).children(recursive=True):
        # A process that has just died is no longer a worker.
        with suppress(psutil.NoSuchProcess):
            if "_bentoml_impl.worker.service" in child.cmdline():
                values.append(child)
    return values


def pids_of_workers(server: int) -> set[int]:
    """The process ids of the workers; they change when one is replaced."""
    return {worker.pid for worker in workers_of(server)}


class Two:
    """A server of two workers, and its port for probes."""

    def __init__(self, address: str, pid: int, probe_port: int) -> None:
        self.address = address
        self.pid = pid
        self._probe_port = probe_port

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.pid)

    def probe(self, path: str) -> int:
        """The status on the probe port; 0 where nobody answers."""
        try:
            address = f"http://127.0.0.1:{self._probe_port}{path}"
            with urllib.request.urlopen(address, timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def is_whole(self) -> bool:
        """Whether both workers run and are ready."""
        if (self.probe("/readyz"), self.probe("/livez")) != (200, 200):
            return False
        values = samples(get(self.address, "/metrics")[1])
        return len(self.workers()) == 2 and values["whetstone_ready",] == 2


@contextmanager
def two_workers(package: Path, log: Path, **settings: str) -> Iterator[Two]:
    port = free_port()
    environment = {
        "WHETSTONE_PACKAGE": str(package),
        "WHETSTONE_WORKERS": "2",
        "WHETSTONE_PROBE_PORT": str(port),
        **settings,
    }
    with serving_process(SERVICE, environment, log=log) as (address, process):
        server = Two(address, process.pid, port)
        wait_until(server.is_whole, "two workers that are ready")
        try:
            yield server
        finally:
            # A worker that a test stopped would not end.
            with suppress(psutil.NoSuchProcess):
                for worker in server.workers():
                    worker.resume()


@contextmanager
def load(address: str, signalled: list[float]) -> Iterator[list[ClosedLoop]]:
    """Eight callers in closed loops, until the server closes their connections for good."""
    clients = [ClosedLoop(address, signalled) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(1)
    yield clients


def test_two_workers_answer_open_requests_before_they_end(
    tiny_package: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    signalled: list[float] = []
    with two_workers(tiny_package, log) as server, load(server.address, signalled) as clients:
        signalled.append(time.monotonic())
        psutil.Process(server.pid).send_signal(signal.SIGTERM)
        for client in clients:
            client.join(SECONDS)
        assert [client.lost for client in clients if client.lost] == []
        assert {status for client in clients for status in client.statuses} == {200}
        psutil.Process(server.pid).wait(SECONDS)
    assert log.read_text("utf-8").count("draining") == 2


def test_a_killed_worker_is_replaced_while_the_other_answers(
    tiny_package: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with two_workers(tiny_package, log) as server, load(server.address, []) as clients:
        killed = server.workers()[0]
        killed.kill()
        # The other worker answers all the time.
        for _ in range(50):
            assert classify(server.address, {"input": "hello"})["data"]
            time.sleep(0.02)
        wait_until(server.is_whole, "a replacement that is ready")
        assert killed.pid not in [worker.pid for worker in server.workers()]
        # Only requests of the dead worker are lost: at most one for each caller.
        assert all(len(client.lost) <= 1 for client in clients)
        before = samples(get(server.address, "/metrics")[1])["whetstone_texts_total",]
        for _ in range(20):
            classify(server.address, {"input": "hello"})
        wait_until(
            lambda: (
                samples(get(server.address, "/metrics")[1])["whetstone_texts_total",] >= before + 20
            ),
            "what both count",
        )
    assert "Traceback" not in log.read_text("utf-8")


def test_each_worker_reports_that_one_hangs(tiny_package: Path, tmp_path: Path) -> None:
    with two_workers(tiny_package, tmp_path / "log", WHETSTONE_STALL_MS="3000") as server:
        stopped = server.workers()[0]
        stopped.suspend()
        # The system chooses the worker by chance, and the one that hangs does not answer.
        wait_until(lambda: server.probe("/livez") == 503, "a probe that fails")
        stopped.resume()
        wait_until(server.is_whole, "both again")
        assert classify(server.address, {"input": "hello"})["data"]
