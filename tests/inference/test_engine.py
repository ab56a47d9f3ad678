"""The engine: every answer is its own, whatever waits beside it; bounds, fairness, faults."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.classifier import Classifier, NotFiniteError
from service.inference.admission import (
    FIRST_SECONDS_PER_TOKEN,
    ClosedError,
    OverloadedError,
)
from service.inference.engine import MEASURE_AFTER, Engine
from service.inference.jobs import Completed, Failed, Job, Outcome, TokenizingTask
from service.inference.queue import MAX_PADDING, MOST_LEFT
from service.inference.threads import NICER
from service.inference.tokenizing import EncodedText
from service.inference.totals import EngineState
from tests.s3 import wait_until

SECONDS = 30


class Window(list[int]):
    """Token ids: all that the engine asks of an encoding is its length."""


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


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Submits requests and keeps what came back, by job, in the order in which it came."""

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
        (found,) = [outcome for each, outcome in self.outcomes if each is job]
        return found

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
def engine_of(model: Any, **arguments: Any) -> Iterator[Engine]:
    engine = Engine(model, **{"threads": 1, **arguments})
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


def pause_long_ago(engine: Engine, seconds_per_token: float) -> None:
    """As after a long pause in a batch of few tokens, of many that were measured."""
    engine.admission.token_rate.learn(seconds_per_token * 1_000_000, 1_000_000)


def ids(batch: Sequence[Window]) -> list[int]:
    return [each[0] for each in batch]


def test_a_request_gets_its_rows_in_its_order() -> None:
    with engine_of(Gate(), threads=2, batch_tokens=16) as engine:
        caller = Caller(engine)
        windows = [window(number, 1 + number % 7) for number in range(40)]
        job = caller.ask(*windows)
        caller.wait_for(1)
        assert caller.rows(job) == [[each[0], len(each)] for each in windows]
        outcome = caller.outcome(job)
        assert isinstance(outcome, Completed)
        assert outcome.queued >= 0 and outcome.running > 0


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([1, 16, 64, 1000]),
    st.sets(st.integers(0, 11)),
)
def test_whatever_waits_together_each_gets_its_own_rows(
    requests: list[list[int]], threads: int, batch_tokens: int, left: set[int]
) -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, threads=threads, batch_tokens=batch_tokens) as engine:
        caller = Caller(engine)
        jobs = []
        number = 0
        for lengths in requests:
            windows = [window(number + place, length) for place, length in enumerate(lengths)]
            number += len(lengths)
            jobs.append((caller.ask(*windows), windows))
        for index in left & set(range(len(jobs))):
            engine.cancel(jobs[index][0])
        gate.open()
        stay = [pair for index, pair in enumerate(jobs) if index not in left]
        caller.wait_for(len(stay))
        for job, windows in stay:
            assert caller.rows(job) == [[each[0], len(each)] for each in windows]
        engine.close(SECONDS)
        assert len(caller.order) == len(stay)
        assert is_empty(engine)
    for batch in gate.batches:
        widest = max(map(len, batch))
        padded = widest * len(batch)
        assert padded <= max(batch_tokens, widest)
        assert padded - sum(map(len, batch)) <= MAX_PADDING * padded


def test_texts_are_batched_while_all_threads_are_busy_and_only_then() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=16) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        for number in range(1, 7):
            caller.ask(window(number))
        gate.open()
        caller.wait_for(7)
    # Four windows of four tokens fill a batch.
    assert [ids(batch) for batch in gate.batches] == [[0], [1, 2, 3, 4], [5, 6]]


def test_what_waits_is_shared_with_a_thread_that_is_idle() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, threads=2) as engine:
        caller = Caller(engine)
        caller.ask(*(window(number) for number in range(8)))
        gate.wait_until_busy()
        gate.wait_until_busy()
        assert sorted(map(len, gate.batches)) == [4, 4]


