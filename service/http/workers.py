"""Several processes that serve as one: each reports its state, and each answers for all.

Each worker writes a small file once a second, and whenever its state changes. The times in it are
those of the machine's monotonic clock, which is the same for all processes and is never set.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import psutil

from service.package.files import write_text

logger = logging.getLogger("bentoml.service")

# A worker reports at least once in so many seconds.
REPORT_SECONDS = 1.0
# All reports have this length, so that a new one fits in the place of the last one.
REPORT_BYTES = 96


class WorkerState(NamedTuple):
    """Whether a worker takes requests, and whether it makes progress."""

    ready: bool
    alive: bool


class Report(NamedTuple):
    """What another worker wrote; `at` is on the monotonic clock."""

    ready: bool
    alive: bool
    at: float


class Workers:
    """The workers of one server, as this worker knows them.

    Args:
        count: their number.
        folder: where they report; a single worker needs none.
        silence: a worker without a report for so many seconds counts as stuck.
        state: the state of this worker.
        clock: seconds, the same for all processes.
    """

    def __init__(
        self,
        count: int,
        folder: Path | None,
        silence: float,
        state: Callable[[], WorkerState],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._count = count
        self._folder = folder if count > 1 else None
        self._silence = silence
        self._state = state
        self._clock = clock
        # With the process that started all workers: another server may use the same folder.
        self._prefix = f"worker_{os.getppid()}_"
        self._were_all_ready = False
        self._ended = threading.Event()
        if self._folder is not None:
            write_text(self._file_in(self._folder), self._report())
            threading.Thread(target=self._keep_reporting, name="workers", daemon=True).start()

    def report(self) -> None:
        """Write the state of this worker; a failure is only logged.

        On a full disk there is no room for a new file, but the old one has its room: a server that
        answers must not fail its probes because of the disk.
        """
        if self._folder is None:
            return
        file, report = self._file_in(self._folder), self._report()
        try:
            try:
                write_text(file, report)
            except OSError:
                with file.open("r+b") as handle:
                    handle.write(report.encode())
        except OSError as error:
            logger.warning("a worker could not report its state: %s", error.strerror)

    def close(self) -> None:
        """Report no more."""
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether no worker is stuck. A dead worker is replaced, so it does not count."""
        return self._state().alive and all(
            report.alive and self._clock() - report.at <= self._silence for report in self._others()
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered: all workers have been ready, and none is about to end."""
        others = list(self._others())
        ready = self._state().ready and all(report.ready for report in others)
        self._were_all_ready |= ready and len(others) + 1 >= self._count
        return ready and self._were_all_ready

    def _file_in(self, folder: Path) -> Path:
        return folder / f"{self._prefix}{os.getpid()}.json"

    def _report(self) -> str:
        report = Report(*self._state(), at=self._clock())
        return json.dumps(report._asdict()).ljust(REPORT_BYTES)

    def _others(self) -> Iterator[Report]:
        """The reports of the other workers that live."""
        if self._folder is None:
            return
        for file in self._folder.glob(f"{self._prefix}*.json"):
            pid = int(file.stem.removeprefix(self._prefix))
            if pid == os.getpid():
                continue
            # Another worker may have removed the file of a dead one meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if psutil.pid_exists(pid):
                    yield Report(**json.loads(file.read_bytes()))
                else:
                    file.unlink()

    def _keep_reporting(self) -> None:
        while not self._ended.wait(REPORT_SECONDS):
            self.report()
