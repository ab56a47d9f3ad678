"""Several processes that serve as one: whichever is asked answers for all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.workers import Workers
from tests.inference.test_engine import Clock

SILENCE = 30.0


class Other:
    """Another worker of the same server: a process that lives, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.file = folder / f"worker_{os.getppid()}_{self.process.pid}.json"

    def say(self, *, at: float, ready: bool = True, alive: bool = True) -> None:
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
    state = [(False, True)]
    workers = Workers(1, tmp_path, SILENCE, lambda: state[-1])
    assert (workers.ready, workers.alive) == (False, True)
    state.append((True, False))
    assert (workers.ready, workers.alive) == (True, False)
    workers.say()
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_ready_once_all_its_workers_have_been(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: (True, True), clock := Clock())
    assert not workers.ready
    other.say(at=clock.now, ready=False)
    assert not workers.ready
    other.say(at=clock.now)
    assert workers.ready
    # One that is replaced leaves the other, which answers.
    other.end()
    assert workers.ready
    assert not other.file.exists()
    workers.close()


def test_one_that_drains_is_the_end_of_all(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: (True, True), clock := Clock())
    other.say(at=clock.now)
    assert workers.ready
    other.say(at=clock.now, ready=False)
    assert not workers.ready
    assert workers.alive
    workers.close()


def test_one_that_is_stuck_or_silent_is_seen_by_the_others(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: (True, True), clock := Clock())
    other.say(at=clock.now)
    assert workers.alive
    other.say(at=clock.now, alive=False)
    assert not workers.alive
    other.say(at=clock.now)
    clock.now += SILENCE + 1
    assert not workers.alive
    # Its replacement has another number.
    other.end()
    assert workers.alive
    workers.close()


def test_the_workers_of_another_server_do_not_count(tmp_path: Path, other: Other) -> None:
    workers = Workers(2, tmp_path, SILENCE, lambda: (True, True), clock := Clock())
    other.file = tmp_path / f"worker_1_{other.process.pid}.json"
    other.say(at=clock.now, alive=False)
    assert workers.alive
    assert not workers.ready
    workers.close()


def test_what_a_worker_says_is_what_the_others_read(tmp_path: Path) -> None:
    clock = Clock()
    workers = Workers(2, tmp_path, SILENCE, lambda: (False, True), clock)
    (file,) = tmp_path.iterdir()
    assert file.name == f"worker_{os.getppid()}_{os.getpid()}.json"
    assert json.loads(file.read_text()) == {"ready": False, "alive": True, "at": clock.now}
    workers.close()


def test_a_full_disk_silences_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, state = Clock(), [(True, True)]
    workers = Workers(2, tmp_path, SILENCE, lambda: state[-1], clock)
    workers.close()

    def no_room(_path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.workers.write_text", no_room)
    clock.now += SILENCE
    # Shorter and longer than what was said before: nothing of that is left.
    for said in ((False, False), (True, True)):
        state.append(said)
        workers.say()
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text()) == {
            "ready": said[0],
            "alive": said[1],
            "at": clock.now,
        }
    assert not caplog.records
    # Where it cannot be said at all, the worker goes on, and drains when it is told to end.
    file.unlink()
    workers.say()
    assert "a worker could not say how it is" in caplog.text