def test_windows_of_like_length_go_together() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=1000) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        for number, length in enumerate([20, 40, 19, 41, 20, 100], start=1):
            caller.ask(window(number, length))
        gate.open()
        caller.wait_for(7)
    assert [sorted(ids(batch)) for batch in gate.batches] == [[0], [1, 3, 5], [2, 4], [6]]


def test_a_short_text_overtakes_long_ones_that_came_before() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=100) as engine:
        caller = Caller(engine)
        long = caller.ask(*(window(number, 100) for number in range(10)))
        gate.wait_until_busy()
        short = caller.ask(window(99))
        gate.open()
        caller.wait_for(2)
    assert caller.order == [short, long]
    # It waited for the batch that ran, and for no other.
    assert ids(gate.batches[1]) == [99]


def test_what_is_old_enough_is_not_overtaken() -> None:
    gate = Gate(is_open=False)
    # So fast a model that what came before is always due before.
    with engine_of(gate, batch_tokens=100, seconds_per_token=1e-12) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        caller.ask(window(1, 100))
        caller.ask(window(2))
        gate.open()
        caller.wait_for(3)
    assert [ids(batch) for batch in gate.batches] == [[0], [1], [2]]


def test_short_texts_have_their_turn_between_long_ones_that_are_late() -> None:
    gate = Gate(is_open=False)
    # So fast a model that everything is due in the order in which it came.
    with engine_of(gate, batch_tokens=16, seconds_per_token=1e-12) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        for number in range(1, 5):
            caller.ask(window(number, 12))
        for number in range(5, 17):
            caller.ask(window(number))
        gate.open()
        caller.wait_for(17)
    # Twelve tokens of long text, then at least as many of short ones: four in a batch.
    assert [ids(batch) for batch in gate.batches] == [
        [0],
        [1],
        [5, 6, 7, 8],
        [2],
        [9, 10, 11, 12],
        [3],
        [13, 14, 15, 16],
        [4],
    ]


def test_an_error_is_the_answer_of_its_own_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(is_open=False, fails_on=2)
    with engine_of(gate, batch_tokens=8) as engine:
        caller = Caller(engine)
        first = caller.ask(window(0))
        gate.wait_until_busy()
        jobs = [caller.ask(window(number)) for number in (1, 2, 3)]
        many = caller.ask(window(4), window(5))
        gate.open()
        caller.wait_for(5)
        outcomes = [caller.outcome(job) for job in (first, *jobs, many)]
        assert [isinstance(outcome, Failed) for outcome in outcomes] == [0, 1, 1, 0, 0]
        # The thread goes on, and nothing is left behind.
        again = caller.ask(window(6))
        caller.wait_for(6)
        assert isinstance(caller.outcome(again), Completed)
        engine.close(SECONDS)
        assert is_empty(engine)
        assert engine.state().failed_jobs == {"error": 2, "not_finite": 0}
    assert "RuntimeError" in caplog.text
    assert "somebody" not in caplog.text


def test_a_failed_request_is_told_once_and_its_rest_is_dropped() -> None:
    gate = Gate(fails_on=0)
    with engine_of(gate, batch_tokens=4) as engine:
        caller = Caller(engine)
        job = caller.ask(*(window(number) for number in range(20)))
        caller.wait_for(1)
        engine.close(SECONDS)
        assert caller.order == [job]
        assert len(gate.batches) == 1


def test_the_work_of_a_caller_who_left_is_dropped() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=4) as engine:
        caller = Caller(engine)
        gone = caller.ask(*(window(number) for number in range(20)))
        gate.wait_until_busy()
        stays = caller.ask(window(99))
        engine.cancel(gone)
        engine.cancel(gone)
        assert engine.state().waiting_tokens == 4
        gate.open()
        caller.wait_for(1)
        engine.close(SECONDS)
    assert caller.order == [stays]
    assert [ids(batch) for batch in gate.batches] == [[0], [99]]


