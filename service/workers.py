"""Several processes that serve as one: each says how it is, and whichever is asked answers for all.

Each worker writes a small file once a second, and when something changes. The times in it are those
of the machine's monotonic clock, which is the same for all processes and is never set.
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

import psutil

from service.model_package import write_text

logger = logging.getLogger("bentoml.service")

# A worker says something at least so often, in seconds.
SAY_SECONDS = 1.0
# What is said always takes as many bytes, so that it fits where it stands.
SAID_BYTES = 96


class Workers:
    """The workers of one server, as this one knows them.

    Args:
        count: how many there are.
        folder: where they write; only several workers need one.
        silence: seconds after which one that says nothing is taken for stuck.
        ask: whether this worker is ready, and whether it is alive.
        clock: seconds, the same for all processes.
    """

    def __init__(
        self,
        count: int,
        folder: Path | None,
        silence: float,
        ask: Callable[[], tuple[bool, bool]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._count = count
        self._folder = folder if count > 1 else None
        self._silence = silence
        self._ask = ask
        self._clock = clock
        # Of the process that started them all: others on this machine may have the same folder.
        self._prefix = f"worker_{os.getppid()}_"
        self._were_all_ready = False
        self._ended = threading.Event()
        if self._folder is not None:
            write_text(self._file, self._state())
            threading.Thread(target=self._keep_saying, name="workers", daemon=True).start()

    def say(self) -> None:
        """Tell the others about this worker; where that cannot be, they see that nothing is said.

        On a full disk a new file has no room, but what stands there already has: a server that
        answers must not fail its probes for that.
        """
        if self._folder is None:
            return
        said = self._state()
        try:
            try:
                write_text(self._file, said)
            except OSError:
                with self._file.open("r+b") as file:
                    file.write(said.encode())
        except OSError as error:
            logger.warning("a worker could not say how it is: %s", error.strerror)

    def close(self) -> None:
        """Say no more."""
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether no worker is stuck; one that has died is replaced, and is none."""
        return self._ask()[1] and all(
            found["alive"] and self._clock() - found["at"] <= self._silence
            for found in self._others()
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered: once all have been ready, none may be about to end."""
        others = list(self._others())
        ready = self._ask()[0] and all(found["ready"] for found in others)
        self._were_all_ready |= ready and len(others) + 1 >= self._count
        return ready and self._were_all_ready

    @property
    def _file(self) -> Path:
        assert self._folder is not None  # noqa: S101
        return self._folder / f"{self._prefix}{os.getpid()}.json"

    def _state(self) -> str:
        ready, alive = self._ask()
        said = {"ready": ready, "alive": alive, "at": self._clock()}
        return json.dumps(said).ljust(SAID_BYTES)

    def _others(self) -> Iterator[dict[str, float]]:
        if self._folder is None:
            return
        for file in self._folder.glob(f"{self._prefix}*.json"):
            pid = int(file.stem.removeprefix(self._prefix))
            if pid == os.getpid():
                continue
            # One that was replaced just now: another worker may have been quicker to see it.
            with contextlib.suppress(FileNotFoundError):
                if psutil.pid_exists(pid):
                    yield json.loads(file.read_bytes())
                else:
                    file.unlink()

    def _keep_saying(self) -> None:
        while not self._ended.wait(SAY_SECONDS):
            self.say()
