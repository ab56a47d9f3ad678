"""The writer of captured parts: whole parts, bounded waiting, nothing that delays a caller."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest

from service.capture import writer as writer_module
from service.capture.store import FolderStore, StoreError, open_store
from service.capture.writer import STEP_ENTRIES, STEP_PAUSE, CaptureWriter, Entry

SECONDS = 20


def entry(*lines: bytes, held: int = 0) -> Entry:
    return Entry(lambda: list(lines), len(lines), held)


class Dropped:
    """How many lines were dropped, by reason."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, reason: str, count: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count


class Away:
    """A store that fails until it is `back`."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.tried = threading.Event()
        self.parts: dict[str, bytes] = {}

    def write(self, name: str, content: bytes) -> None:
        self.tried.set()
        if not self.back.is_set():
            raise ConnectionError("no route to host")
        self.parts[name] = content


def captured(folder: Path) -> list[bytes]:
    return [
        line for part in sorted(folder.rglob("*.jsonl")) for line in part.read_bytes().splitlines()
    ]


def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    dropped = Dropped()
    writer = CaptureWriter(FolderStore(tmp_path / "kept"), dropped)
    for number in range(5):
        writer.put(entry(b"%d\n" % number))
    writer.close(SECONDS)
    assert captured(tmp_path / "kept") == [b"0", b"1", b"2", b"3", b"4"]
    assert dropped.counts == {}


def test_lines_are_made_in_steps_unless_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("service.capture.writer.sleep", pauses.append)
    monkeypatch.setattr("service.capture.writer.PART_ENTRIES", 20)
    writer = CaptureWriter(FolderStore(tmp_path / "kept"), Dropped(), flush_seconds=3600)
    for number in range(20):
        writer.put(entry(b"%d\n" % number))
    deadline = time.monotonic() + SECONDS
    while len(captured(tmp_path / "kept")) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pauses == [STEP_PAUSE] * (20 // STEP_ENTRIES)
    for number in range(19):
        writer.put(entry(b"%d\n" % number))
    writer.close(SECONDS)
    assert len(captured(tmp_path / "kept")) == 39
    assert len(pauses) == 20 // STEP_ENTRIES


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    writer = CaptureWriter(FolderStore(tmp_path / "kept"), Dropped())
    writer.put(entry(b"{}\n"))
    writer.close(SECONDS)
    for path in (tmp_path / "kept").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_many_entries_are_written_before_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PART_ENTRIES", 3)
    written = threading.Event()
    writer = CaptureWriter(
        FolderStore(tmp_path), Dropped(), lambda _: written.set(), flush_seconds=3600
    )
    for _ in range(3):
        writer.put(entry(b"{}\n"))
    assert written.wait(SECONDS)
    writer.close(SECONDS)


def test_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "FIRST_PAUSE", 0.01)
    store, dropped = Away(), Dropped()
    writer = CaptureWriter(store, dropped, flush_seconds=0.01)
    writer.put(entry(b"first\n"))
    assert store.tried.wait(SECONDS)
    writer.put(entry(b"second\n"))
    store.back.set()
    writer.close(SECONDS)
    assert b"".join(store.parts.values()) == b"first\nsecond\n"
    assert dropped.counts == {}


def test_more_than_may_wait_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MOST_ENTRIES", 3)
    monkeypatch.setattr(writer_module, "MOST_BYTES", 100)
    dropped = Dropped()
    writer = CaptureWriter(Away(), dropped, flush_seconds=3600)
    writer.put(entry(b"a\n", b"b\n"))
    writer.put(entry(b"c\n", b"d\n"))
    assert dropped.counts == {"queue": 2}
    writer.put(entry(b"e\n", held=101))
    assert dropped.counts == {"queue": 3}
    began = time.monotonic()
    writer.close(0.05)
    assert time.monotonic() - began < SECONDS


def test_a_part_holds_so_many_bytes_and_what_is_written_counts_as_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "PART_BYTES", 100)
    monkeypatch.setattr(writer_module, "MOST_BYTES", 250)
    dropped, store = Dropped(), Away()
    monkeypatch.setattr(writer_module, "FIRST_PAUSE", 0.01)
    writer = CaptureWriter(store, dropped, flush_seconds=3600)
    # The second entry makes a part of both, which the store does not take yet.
    writer.put(entry(b"a\n", held=50))
    writer.put(entry(b"b\n", held=50))
    assert store.tried.wait(SECONDS)
    writer.put(entry(b"c\n", held=100))
    writer.put(entry(b"d\n", held=100))
    assert dropped.counts == {"queue": 1}
    store.back.set()
    deadline = time.monotonic() + SECONDS
    while len(store.parts) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.put(entry(b"e\n", held=250))
    writer.close(SECONDS)
    assert list(store.parts.values()) == [b"a\nb\n", b"c\n", b"e\n"]
    assert dropped.counts == {"queue": 1}


def test_what_a_store_does_not_take_until_the_end_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "FIRST_PAUSE", 0.01)
    dropped = Dropped()
    writer = CaptureWriter(Away(), dropped)
    writer.put(entry(b"a\n", b"b\n"))
    writer.put(entry(b"c\n"))
    writer.close(1.0)
    assert dropped.counts == {"store": 3}
    writer.put(entry(b"late\n"))
    assert dropped.counts == {"store": 3, "queue": 1}


def test_a_line_that_cannot_be_made_loses_that_one_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[bytes]:
        raise ValueError("my secret text")

    dropped = Dropped()
    writer = CaptureWriter(FolderStore(tmp_path), dropped)
    writer.put(Entry(broken, 1, 0))
    writer.put(entry(b"{}\n"))
    writer.close(SECONDS)
    assert captured(tmp_path) == [b"{}"]
    assert dropped.counts == {"error": 1}
    assert "secret" not in caplog.text


def test_a_part_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write("2026-11-28/part.jsonl", b"{}\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.setattr(Path, "replace", replace)
    store.write("2026-11-28/part.jsonl", b"{}\n")
    assert (tmp_path / "2026-11-28" / "part.jsonl").read_bytes() == b"{}\n"


def test_a_store_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreError, match=r"file/kept cannot be made: Not a directory"):
        open_store(str(file / "kept"))
    with pytest.raises(StoreError, match="nonsense://bucket cannot be reached"):
        open_store("nonsense://bucket")


def test_a_bucket_gets_the_parts(s3: str) -> None:
    from fsspec import filesystem

    writer = CaptureWriter(open_store(f"{s3}/captured"), Dropped())
    writer.put(entry(b"{}\n"))
    writer.close(SECONDS)
    files = filesystem("s3").find(f"{s3}/captured")
    assert len(files) == 1
    assert filesystem("s3").cat_file(files[0]) == b"{}\n"