def test_what_callers_who_left_have_sent_is_kept_no_longer() -> None:
    """Their turn may be far off, and they may be many."""
    gate = Gate(is_open=False)
    with engine_of(gate) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        caller.ask(window(1))
        caller.tokenize(lambda: [])
        kept: list[weakref.ref[Any]] = []
        for number in range(1000):
            sent = window(number)
            kept.append(weakref.ref(sent))
            job = caller.ask(sent) if number % 2 else caller.tokenize(sent.copy)
            engine.cancel(job)
        del sent, job
        assert sum(each() is not None for each in kept) <= 2 * MOST_LEFT
        gate.open()
        caller.wait_for(3)
        assert is_empty(engine)


def test_who_left_while_the_batch_ran_is_not_told() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate) as engine:
        caller = Caller(engine)
        gone = caller.ask(window(0))
        gate.wait_until_busy()
        engine.cancel(gone)
        stays = caller.ask(window(1))
        gate.open()
        caller.wait_for(1)
        engine.close(SECONDS)
    assert caller.order == [stays]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, queue_tokens=40) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        for number in range(10):
            caller.ask(window(number))
        with pytest.raises(OverloadedError) as refused:
            caller.ask(window(99))
        assert refused.value.retry_after == pytest.approx(44 * FIRST_SECONDS_PER_TOKEN)
        assert refused.value.reason == "queue_full"


def test_one_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, queue_tokens=40) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        caller.ask(window(1, 100))
        with pytest.raises(OverloadedError):
            caller.ask(window(2))


def test_what_cannot_be_done_by_its_deadline_is_refused_at_once() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        caller.ask(window(0, 50), seconds=1)
        gate.wait_until_busy()
        with pytest.raises(OverloadedError) as later:
            caller.ask(window(1, 50), seconds=1)
        with pytest.raises(OverloadedError) as never:
            caller.ask(window(1, 200), seconds=1)
        caller.ask(window(1, 50), seconds=2)
        caller.ask(window(1, 5000))
    assert (later.value.reason, never.value.reason) == ("deadline", "too_long")
    assert later.value.retry_after == pytest.approx(0.5)


def test_lateness_is_allowed_for_and_forgotten() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        # It is ready after 0.675 s at most, 0.275 of which others may take.
        job = caller.ask(window(0, 40), seconds=1)
        gate.wait_until_busy()
        engine.cancel(caller.ask(window(1, 25), seconds=1))
        clock.now += 0.9
        engine.cancel(job)
        # It was late by 0.225 s, so 0.25 s after the 0.4 s of the one that runs are too much.
        with pytest.raises(OverloadedError):
            caller.ask(window(1, 25), seconds=1)
        # However late it was, half of the time counts as usable.
        job = caller.ask(window(1, 5))
        clock.now += 100
        engine.cancel(job)
        assert caller.ask(window(1, 15), seconds=2) is not None
        clock.now += 120
        assert engine.admission.margin(1.0) < 1e-3


def test_no_lateness_is_seen_in_what_is_due_later() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        job = caller.ask(window(0, 40), seconds=60)
        gate.wait_until_busy()
        # Others may go before it for eight times the time that it takes.
        clock.now += 3
        engine.answered(job)
        assert engine.admission.margin(10) == 0


def test_an_answer_can_be_waited_for() -> None:
    text = EncodedText((window(3),), truncated=False)  # type: ignore[arg-type]
    with engine_of(Gate()) as engine:
        assert engine.run([text]).tolist() == [[3, 4]]
    with engine_of(Gate(fails_on=3)) as engine, pytest.raises(RuntimeError):
        engine.run([text])


def test_the_time_of_a_token_is_measured() -> None:
    with engine_of(Gate()) as engine:
        caller = Caller(engine)
        for number in range(20):
            caller.ask(window(number, 10))
        caller.wait_for(20)
        engine.close(SECONDS)
        # A stand-in that only copies numbers is a thousand times as fast as an encoder.
        assert 0 < engine.admission.token_rate.value < 1e-4
        state = engine.state()
        assert (state.tokens, state.padded_tokens) == (200, 200)


