"""The order of the queue: batches, fairness between short and long, both stages in one order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.inference.engine import Engine
from service.inference.errors import OverloadedError
from service.inference.jobs import Job
from service.inference.queue import MAX_CLOSED_PARTS, Queue
from service.inference.tokenizing import EncodedText
from tests.service.clock import Clock
from tests.service.inference.engines import Caller, Gate, engine_of, ids, is_empty, window


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


def test_idle_threads_share_the_waiting_windows() -> None:
    queue = Queue(batch_tokens=128)
    job: Job[Any] = Job("inference", 8, list, print, submitted=0.0)
    queue.push_windows(job, [window(number) for number in range(8)], pace=0.0)  # type: ignore[arg-type]
    assert [len(queue.take(idle, "inference").entries) for idle in (1, 1, 0)] == [4, 2, 2]


def test_windows_of_similar_length_are_batched_together() -> None:
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
    # It waited only for the running batch.
    assert ids(gate.batches[1]) == [99]


def test_a_window_that_is_due_is_not_overtaken() -> None:
    gate = Gate(is_open=False)
    # The model is so fast that earlier windows are always due earlier.
    with engine_of(gate, batch_tokens=100, seconds_per_token=1e-12) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        caller.ask(window(1, 100))
        caller.ask(window(2))
        gate.open()
        caller.wait_for(3)
    assert [ids(batch) for batch in gate.batches] == [[0], [1], [2]]


def test_short_texts_take_turns_with_long_ones_that_are_late() -> None:
    gate = Gate(is_open=False)
    # The model is so fast that windows are due in the order of their arrival.
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
    # After twelve tokens of a long text, short texts have as many: four of them in a batch.
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


def test_tokenizing_tasks_and_windows_share_one_order() -> None:
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


def test_a_tokenized_request_keeps_its_place_in_the_order() -> None:
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


def test_separate_threads_tokenize_while_the_model_computes() -> None:
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


def test_the_windows_of_canceled_requests_are_freed() -> None:
    """They may be many, and their turn may be far off."""
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
        assert sum(each() is not None for each in kept) <= 2 * MAX_CLOSED_PARTS
        gate.open()
        caller.wait_for(3)
        assert is_empty(engine)


# The background


def start_background(caller: Caller, *windows: Any, seconds: float | None = None) -> Job[Any]:
    texts = [EncodedText((each,), truncated=False) for each in windows]
    return caller.start(caller.engine.submit, texts, seconds=seconds, background=True)


def test_background_windows_go_after_everything_else() -> None:
    gate, clock = Gate(is_open=False), Clock()
    with engine_of(gate, batch_tokens=100, clock=clock) as engine:
        caller = Caller(engine)
        first = caller.ask(window(0))
        gate.wait_until_busy()
        behind = start_background(caller, window(1), window(2))
        clock.now += 50
        # They arrive much later, and are long, short or still to be tokenized.
        long = caller.ask(window(3, 90))
        short = caller.ask(window(4))
        text = caller.tokenize(lambda: [])
        gate.open()
        caller.wait_for(5)
    assert set(caller.order[:4]) == {first, long, short, text}
    assert caller.order[4] is behind
    assert sorted(ids(gate.batches[-1])) == [1, 2]


def test_background_windows_share_no_batch_and_come_in_small_ones() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, batch_tokens=64) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        start_background(caller, *(window(number) for number in range(10, 18)))
        caller.ask(window(1))
        gate.open()
        caller.wait_for(3)
        assert is_empty(engine)
    assert [ids(batch) for batch in gate.batches] == [
        [0],
        [1],
        [10, 11, 12, 13],
        [14, 15, 16, 17],
    ]


@contextmanager
def slow_engine(gate: Gate) -> Iterator[tuple[Engine, Caller]]:
    """A busy engine whose tokens take a second each; its queue has room for 40."""
    options: dict[str, Any] = {"clock": Clock(), "seconds_per_token": 1.0, "queue_tokens": 40}
    with engine_of(gate, **options) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        yield engine, caller


def test_background_windows_refuse_and_restrict_no_other_request() -> None:
    gate = Gate(is_open=False)
    with slow_engine(gate) as (engine, caller):
        start_background(caller, window(1, 36))
        before = engine.state()
        caller.ask(window(2, 38), seconds=100)
        assert before.waiting_tokens == 0
        assert engine.admission.token_rate.value == 1.0
        gate.open()
        caller.wait_for(3)


def test_background_windows_are_refused_behind_all_that_waits() -> None:
    gate = Gate(is_open=False)
    with slow_engine(gate) as (_, caller):
        caller.ask(window(1, 20))
        with pytest.raises(OverloadedError) as late:
            start_background(caller, window(2), seconds=20)
        start_background(caller, window(3, 30))
        with pytest.raises(OverloadedError) as full:
            start_background(caller, window(4, 30))
        assert (late.value.reason, full.value.reason) == ("deadline", "queue_full")
        gate.open()
        caller.wait_for(3)


def test_a_canceled_background_job_is_gone_and_teaches_no_lateness() -> None:
    gate, clock = Gate(is_open=False), Clock()
    with engine_of(gate, clock=clock) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        job = start_background(caller, window(1), window(2))
        kept = start_background(caller, window(3))
        clock.now += 100
        engine.cancel(job)
        assert engine.admission.margin(100.0) == 0
        gate.open()
        caller.wait_for(2)
        assert caller.order[-1] is kept
        assert [ids(batch) for batch in gate.batches] == [[0], [3]]
