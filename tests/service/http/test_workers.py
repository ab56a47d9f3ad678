"""Several processes that serve as one: each of them answers for all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.http.workers import Workers, WorkerState
from tests.service.clock import Clock

SILENCE = 30.0


class Other:
    """Another worker of the same server: a living process, and its reports."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.file = folder / f"worker_{os.getppid()}_{self.process.pid}.json"

    def report(self, *, at: float, ready: bool = True, alive: bool = True) -> None:
        self.file.write_text(json.dumps({"ready": ready, "alive": alive, "at": at}))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> object:
    made = Other(tmp_path)
    yield made
    made.end()


def test_one_worker_answers_for_itself_and_writes_nothing(tmp_path: Path) -> None:
    state = [WorkerState(False, True)]
    workers = Workers(1, tmp_path, SILENCE, lambda: state[-1])
    assert (workers.ready, workers.alive) == (False, True)
    state.append(WorkerState(True, False))
    assert (workers.ready, workers.alive) == (True, False)
    workers.report()
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_ready_once_all_its_workers_have_been(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: WorkerState(True, True), clock := Clock())
    assert not workers.ready
    other.report(at=clock.now, ready=False)
    assert not workers.ready
    other.report(at=clock.now)
    assert workers.ready
    # While one worker is replaced, the other one answers.
    other.end()
    assert workers.ready
    assert not other.file.exists()
    workers.close()


def test_a_server_is_not_ready_while_one_worker_drains(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: WorkerState(True, True), clock := Clock())
    other.report(at=clock.now)
    assert workers.ready
    other.report(at=clock.now, ready=False)
    assert not workers.ready
    assert workers.alive
    workers.close()


def test_a_server_is_not_alive_while_one_worker_is_stuck_or_silent(
    tmp_path: Path, other: Other
) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: WorkerState(True, True), clock := Clock())
    other.report(at=clock.now)
    assert workers.alive
    other.report(at=clock.now, alive=False)
    assert not workers.alive
    other.report(at=clock.now)
    clock.now += SILENCE + 1
    assert not workers.alive
    # A dead worker is replaced, so it does not count.
    other.end()
    assert workers.alive
    workers.close()


def test_the_workers_of_another_server_do_not_count(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: WorkerState(True, True), clock := Clock())
    other.file = tmp_path / f"worker_1_{other.process.pid}.json"
    other.report(at=clock.now, alive=False)
    assert workers.alive
    assert not workers.ready
    workers.close()


def test_a_worker_writes_its_state_under_its_process_id(tmp_path: Path) -> None:
    clock = Clock()
    workers = Workers(2, tmp_path, SILENCE, lambda: WorkerState(False, True), clock)
    (file,) = tmp_path.iterdir()
    assert file.name == f"worker_{os.getppid()}_{os.getpid()}.json"
    assert json.loads(file.read_text()) == {"ready": False, "alive": True, "at": clock.now}
    workers.close()


def test_a_worker_reports_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, state = Clock(), [WorkerState(True, True)]
    workers = Workers(2, tmp_path, SILENCE, lambda: state[-1], clock)
    workers.close()

    def no_room(_path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.http.workers.write_text", no_room)
    clock.now += SILENCE
    # Shorter and longer than the report before, of which nothing is left.
    for ready, alive in ((False, False), (True, True)):
        state.append(WorkerState(ready, alive))
        workers.report()
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text()) == {
            "ready": ready,
            "alive": alive,
            "at": clock.now,
        }
    assert not caplog.records
    # Where no report can be written at all, the worker goes on.
    file.unlink()
    workers.report()
    assert "a worker could not report its state" in caplog.text