def test_an_idle_engine_that_refuses_measures_again() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock) as engine:
        caller = Caller(engine)

        def refuse() -> None:
            with pytest.raises(OverloadedError):
                caller.ask(window(1), window(2, 10), seconds=1)

        pause_long_ago(engine, 100.0)
        with pytest.raises(OverloadedError):
            engine.check(1)
        refuse()
        assert engine.state().waiting_tokens == 0
        clock.now += MEASURE_AFTER + 0.1
        engine.check(1)
        refuse()
        # One at a time: neither beside a batch that runs, nor soon after one has ended.
        gate.wait_until_busy()
        clock.now += MEASURE_AFTER + 0.1
        refuse()
        with pytest.raises(OverloadedError):
            engine.check(1)
        assert engine.state().waiting_tokens == 0
        gate.open()
        while not engine.state().batches:
            pass
        assert engine.admission.token_rate.value == pytest.approx((MEASURE_AFTER + 0.1) / 10)
        job = caller.ask(window(3), seconds=1)
        caller.wait_for(1)
        assert caller.rows(job) == [[3, 4]]
    assert [ids(batch) for batch in gate.batches] == [[2], [3]]


def test_small_requests_that_are_taken_do_not_keep_a_wrong_time_alive() -> None:
    clock = Clock()
    with engine_of(Gate(), clock=clock) as engine:
        caller = Caller(engine)
        pause_long_ago(engine, 0.1)
        for number in range(1, 4):
            clock.now += MEASURE_AFTER / 2
            caller.ask(window(number), seconds=1)
            caller.wait_for(number)
        with pytest.raises(OverloadedError):
            caller.ask(window(9, 50), seconds=1)
        while engine.state().batches < 4:
            pass
        assert engine.admission.token_rate.value == 0


def test_one_slow_window_makes_no_later_request_too_long() -> None:
    """A refusal that was right, of a caller who gives no time, says nothing of others."""
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock) as engine:
        caller = Caller(engine)
        pause_long_ago(engine, 1e-3)
        clock.now += MEASURE_AFTER + 0.1
        with pytest.raises(OverloadedError):
            caller.ask(window(1), seconds=1e-6)
        gate.wait_until_busy()
        clock.now += 60
        gate.open()
        while not engine.state().batches:
            pass
        assert engine.admission.token_rate.value == 1e-3


def test_a_closed_engine_finishes_what_waits_and_takes_no_more() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=4) as engine:
        caller = Caller(engine)
        for number in range(5):
            caller.ask(window(number))
        gate.wait_until_busy()
        closing = threading.Thread(target=engine.close, args=(SECONDS,))
        closing.start()
        for _ in range(SECONDS * 1000):
            try:
                engine.check(SECONDS)
            except ClosedError:
                break
            time.sleep(0.001)
        with pytest.raises(ClosedError):
            caller.ask(window(9))
        gate.open()
        closing.join(SECONDS)
        assert len(caller.order) == 5


def test_a_caller_that_fails_does_not_stop_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_job: Job) -> None:
        raise RuntimeError("a text of somebody")

    with engine_of(Gate()) as engine:
        engine.submit([EncodedText((window(0),), truncated=False)], fail)  # type: ignore[arg-type]
        caller = Caller(engine)
        caller.ask(window(1))
        caller.wait_for(1)
    assert "somebody" not in caplog.text


