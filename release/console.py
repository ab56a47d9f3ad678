"""The steps of a release on the screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

# A log gets what a step is doing so often: a line for each look would hide the others.
LOG_SECONDS = 30.0


class StepConsole:
    """One line for each step, and what the current step is doing.

    A terminal has one line for that, which is written again. A log gets a line now and then.

    A closed terminal or pipe raises nothing: the release must still be finished or undone.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._name = ""
        self._reported = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Run a step; its line shows the results that the block adds to the list."""
        results: list[str] = []
        began = self._reported = time.monotonic()
        self._name = name
        status = self._status = self._console.status(name)
        self._quietly(status.start)
        try:
            yield results
        finally:
            self._quietly(status.stop)
            self._status = None
        seconds = time.monotonic() - began
        self.line(f"{name:<9} {'; '.join(results) or 'done'}  ({seconds:.1f} s)")

    def report(self, text: str) -> None:
        """Show what the current step is doing."""
        if self._status is not None:
            self._quietly(self._status.update, f"{self._name}: {text}")
        now = time.monotonic()
        if not self._console.is_terminal and now - self._reported >= LOG_SECONDS:
            self._reported = now
            self.line(f"{self._name}: {text}")

    def line(self, text: str) -> None:
        """Print a line besides those of the steps."""
        self._quietly(self._console.print, text)

    def _quietly(self, write: Callable[..., object], *words: str) -> None:
        try:
            write(*words)
        except (OSError, SystemExit):
            # rich ends the process if a pipe is broken.
            self._console.quiet = True
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to the end of the process
