"""A worker's life: starting, ready, alive, draining, closed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

from service.capture.capture import Capture
from service.http.draining import Draining
from service.http.workers import Workers, WorkerState
from service.inference.engine import Engine
from service.metrics.recorder import Metrics
from service.settings import Settings

# How often the event loop shows that it runs, in seconds.
TURN_SECONDS = 1.0
# How long the end waits for what is captured to be written, in seconds.
CAPTURE_SECONDS = 5.0


class Lifecycle:
    """Whether this worker, and the server that it belongs to, is ready and alive."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # No request takes longer than its deadline.
        longest = settings.timeout_ms / 1000 + 1
        self.draining = Draining(settings.drain_ms / 1000, longest, self._stop_being_ready)
        self._engine: Engine | None = None
        self._metrics: Metrics | None = None
        self._capture: Capture | None = None
        # When the event loop last had a turn; None before it runs.
        self._turned_at: float | None = None
        self._workers = Workers(1, None, 0.0, self._state)

    def attach(
        self,
        engine: Engine,
        metrics: Metrics | None,
        folder: Path | None,
        capture: Capture | None = None,
    ) -> None:
        """Become ready.

        Args:
            engine: what the worker computes with.
            metrics: what shows that the worker is ready.
            folder: where several workers of one server report their state.
            capture: what is written at the end.
        """
        self._capture = capture
        self._engine = engine
        self._metrics = metrics
        self._workers = Workers(self._settings.workers, folder, self._stall, self._state)

    def begin(self) -> None:
        """Take over the signals, and watch the event loop; called in it."""
        self.draining.take_over()
        self._turn()

    @property
    def ready(self) -> bool:
        """Whether every worker has a model and has not begun to end."""
        return self._workers.ready

    @property
    def alive(self) -> bool:
        """Whether the event loop and inference make progress in every worker."""
        return self._workers.alive

    def close(self) -> None:
        """Finish the queue and take no more work; this takes no longer than an answer may."""
        if self._engine is not None:
            # Nobody needs to wait for a batch that hangs.
            alive = self._state().alive
            self._engine.close(self._settings.timeout_ms / 1000 if alive else 0)
        self._workers.close()
        if self._capture is not None:
            self._capture.close(CAPTURE_SECONDS)
        if self._metrics is not None:
            self._metrics.close()

    @property
    def _stall(self) -> float:
        return self._settings.stall_ms / 1000

    def _state(self) -> WorkerState:
        """The state of this worker.

        It is alive while all threads live, and neither a batch nor a turn of the event loop takes
        too long.
        """
        if self._engine is None:
            return WorkerState(ready=False, alive=True)
        turns = self._turned_at is None or monotonic() - self._turned_at <= self._stall
        computes = self._engine.threads_alive and self._engine.running_seconds <= self._stall
        return WorkerState(ready=not self.draining.begun, alive=turns and computes)

    def _turn(self) -> None:
        """Record that the event loop runs, again and again."""
        self._turned_at = monotonic()
        asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)

    def _stop_being_ready(self) -> None:
        self._workers.report()
        if self._metrics is not None:
            self._metrics.ready = False
            self._metrics.update()