def test_answers_are_those_of_the_classifier(tiny_package: Path) -> None:
    classifier = Classifier.load(tiny_package, threads=1)
    texts = [("word " * (1 + index % 13)).strip() for index in range(50)]
    expected = classifier.classify(texts)
    with engine_of(classifier, threads=2) as engine:
        caller = Caller(engine)
        jobs = [
            caller.start(engine.submit, classifier.encode(texts[start : start + 5]))
            for start in range(0, 50, 5)
        ]
        caller.wait_for(10)
    for start, job in zip(range(0, 50, 5), jobs, strict=True):
        encoded = classifier.encode(texts[start : start + 5])
        outcome = caller.outcome(job)
        assert isinstance(outcome, Completed)
        for answer, alone in zip(
            classifier.predictions(encoded, outcome.result),
            expected[start : start + 5],
            strict=True,
        ):
            assert answer.probs == pytest.approx(alone.probs, abs=1e-5)


def test_the_state_says_what_waits_how_long_and_what_runs() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    none = {"error": 0, "not_finite": 0}
    with engine_of(gate, clock=clock) as engine:
        caller = Caller(engine)
        assert engine.state() == EngineState(failed_jobs=none)
        caller.ask(window(0, 4))
        gate.wait_until_busy()
        clock.now += 2
        # The longer one comes first and is due later.
        caller.ask(window(1, 60))
        clock.now += 3
        caller.ask(window(2, 4))
        assert engine.state() == EngineState(
            waiting_windows=2,
            waiting_tokens=64,
            oldest_seconds=3.0,
            running_seconds=5.0,
            failed_jobs=none,
        )
        assert engine.running_seconds == 5
        gate.open()
        caller.wait_for(3)
        state = engine.state()
        assert (state.batches, state.tokens, state.padded_tokens) == (3, 68, 68)
        assert (state.waiting_windows, state.oldest_seconds, state.running_seconds) == (0, 0, 0)


