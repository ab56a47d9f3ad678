"""The engine: every answer belongs to its request; failures, cancelling, closing, state."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.capacity import Capacity
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.inference.errors import ClosedError, NotFiniteError
from service.inference.jobs import Completed, Failed, Job
from service.inference.queue import MAX_PADDING
from service.inference.threads import NICE_INCREMENT
from service.inference.tokenizing import EncodedText
from service.inference.totals import EngineState
from tests.service.clock import Clock
from tests.service.inference.engines import SECONDS, Caller, Gate, engine_of, ids, is_empty, window


def test_a_request_gets_its_rows_in_order() -> None:
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
def test_every_request_gets_its_own_rows(
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


def test_an_error_fails_only_its_own_batch(caplog: pytest.LogCaptureFixture) -> None:
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
        # The thread goes on, and nothing is left in the queue.
        again = caller.ask(window(6))
        caller.wait_for(6)
        assert isinstance(caller.outcome(again), Completed)
        engine.close(SECONDS)
        assert is_empty(engine)
        assert engine.state().failed_jobs == {"error": 2, "not_finite": 0}
    assert "RuntimeError" in caplog.text
    assert "somebody" not in caplog.text


def test_a_failed_request_is_told_once_and_its_other_parts_are_dropped() -> None:
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


def test_a_caller_who_left_while_the_batch_ran_is_not_told() -> None:
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


def test_run_waits_for_the_result() -> None:
    text = EncodedText((window(3),), truncated=False)  # type: ignore[arg-type]
    with engine_of(Gate()) as engine:
        assert engine.run([text]).tolist() == [[3, 4]]
    with engine_of(Gate(fails_on=3)) as engine, pytest.raises(RuntimeError):
        engine.run([text])


def test_a_closed_engine_finishes_its_queue_and_accepts_no_more() -> None:
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


def test_a_failing_callback_does_not_stop_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_job: Job) -> None:
        raise RuntimeError("a text of somebody")

    with engine_of(Gate()) as engine:
        engine.submit([EncodedText((window(0),), truncated=False)], fail)  # type: ignore[arg-type]
        caller = Caller(engine)
        caller.ask(window(1))
        caller.wait_for(1)
    assert "somebody" not in caplog.text


def test_the_engine_answers_like_the_classifier(tiny_package: Path) -> None:
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


def test_the_state_tells_what_waits_and_what_runs() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    none = {"error": 0, "not_finite": 0}
    with engine_of(gate, clock=clock) as engine:
        caller = Caller(engine)
        assert engine.state() == EngineState(failed_jobs=none)
        caller.ask(window(0, 4))
        gate.wait_until_busy()
        clock.now += 2
        # The longer one arrives first and is due later.
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


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own there")
def test_inference_threads_have_a_lower_priority() -> None:
    """With it, at three times the capacity, refusals took a tenth of the time and none was late."""
    niceness: list[int] = []

    class Asking:
        def logits(self, encodings: Sequence[Any]) -> Any:
            niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return np.zeros((len(encodings), 2), dtype=np.float32)

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with engine_of(Asking()) as engine:
        engine.run([EncodedText((window(0),), truncated=False)])
    assert niceness == [min(19, own + NICE_INCREMENT)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    engine = Engine(Gate(), Capacity(threads=1))
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
    engine = Engine(gate, Capacity(threads=1))
    Caller(engine).ask(window(0))
    gate.wait_until_busy()
    engine.close(0.05)
    assert engine.running_seconds > 0
    gate.open()
    engine.close(SECONDS)


class Flaky(Gate):
    """A gate whose model fails for some windows, each in one of several ways."""

    def __init__(self, fails: dict[int, str]) -> None:
        super().__init__(is_open=False)
        self._fails = fails

    def logits(self, encodings: Sequence[Any]) -> Any:
        rows = super().logits(encodings)
        for row, ids_of_window in enumerate(encodings):
            match self._fails.get(ids_of_window[0]):
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
def test_an_outcome_is_complete_and_right_or_an_error(
    requests: list[list[int]],
    threads: int,
    batch_tokens: int,
    fails: dict[int, str],
    left: set[int],
    late: bool,
) -> None:
    """For any windows, any failing batch, and callers who leave before or meanwhile."""
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
            # Their batch may be computed by now, or not.
            flaky.let_one_batch_go()
        for index in gone:
            engine.cancel(jobs[index][0])
        flaky.open()
        stay = [pair for index, pair in enumerate(jobs) if index not in gone]
        engine.close(SECONDS)
        # Each is told once; callers who left may have been told before.
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
                # Logits that are not finite fail only their own request.
                assert failing and isinstance(outcome.error, NotFiniteError)


def test_a_request_whose_second_batch_fails_has_no_result() -> None:
    flaky = Flaky({1: "raise"})
    flaky.open()
    with engine_of(flaky, batch_tokens=8) as engine:
        texts = [EncodedText((window(number, 8),), truncated=False) for number in (0, 1)]  # type: ignore[arg-type]
        with pytest.raises(MemoryError):
            engine.run(texts)
        assert len(flaky.batches) == 2


def test_logits_that_are_not_finite_are_a_failure(
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
    assert "not finite for 2 windows" in caplog.text


def test_tokenizing_tasks_keep_their_order_and_fail_together() -> None:
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
