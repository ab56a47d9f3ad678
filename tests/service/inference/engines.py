"""Engines for tests: a model behind a gate, and a caller that keeps what came back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from service.inference.capacity import BATCH_TOKENS, QUEUE_TOKENS, Capacity
from service.inference.engine import Engine
from service.inference.jobs import Completed, Job, Outcome, TokenizingTask
from service.inference.tokenizing import EncodedText

SECONDS = 30


class Window(list[int]):
    """Token ids; the engine needs only their number."""


class Gate:
    """A model that answers each window with its first id, and stops where it is told to.

    While the gate is shut a batch waits inside; `batches` has the ids of each, in the order in
    which they were taken.
    """

    def __init__(self, *, is_open: bool = True, fails_on: int | None = None) -> None:
        self.batches: list[list[Window]] = []
        self.inside = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._is_open = is_open
        self._fails_on = fails_on

    def logits(self, encodings: Sequence[Any]) -> Any:
        self.batches.append(list(encodings))
        self.inside.release()
        if not self._is_open:
            assert self._gate.acquire(timeout=SECONDS)
        if any(window[0] == self._fails_on for window in encodings):
            raise RuntimeError("a text of somebody")
        return np.asarray([[window[0], len(window)] for window in encodings], dtype=np.float32)

    def let_one_batch_go(self) -> None:
        self._gate.release()

    def open(self) -> None:
        self._is_open = True
        for _ in range(1000):
            self._gate.release()

    def wait_until_busy(self) -> None:
        assert self.inside.acquire(timeout=SECONDS)


class Caller:
    """Submits requests and keeps the outcomes, by job, in the order of their arrival."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._done = threading.Condition()
        self.outcomes: list[tuple[Job[Any] | None, Outcome[Any]]] = []

    def ask(self, *windows: Window, seconds: float | None = None) -> Job[Any]:
        texts = [EncodedText((window,), truncated=False) for window in windows]
        return self.start(self.engine.submit, texts, seconds=seconds)

    def tokenize(
        self, *work: Any, cost: float = 0.001, promised: int = 0, seconds: float | None = None
    ) -> Job[Any]:
        tasks = [TokenizingTask(each, cost) for each in work]
        return self.start(self.engine.tokenize, tasks, promised_tokens=promised, seconds=seconds)

    def start(self, submit: Any, content: Any, **options: Any) -> Job[Any]:
        known: list[Job[Any]] = []
        made = threading.Event()

        def keep(outcome: Outcome[Any]) -> None:
            assert made.wait(SECONDS)
            with self._done:
                self.outcomes.append((known[0], outcome))
                self._done.notify_all()

        known.append(submit(content, keep, **options))
        made.set()
        return known[0]

    @property
    def order(self) -> list[Job[Any]]:
        return [job for job, _ in self.outcomes if job is not None]

    def outcome(self, job: Job[Any]) -> Outcome[Any]:
        (match,) = [outcome for each, outcome in self.outcomes if each is job]
        return match

    def rows(self, job: Job[Any]) -> Any:
        outcome = self.outcome(job)
        assert isinstance(outcome, Completed)
        return outcome.result.tolist()

    def wait_for(self, count: int) -> None:
        with self._done:
            assert self._done.wait_for(lambda: len(self.outcomes) >= count, timeout=SECONDS)


def window(number: int, length: int = 4) -> Window:
    return Window([number] * length)


@contextmanager
def engine_of(
    model: Any,
    *,
    threads: int = 1,
    tokenizer_threads: int = 0,
    batch_tokens: int = BATCH_TOKENS["cpu"],
    queue_tokens: int = QUEUE_TOKENS,
    **timing: Any,
) -> Iterator[Engine]:
    capacity = Capacity(threads, tokenizer_threads, batch_tokens, queue_tokens)
    engine = Engine(model, capacity, **timing)
    try:
        yield engine
    finally:
        if isinstance(model, Gate):
            model.open()
        engine.close(SECONDS)


def is_empty(engine: Engine) -> bool:
    """Whether nothing waits or runs."""
    state = engine.state()
    waiting = state.waiting_windows, state.waiting_tokens, state.waiting_seconds
    return (*waiting, state.oldest_seconds, state.running_seconds) == (0, 0, 0, 0, 0)


def ids(batch: Sequence[Window]) -> list[int]:
    return [each[0] for each in batch]