def test_what_would_be_refused_however_short_is_refused_before_its_tokens_are_counted() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, queue_tokens=40, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        engine.check(0.02)
        caller.ask(window(0, 50))
        gate.wait_until_busy()
        engine.check(1)
        with pytest.raises(OverloadedError) as refused:
            engine.check(0.5)
        assert refused.value.reason == "deadline"
        caller.ask(window(1, 40))
        with pytest.raises(OverloadedError) as refused:
            engine.check(SECONDS)
        assert refused.value.reason == "queue_full"
    with pytest.raises(ClosedError):
        engine.check(SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own there")
def test_inference_threads_let_the_others_go_first() -> None:
    """Measured: at three times capacity refusals took a tenth, and none was answered late."""
    found: list[int] = []

    class Asking:
        def logits(self, encodings: Sequence[Any]) -> Any:
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return np.zeros((len(encodings), 2), dtype=np.float32)

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with engine_of(Asking()) as engine:
        engine.run([EncodedText((window(0),), truncated=False)])
    assert found == [min(19, own + NICER)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    engine = Engine(Gate(), threads=1)
    (thread,) = set(threading.enumerate()) - before
    assert engine.threads_alive

    def broken(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr("service.inference.queue.Queue.take", broken)
    Caller(engine).ask(window(0))
    thread.join(SECONDS)
    assert not engine.threads_alive
    engine.close(SECONDS)
    assert engine.threads_alive


def test_a_batch_that_never_ends_does_not_keep_the_engine_from_closing() -> None:
    gate = Gate(is_open=False)
    engine = Engine(gate, threads=1)
    Caller(engine).ask(window(0))
    gate.wait_until_busy()
    engine.close(0.05)
    assert engine.running_seconds > 0
    gate.open()
    engine.close(SECONDS)


class Flaky(Gate):
    """A gate whose model fails for some windows' ids, in one of several ways."""

    def __init__(self, fails: dict[int, str]) -> None:
        super().__init__(is_open=False)
        self._fails = fails

    def logits(self, encodings: Sequence[Any]) -> Any:
        rows = super().logits(encodings)
        for row, window in enumerate(encodings):
            match self._fails.get(window[0]):
                case "raise":
                    raise MemoryError("a text of somebody")
                case "nan":
                    rows[row, 1] = np.nan
                case "infinity":
                    rows[row, 0] = -np.inf
                case "row":
                    return rows[:-1]
        return rows


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=10),
    st.integers(1, 3),
    st.sampled_from([1, 16, 64, 1000]),
    st.dictionaries(
        st.integers(0, 60), st.sampled_from(["raise", "nan", "infinity", "row"]), max_size=4
    ),
    st.sets(st.integers(0, 9)),
    st.booleans(),
)
def test_an_answer_is_complete_and_right_or_it_is_an_error(
    requests: list[list[int]],
    threads: int,
    batch_tokens: int,
    fails: dict[int, str],
    left: set[int],
    late: bool,
) -> None:
    """Any windows, any batch failing at any place, callers who leave before or meanwhile."""
    flaky = Flaky(fails)
    with engine_of(flaky, threads=threads, batch_tokens=batch_tokens) as engine:
        caller = Caller(engine)
        jobs = []
        number = 0
        for lengths in requests:
            windows = [window(number + place, length) for place, length in enumerate(lengths)]
            number += len(lengths)
            jobs.append((caller.ask(*windows), windows))
        gone = left & set(range(len(jobs)))
        if late:
            # A batch of theirs may be computed by now, or not.
            flaky.let_one_batch_go()
        for index in gone:
            engine.cancel(jobs[index][0])
        flaky.open()
        stay = [pair for index, pair in enumerate(jobs) if index not in gone]
        engine.close(SECONDS)
        # Each is told once; who left may have been told before.
        told = caller.order
        assert len(told) == len(set(map(id, told)))
        assert {id(job) for job, _ in stay} <= {id(job) for job in told}
        assert is_empty(engine)
        for job, windows in jobs:
            if job not in told:
                continue
            outcome = caller.outcome(job)
            failing = [fails[each[0]] for each in windows if each[0] in fails]
            if isinstance(outcome, Completed):
                assert outcome.result.tolist() == [[each[0], len(each)] for each in windows]
                assert not failing
            elif not set(fails.values()) & {"raise", "row"}:
                # What is not finite is the fault of nobody else in the batch.
                assert failing and isinstance(outcome.error, NotFiniteError)


def test_a_second_batch_that_fails_leaves_no_rows_of_the_first() -> None:
    flaky = Flaky({1: "raise"})
    flaky.open()
    with engine_of(flaky, batch_tokens=8) as engine:
        texts = [EncodedText((window(number, 8),), truncated=False) for number in (0, 1)]  # type: ignore[arg-type]
        with pytest.raises(MemoryError):
            engine.run(texts)
        assert len(flaky.batches) == 2


def test_logits_that_are_not_finite_are_a_failure_and_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flaky = Flaky({1: "nan", 2: "infinity"})
    with engine_of(flaky) as engine:
        caller = Caller(engine)
        caller.ask(window(9))
        flaky.wait_until_busy()
        jobs = [caller.ask(window(number)) for number in range(4)]
        flaky.open()
        caller.wait_for(5)
        outcomes = [caller.outcome(job) for job in jobs]
        assert [isinstance(outcome, Failed) for outcome in outcomes] == [0, 1, 1, 0]
        assert engine.state().failed_jobs == {"error": 0, "not_finite": 2}
    assert len(flaky.batches) == 2
    assert "no finite logits for 2 windows" in caplog.text


def test_texts_to_be_tokenized_wait_in_the_same_order_as_windows() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=100, seconds_per_token=1e-3) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        long_text = caller.tokenize(lambda: ["long"], cost=0.4)
        long_window = caller.ask(window(1, 90))
        short_window = caller.ask(window(2))
        short_text = caller.tokenize(lambda: ["short"], cost=0.002)
        assert engine.state().waiting_seconds == pytest.approx(0.402)
        gate.open()
        caller.wait_for(5)
        assert caller.order[1:] == [short_text, short_window, long_window, long_text]
        assert caller.outcome(long_text).result == ["long"]  # type: ignore[union-attr]
        assert is_empty(engine)


