"""A load generator and a stopwatch for servers, shared by the benchmarks.

Closed loop (`drive`): each connection sends its next request when the last one was answered. Open
loop (`drive_open`): requests come when they come, whatever was answered. Loopback only.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

import numpy as np
import psutil
import uvloop

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 60
# Of one run; what takes longer hangs.
MOST_SECONDS = 300
# An open loop waits so long for the last answers.
LAST_ANSWERS_SECONDS = 30
# uvicorn closes connections that are idle for five seconds: a request must not meet that.
IDLE_SECONDS = 4.0
# Connections that are opened at a time before an open loop begins.
OPENED_AT_ONCE = 64
PACKAGES = ("bentoml", "onnxruntime", "orjson", "starlette", "tokenizers", "uvicorn", "uvloop")


class ServerError(Exception):
    """A server that ended, or did not get ready; the message is the end of what it printed."""


def percentile(values: Sequence[float], share: float) -> float:
    """What this share of the values stays within: the nearest value, none in between."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass
class Load:
    """What came back: `latencies` in seconds, of successes only; `places` says of which request."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def percentile(self, share: float) -> float:
        """Latency in seconds that this share of the successes stayed within."""
        return percentile(self.latencies, share)


class _Answers(asyncio.Protocol):
    """Reads the answers of a keep-alive connection, one at a time; each must state its length."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        start = lowered.index(b"content-length:") + len(b"content-length:")
        length = int(lowered[start:].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._received = b""
        self.answered(int(head[9:12]))

    def answered(self, status: int) -> None:
        """One answer has come."""
        raise NotImplementedError


class _Connection(_Answers):
    """Sends the next request as soon as the last one was answered."""

    def __init__(
        self, load: Load, requests: Iterator[tuple[int, bytes]], ended: asyncio.Future[None]
    ) -> None:
        super().__init__()
        self._load = load
        self._requests = requests
        self._ended = ended
        self._place = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def _send(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self.transport.close()
            if not self._ended.done():
                self._ended.set_result(None)
            return
        self._place = request[0]
        self._sent_at = time.perf_counter()
        self.transport.write(request[1])

    def answered(self, status: int) -> None:
        self._load.statuses[status] += 1
        if status == 200:
            self._load.latencies.append(time.perf_counter() - self._sent_at)
            self._load.places.append(self._place)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or ConnectionError("the server closed a connection"))


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def drive(port: int, requests: Sequence[bytes], connections: int) -> Load:
    """Send every request once over so many connections at a time."""

    async def run() -> Load:
        load = Load()
        loop = asyncio.get_running_loop()
        waiting = iter(list(enumerate(requests)))
        ended = [loop.create_future() for _ in range(connections)]
        started = time.perf_counter()
        for future in ended:
            await loop.create_connection(
                lambda future=future: _Connection(load, waiting, future), HOST, port
            )
        async with asyncio.timeout(MOST_SECONDS):
            await asyncio.gather(*ended)
        load.seconds = time.perf_counter() - started
        return load

    return uvloop.run(run())


class Arrival(NamedTuple):
    """One request of an open loop; times in seconds.

    `due`: when it came, from the start on. `lag`: how much later it was sent. `took`: from there to
    its answer. `status`: 0 where there was no answer. `place`: which of the requests it was.
    `fresh`: over a connection that was opened for it.
    """

    due: float
    lag: float
    took: float
    status: int
    place: int
    fresh: bool = False


@dataclass
class OpenLoad:
    """What came of an open loop; `unsent` requests found every connection taken."""

    seconds: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    unsent: int = 0


class _Pooled(_Answers):
    """A connection that is lent to one request at a time."""

    def __init__(self, pool: _Pool) -> None:
        super().__init__()
        self._pool = pool
        self._request: tuple[float, int, bool] | None = None
        self._sent_at = 0.0
        self.free_since = time.perf_counter()

    def send(self, due: float, place: int, request: bytes, *, fresh: bool) -> None:
        """Send a request; nobody else has this connection."""
        self._request = (due, place, fresh)
        self._sent_at = time.perf_counter()
        self.transport.write(request)

    def answered(self, status: int) -> None:
        self._note(status)
        self.free_since = time.perf_counter()
        self._pool.free.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.connections -= 1
        if self._request is not None:
            self._note(0)
        elif self in self._pool.free:
            self._pool.free.remove(self)

    def _note(self, status: int) -> None:
        if self._request is None:
            raise ConnectionError("an answer that nobody asked for")
        due, place, fresh = self._request
        self._request = None
        self._pool.note(due, self._sent_at, status, place, fresh=fresh)


class _Pool:
    """Connections of an open loop, lent in turn, so that none of them is idle for long."""

    def __init__(self, port: int, most: int, load: OpenLoad) -> None:
        self._port = port
        self._most = most
        self._load = load
        self._connecting: set[asyncio.Task[None]] = set()
        self.started = time.perf_counter()
        self.free: deque[_Pooled] = deque()
        self.connections = 0
        self.waiting = 0

    def send(self, due: float, place: int, request: bytes) -> None:
        """Send a request now, over a new connection where all are taken."""
        while self.free:
            connection = self.free.popleft()
            idle = time.perf_counter() - connection.free_since
            if idle < IDLE_SECONDS and not connection.transport.is_closing():
                self.waiting += 1
                connection.send(due, place, request, fresh=False)
                return
            connection.transport.close()
        if self.connections >= self._most:
            self._load.unsent += 1
        else:
            self._start_connecting(due, place, request)

    async def _connect(self, due: float, place: int, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Pooled(self), HOST, self._port)
        except OSError:
            self.connections -= 1
            self.note(due, time.perf_counter(), 0, place)
            return
        connection.send(due, place, request, fresh=True)

    async def open(self, count: int, request: bytes) -> None:
        """Connect so many times before the first request; the time starts again after that.

        A connection is there once something was answered over it: the system completes it before
        the server has it.
        """
        last = time.perf_counter() + LAST_ANSWERS_SECONDS
        while self.connections < count and time.perf_counter() < last:
            for _ in range(min(OPENED_AT_ONCE, count - self.connections)):
                self._start_connecting(0.0, 0, request)
            while self.waiting and time.perf_counter() < last:
                await asyncio.sleep(0.001)
        self._load.arrivals.clear()
        self.started = time.perf_counter()

    def _start_connecting(self, due: float, place: int, request: bytes) -> None:
        self.waiting += 1
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._connect(due, place, request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def note(
        self, due: float, sent_at: float, status: int, place: int, *, fresh: bool = True
    ) -> None:
        """One request is over."""
        self.waiting -= 1
        took = time.perf_counter() - sent_at
        lag = sent_at - self.started - due
        self._load.arrivals.append(Arrival(due, lag, took, status, place, fresh))


def drive_open(
    port: int,
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    *,
    opened: int = 64,
    connections: int = 1024,
    on_tick: Callable[[float], object] | None = None,
    tick: float = 0.5,
    seed: int = 0,
) -> OpenLoad:
    """Send requests, one after another and from the start again, at Poisson times.

    Args:
        port: of a server on this machine.
        requests: as they go over the wire.
        rate: requests a second, on average.
        seconds: how long requests come; afterwards only answers do.
        opened: connections that are there before the first request, as a gateway has them.
        connections: at most; a request that finds all of them taken is not sent, and counted.
        on_tick: called with the seconds since the start, every `tick` seconds. It delays requests.
        tick: see `on_tick`.
        seed: of the times.
    """

    async def run() -> OpenLoad:
        load = OpenLoad()
        loop = asyncio.get_running_loop()
        pool = _Pool(port, connections, load)
        await pool.open(opened, requests[0])
        generator = np.random.default_rng(seed)
        due = generator.exponential(1 / rate)
        place = 0
        next_tick = tick
        while due < seconds:
            now = time.perf_counter() - pool.started
            if on_tick is not None and now >= next_tick:
                on_tick(now)
                next_tick = now + tick
            while due <= now and due < seconds:
                pool.send(due, place % len(requests), requests[place % len(requests)])
                place += 1
                due += generator.exponential(1 / rate)
            # The loop's timers count milliseconds; less than one would spin.
            await asyncio.sleep(max(0.001, min(due, next_tick) - now))
        last = loop.time() + LAST_ANSWERS_SECONDS
        while pool.waiting and loop.time() < last:
            await asyncio.sleep(0.005)
        load.seconds = time.perf_counter() - pool.started
        for _ in range(pool.waiting):
            load.arrivals.append(Arrival(seconds, 0.0, LAST_ANSWERS_SECONDS, 0, -1))
        for connection in pool.free:
            connection.transport.close()
        return load

    return uvloop.run(run())


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and those below it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and those below it, seconds since their start.

    With that of processes below it that have ended.
    """
    times = [process.cpu_times() for process in process_tree(pid)]
    return sum(
        used.user + used.system + used.children_user + used.children_system for used in times
    )


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory; what processes share counts for each of them."""
    return sum(process.memory_info().rss for process in processes)


class Memory:
    """Resident memory of a server and those below it, over time: `samples` of seconds and bytes.

    `restarts` counts how often one of its processes was gone.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._processes = process_tree(pid)
        self.samples = [(0.0, memory_bytes(self._processes))]
        self.restarts = 0

    def sample(self, elapsed: float) -> None:
        """Look once; cheap, as processes are listed only when one is gone."""
        try:
            size = memory_bytes(self._processes)
        except psutil.NoSuchProcess:
            self.restarts += 1
            self._processes = process_tree(self._pid)
            return
        self.samples.append((elapsed, size))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a server's threads: of those that compute, which are nicer, and the others."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {"computing": 0.0, "event loop": 0.0}
    for process in process_tree(pid):
        lowest = process.nice()
        for thread in process.threads():
            try:
                stat = Path(f"/proc/{process.pid}/task/{thread.id}/stat").read_text("utf-8")
            except OSError:
                continue
            # After the name, which is in parentheses: utime is the 12th field, nice the 17th.
            fields = stat.rpartition(")")[2].split()
            kind = "computing" if int(fields[16]) > lowest else "event loop"
            found[kind] += (int(fields[11]) + int(fields[12])) / ticks
    return found


def end_by_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: servers are stopped on the way."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str],
    ready: str = "/readyz",
    start_seconds: float = START_SECONDS,
) -> Iterator[int]:
    """Run a server in its own process until the block ends; yields its process id.

    Raises:
        ServerError: it ended, or it did not get ready in time.
    """
    # A file, not a pipe: nobody reads while it runs, and a full pipe stops who writes.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the benchmark, which then ends the server.
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, port, ready, start_seconds, log)
            yield process.pid
        finally:
            _stop(process)


@contextmanager
def whetstone_server(
    package: Path, home: Path, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Serve a package by its defaults until the block ends; yields the port and the process id.

    Args:
        home: BentoML's folder: nothing of this user's is read or changed.
        settings: environment variables of the service.

    Raises:
        ServerError: it ended, or it did not get ready in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:TextClassifier"]
    environment = {"WHETSTONE_PACKAGE": str(package.resolve()), "BENTOML_HOME": str(home)}
    words = [*command, "--host", HOST, "--port", str(port)]
    with server(words, port, environment | dict(settings or {})) as pid:
        yield port, pid


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and everything below it."""
    tree = process_tree(process.pid) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in tree:
        # A process that has another's number by now is not taken for it: psutil looks.
        if one.is_running() and one.pid != process.pid:
            one.kill()


def _wait_until_ready(
    process: subprocess.Popen[bytes], port: int, path: str, seconds: float, log: IO[Any]
) -> None:
    def printed() -> str:
        log.seek(0)
        return cast(bytes, log.read()).decode(errors="replace")[-2000:].strip()

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"a server ended: {printed()}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as error:
            # Not every server has the route that is asked.
            if error.code < 500:
                return
            time.sleep(0.05)
        except OSError:
            time.sleep(0.05)
    raise ServerError(f"a server did not get ready within {seconds:.0f} s: {printed()}")


def machine(of: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Where and with what a figure was measured; `of` are the packages that matter to it."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    packages = {}
    for name in of:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": packages,
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    print(f"written: {path}", file=sys.stderr)


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a result beside those of earlier runs, whole or not at all."""
    write_whole(path, json.dumps(result, indent=2) + "\n")
