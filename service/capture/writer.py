"""A thread that writes what is captured: it never delays an answer and never fails one."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Literal, NamedTuple

from service.capture.records import PART_ENDING
from service.capture.store import Store

logger = logging.getLogger("bentoml.service")

# A part is written so often, in seconds, or when so many entries wait, or entries of so many bytes.
# An emoji of four bytes is twelve characters of a line: a part can be several times as large.
FLUSH_SECONDS = 5.0
PART_ENTRIES = 2_000
PART_BYTES = 4_000_000
# What may wait or be written at the moment: more is dropped, and counted. The second is about what
# the entries hold.
MOST_ENTRIES = 20_000
MOST_BYTES = 64_000_000
# Lines are made in steps of so many entries, with a pause in seconds after each.
STEP_ENTRIES = 8
STEP_PAUSE = 0.001
# Until a store that failed is tried again, in seconds: doubled each time, up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# A failure is logged no more often than this, in seconds.
SECONDS_BETWEEN_WARNINGS = 60.0


# Why lines are dropped: more wait than may, the store was away until the end, or a fault.
DropReason = Literal["queue", "store", "error"]


class Entry(NamedTuple):
    """What waits to be written: `lines` makes its lines, in the writer's thread.

    `size` is the number of its lines, `held` about the bytes that it holds until then.
    """

    lines: Callable[[], list[bytes]]
    size: int
    held: int


class CaptureWriter:
    """Takes entries from any thread and writes them in parts, whole or not at all.

    Args:
        store: where parts go.
        on_drop: told how many lines were dropped, and why: `queue` (more waits than may), `store`
            (it was away until the end), `error` (a line could not be made).
    """

    def __init__(
        self,
        store: Store,
        on_drop: Callable[[DropReason, int], object],
        on_write: Callable[[int], object] = lambda _: None,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._store = store
        self._on_drop = on_drop
        self._on_write = on_write
        self._flush_seconds = flush_seconds
        self._waiting: deque[Entry] = deque()
        self._count = self._held = 0
        self._changed = threading.Condition()
        # Until when what waits may be written; None until the server ends.
        self._deadline: float | None = None
        self._warned_at = -SECONDS_BETWEEN_WARNINGS
        self._parts = 0
        host = re.sub(r"[^\w.-]", "-", socket.gethostname())[:63]
        self._name = f"{host}-{os.getpid()}"
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry, or drop it where too much waits."""
        with self._changed:
            full = (
                self._count + entry.size > MOST_ENTRIES
                or self._held + entry.held > MOST_BYTES
                or self._deadline is not None
            )
            if not full:
                was_due = self._is_due()
                self._waiting.append(entry)
                self._count += entry.size
                self._held += entry.held
                # Once: while a store is away, more can wait than makes a part for a long time.
                if self._is_due() and not was_due:
                    self._changed.notify()
        if full:
            self._on_drop("queue", entry.size)

    def close(self, seconds: float) -> None:
        """Write what waits and take no more; no longer than so many seconds."""
        with self._changed:
            if self._deadline is None:
                self._deadline = monotonic() + seconds
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while part := self._next_part():
            held = sum(entry.held for entry in part)
            lines = self._lines(part)
            count, content = len(lines), b"".join(lines)
            # The texts are in the content now, and need not wait for the store, too.
            del part, lines
            if count and not self._write(content, count):
                with self._changed:
                    lost = count + self._count
                    self._waiting.clear()
                self._on_drop("store", lost)
                return
            with self._changed:
                self._held -= held

    def _is_due(self) -> bool:
        return self._deadline is not None or self._count >= PART_ENTRIES or self._held >= PART_BYTES

    def _next_part(self) -> list[Entry]:
        """What waits, of so many lines and bytes at most; empty at the end."""
        part: list[Entry] = []
        with self._changed:
            while not self._waiting or self._deadline is None:
                is_due = self._changed.wait_for(self._is_due, self._flush_seconds)
                if self._waiting or (is_due and self._deadline is not None):
                    break
            count = held = 0
            while self._waiting and count < PART_ENTRIES and held < PART_BYTES:
                entry = self._waiting.popleft()
                part.append(entry)
                count += entry.size
                held += entry.held
            self._count -= count
        return part

    def _lines(self, part: list[Entry]) -> list[bytes]:
        lines: list[bytes] = []
        for number, entry in enumerate(part):
            # The event loop waits while this thread has the interpreter's lock: 2,000 lines at a
            # time would delay answers. With much to do, or at the end, there is no time to wait.
            if number % STEP_ENTRIES == STEP_ENTRIES - 1 and self._has_time:
                sleep(STEP_PAUSE)
            try:
                lines += entry.lines()
            except Exception as error:  # noqa: BLE001 - its message may hold a text
                self._warn(f"a line could not be made: {type(error).__name__}")
                self._on_drop("error", entry.size)
        return lines

    @property
    def _has_time(self) -> bool:
        return self._deadline is None and self._count < MOST_ENTRIES // 4

    def _write(self, content: bytes, count: int) -> bool:
        """Write a part of so many lines, again and again until it is there.

        False where the end came first.
        """
        self._parts += 1
        moment = datetime.now(UTC)
        name = f"{moment:%Y-%m-%d}/{moment:%H%M%S}-{self._name}-{self._parts:06}{PART_ENDING}"
        pause = FIRST_PAUSE
        while True:
            try:
                self._store.write(name, content)
            except Exception as error:  # noqa: BLE001 - each driver has errors of its own
                self._warn(f"{name} could not be written, trying again: {error}")
            else:
                self._on_write(count)
                return True
            with self._changed:
                self._changed.wait_for(lambda: self._deadline is not None, pause)
                if self._deadline is not None:
                    if monotonic() + FIRST_PAUSE > self._deadline:
                        return False
                    self._changed.wait(FIRST_PAUSE)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _warn(self, message: str) -> None:
        if monotonic() - self._warned_at >= SECONDS_BETWEEN_WARNINGS:
            self._warned_at = monotonic()
            logger.warning("capture: %s", message)