def test_parts_of_a_text_come_back_in_their_order_and_one_that_fails_fails_them_all() -> None:
    def broken() -> Any:
        raise RuntimeError("a text of somebody")

    gate = Gate()
    with engine_of(gate, threads=3) as engine:
        caller = Caller(engine)
        parts = [lambda number=number: [number, number] for number in range(20)]
        job = caller.tokenize(*parts)
        caller.wait_for(1)
        expected = [number for number in range(20) for _ in range(2)]
        assert caller.outcome(job).result == expected  # type: ignore[union-attr]
        job = caller.tokenize(*parts[:5], broken, *parts[5:])
        caller.wait_for(2)
        assert isinstance(caller.outcome(job), Failed)
        assert engine.state().failed_jobs["error"] == 1


def test_what_tokenizing_would_take_past_the_deadline_is_refused_at_once() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=1e-3) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        with pytest.raises(OverloadedError) as refused:
            caller.tokenize(lambda: [], cost=0.9, seconds=1)
        assert refused.value.reason == "too_long"
        waiting = caller.tokenize(lambda: [], cost=0.5, seconds=1)
        with pytest.raises(OverloadedError) as refused:
            caller.tokenize(lambda: [], cost=0.5, seconds=1)
        assert refused.value.reason == "deadline"
        # A short text is refused for the same work, where it has as much time.
        clock.now += 0.3
        with pytest.raises(OverloadedError):
            engine.check(0.7)
        engine.cancel(waiting)
        engine.check(0.7)


def test_the_tokens_that_tokenizing_is_likely_to_bring_count_until_it_ends() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, seconds_per_token=1e-3) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        many = caller.tokenize(lambda: [], promised=900, seconds=1)
        with pytest.raises(OverloadedError) as refused:
            engine.check(1)
        assert refused.value.retry_after == pytest.approx(0.905, abs=0.002)
        engine.cancel(many)
        engine.check(1)
        # As likely as not it is less: half of it may refuse.
        with pytest.raises(OverloadedError):
            caller.tokenize(lambda: [], promised=1600, seconds=1)
        caller.tokenize(lambda: [], promised=1300, seconds=1)


def test_who_cannot_wait_goes_before_those_who_can() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, batch_tokens=100, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        # Five windows of a second each and a text: 6.54 of the 6.75 s that are promised.
        crowd = [caller.ask(window(number, 100), seconds=10) for number in range(1, 6)]
        text = caller.tokenize(lambda: [], cost=1.5, seconds=10)
        # Who comes later and has as much time has no reason to go first.
        with pytest.raises(OverloadedError):
            caller.ask(window(6, 30), seconds=10)
        hurry = caller.ask(window(7, 50), seconds=2)
        read = caller.tokenize(lambda: [], cost=0.1, seconds=2)
        # The last of the crowd can wait for 0.75 s, 0.6 of which are promised by now.
        with pytest.raises(OverloadedError):
            caller.ask(window(8, 40), seconds=3)
        gate.open()
        caller.wait_for(9)
        assert caller.order[1:3] == [hurry, read]
        assert set(caller.order[3:]) == {*crowd, text}
        assert is_empty(engine)


def test_who_cannot_wait_is_not_let_in_by_threads_that_only_tokenize() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    tokenizing, stop = threading.Event(), threading.Event()

    def tokenize() -> list[Any]:
        tokenizing.set()
        assert stop.wait(SECONDS)
        return []

    options = {"clock": clock, "tokenizer_threads": 1, "seconds_per_token": 0.01}
    with engine_of(gate, **options) as engine:
        caller = Caller(engine)
        caller.ask(window(0, 100), seconds=10)
        gate.wait_until_busy()
        caller.ask(window(1, 100), seconds=10)
        caller.tokenize(tokenize, seconds=10)
        assert tokenizing.wait(SECONDS)
        # The one thread that computes is busy for a second.
        with pytest.raises(OverloadedError):
            caller.ask(window(2, 10), seconds=1)
        clock.now += 0.8
        caller.ask(window(2, 10), seconds=1)
        stop.set()


