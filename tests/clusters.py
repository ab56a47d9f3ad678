"""Real clusters on this machine: two nodes of Ray, and the executors of Spark."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.s3 import wait_until
from tests.servers import free_port

# A node that starts on a busy machine has given up once or twice.
ATTEMPTS = 3
SECONDS = 180
# What a node of Ray's holds in memory for objects; it wants at least this much.
OBJECT_BYTES = 80_000_000
EXECUTOR = "CoarseGrainedExecutorBackend"


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """What every process of a cluster needs: this project, and no network but this machine's."""
    # As it is where nobody sets it: a server that is busy for a moment fails no piece.
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # As in the guide: nodes and commands that know the same token.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("RAY_ADDRESS", "SPARK_HOME", "PYSPARK_SUBMIT_ARGS"):
        monkeypatch.delenv(name, raising=False)


class RayCluster:
    """A head and one more node, with one core each; both are started as people start them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._commands: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"

    def start_nodes(self) -> None:
        """Start the head, then the other node."""
        folder = str(self._folder / "ray")
        ports = ["--port", str(self._port), "--ray-client-server-port", str(free_port())]
        options = ["--temp-dir", folder, "--include-dashboard", "false"]
        self.head = self.start("--head", *ports, *options)
        self.node = self.start("--address", self.address)

    def start(self, *options: str) -> int:
        """`ray start OPTIONS`; the process id of the node's raylet."""
        before = set(self._raylets())
        words = [str(Path(sys.executable).with_name("ray")), "start", *options, "--block"]
        words += ["--num-cpus", "1", "--object-store-memory", str(OBJECT_BYTES)]
        words += ["--min-worker-port", "0", "--max-worker-port", "0"]
        for _ in range(ATTEMPTS):
            log = self._folder / f"node-{len(self._commands)}.log"
            with log.open("w", encoding="utf-8") as output:
                process = subprocess.Popen(
                    [*words, *_agent_ports()],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._commands.append(process)

            def is_settled(process: subprocess.Popen[bytes] = process, log: Path = log) -> bool:
                return process.poll() is not None or "Ray runtime started" in log.read_text("utf-8")

            wait_until(is_settled, SECONDS)
            if process.poll() is None:
                (raylet,) = set(self._raylets()) - before
                return raylet
        raise AssertionError(log.read_text("utf-8")[-3000:])

    def workers_of(self, raylet: int) -> list[psutil.Process]:
        """The processes of a node that hold an actor of ours."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(raylet).children(recursive=True)
            return [child for child in children if "ScoringActor" in command_of(child)]
        return []

    def kill(self, raylet: int) -> None:
        """End a node as a machine that loses its power: its workers end with it."""
        os.kill(raylet, signal.SIGKILL)

    def stop(self) -> None:
        """End every process of the cluster, found by its folder, which no other cluster has."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for command in self._commands:
                with suppress(ProcessLookupError):
                    os.killpg(command.pid, sent)
            for process in psutil.process_iter():
                if str(self._folder) in command_of(process):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
        for command in self._commands:
            command.wait()

    def _raylets(self) -> Iterator[int]:
        for process in psutil.process_iter():
            words = command_of(process)
            if "/raylet " in words and str(self._folder) in words:
                yield process.pid


def _agent_ports() -> list[str]:
    """A port for each agent of a node; without them the node waits until they have chosen some."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
    ports = [(f"--{name}-port", str(free_port())) for name in (*names, "metrics-export")]
    return [word for pair in ports for word in pair]


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Two nodes; sockets need a folder with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="wr", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        cluster.start_nodes()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def executors_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """The executors that a command of Spark's started."""
    children = psutil.Process(command.pid).children(recursive=True)
    return [child for child in children if EXECUTOR in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """The words of a process; Ray's workers say there which actor they hold."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A command with its output in a file; it is ended where the test does not wait for it."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        process.wait()


def wait_while_running(
    process: subprocess.Popen[str], log: Path, holds: Callable[[], bool]
) -> None:
    """Wait for something that happens while a command runs."""

    def has_ended() -> bool:
        return process.poll() is not None

    wait_until(lambda: has_ended() or holds(), SECONDS)
    assert not has_ended(), log.read_text("utf-8")[-3000:]