class Timed(Gate):
    """A model that takes its time on a clock that stands still otherwise."""

    def __init__(self, clock: Clock, seconds_per_token: float) -> None:
        super().__init__(is_open=False)
        self._clock = clock
        self._seconds_per_token = seconds_per_token
        self.is_busy = False

    def logits(self, encodings: Sequence[Any]) -> Any:
        self.is_busy = True
        rows = super().logits(encodings)
        widest = max(map(len, encodings))
        self._clock.now += self._seconds_per_token * widest * len(encodings)
        return rows

    def let_one_batch_end(self, engine: Engine) -> None:
        self.is_busy = False
        self.let_one_batch_go()
        self.settle(engine)

    def settle(self, engine: Engine) -> None:
        """Wait until the next batch has begun or nothing is left."""
        wait_until(lambda: self.is_busy or is_empty(engine), SECONDS)


@settings(max_examples=60)
@given(
    st.lists(st.integers(300, 1200), min_size=3, max_size=12),
    st.lists(
        st.tuples(st.integers(20, 500), st.sampled_from([0.2, 2, 4, 10]), st.integers(0, 1)),
        max_size=40,
    ),
)
def test_who_was_taken_on_is_ready_in_time_whoever_goes_first(
    crowd: list[int], others: list[tuple[int, float, int]]
) -> None:
    """Tokens, seconds to the deadline and batches that pass before the next request comes.

    In time, or later by one batch that it shares: that is not counted as its own work.
    """
    clock = Clock()
    rate, batch_tokens = 1e-3, 100
    model = Timed(clock, rate)
    options = {"clock": clock, "batch_tokens": batch_tokens, "seconds_per_token": rate}
    with engine_of(model, **options) as engine:
        spare: list[float] = []
        taken = 0
        for length, seconds, batches in [*((length, 10, 0) for length in crowd), *others]:
            text = EncodedText((window(1, length),), truncated=False)  # type: ignore[arg-type]
            deadline = clock.now + seconds
            try:
                engine.submit(
                    [text],
                    lambda _outcome, deadline=deadline: spare.append(deadline - clock.now),
                    seconds=seconds,
                )
            except OverloadedError:
                pass
            else:
                taken += 1
            model.settle(engine)
            for _ in range(batches):
                if not is_empty(engine):
                    model.let_one_batch_end(engine)
        model.open()
        engine.close(SECONDS)
        assert len(spare) == taken
        assert min(spare, default=0) >= -rate * batch_tokens


def test_an_idle_engine_tokenizes_what_it_would_refuse_by_an_estimate() -> None:
    clock = Clock()
    with engine_of(Gate(), clock=clock) as engine:
        caller = Caller(engine)
        with pytest.raises(OverloadedError):
            caller.tokenize(lambda: [], cost=100, seconds=1)
        clock.now += MEASURE_AFTER + 0.1
        caller.tokenize(lambda: [], cost=100, seconds=1)
        caller.wait_for(1)


def test_who_was_tokenized_keeps_the_place_in_the_order() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=1e-3) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        clock.now += 5
        other = caller.ask(window(1, 20))
        text = EncodedText((window(2, 40),), truncated=False)  # type: ignore[arg-type]
        mine = caller.start(engine.submit, [text], since=clock.now - 5)
        gate.open()
        caller.wait_for(3)
        assert caller.order[1:] == [mine, other]


def test_with_threads_of_their_own_texts_are_tokenized_while_the_model_computes() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, threads=1, tokenizer_threads=1) as engine:
        caller = Caller(engine)
        first = caller.ask(window(0))
        gate.wait_until_busy()
        waits = caller.ask(window(1))
        text = caller.tokenize(lambda: ["text"])
        caller.wait_for(1)
        assert caller.order == [text]
        gate.open()
        caller.wait_for(3)
        assert caller.order == [text, first, waits]
