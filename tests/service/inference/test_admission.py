"""Admission: refused at once, or in time; deadlines, lateness, urgent requests, measured rates."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.admission import FIRST_SECONDS_PER_TOKEN
from service.inference.engine import Engine
from service.inference.errors import ClosedError, OverloadedError
from service.inference.schedule import MEASURE_AFTER
from service.inference.tokenizing import EncodedText
from tests.s3 import wait_until
from tests.service.clock import Clock
from tests.service.inference.engines import SECONDS, Caller, Gate, engine_of, ids, is_empty, window


def pause_long_ago(engine: Engine, seconds_per_token: float) -> None:
    """Raise the measured time per token, as a long pause in a batch does."""
    engine.admission.token_rate.learn(seconds_per_token * 1_000_000, 1_000_000)


def test_a_full_queue_refuses_and_says_when_to_retry() -> None:
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


def test_a_request_larger_than_the_queue_is_accepted_when_nothing_waits() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, queue_tokens=40) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        caller.ask(window(1, 100))
        with pytest.raises(OverloadedError):
            caller.ask(window(2))


def test_a_request_that_would_miss_its_deadline_is_refused_at_once() -> None:
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


def test_recent_lateness_counts_and_is_forgotten() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        # It must be ready after 0.675 s, and others may take 0.275 s of that.
        job = caller.ask(window(0, 40), seconds=1)
        gate.wait_until_busy()
        engine.cancel(caller.ask(window(1, 25), seconds=1))
        clock.now += 0.9
        engine.cancel(job)
        # It was late by 0.225 s, so 0.25 s after the 0.4 s of the running batch are too much.
        with pytest.raises(OverloadedError):
            caller.ask(window(1, 25), seconds=1)
        # However large the lateness is, half of the time counts as usable.
        job = caller.ask(window(1, 5))
        clock.now += 100
        engine.cancel(job)
        assert caller.ask(window(1, 15), seconds=2) is not None
        clock.now += 120
        assert engine.admission.margin(1.0) < 1e-3


def test_a_request_that_is_due_later_is_not_late() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        job = caller.ask(window(0, 40), seconds=60)
        gate.wait_until_busy()
        # Others may go first for eight times the time that it takes.
        clock.now += 3
        engine.confirm(job)
        assert engine.admission.margin(10) == 0


def test_the_time_per_token_is_measured() -> None:
    with engine_of(Gate()) as engine:
        caller = Caller(engine)
        for number in range(20):
            caller.ask(window(number, 10))
        caller.wait_for(20)
        engine.close(SECONDS)
        # A stand-in that only copies numbers is a thousand times faster than an encoder.
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
        # One measurement at a time: not while a batch runs, and not soon after the last one.
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


def test_small_accepted_requests_do_not_preserve_a_wrong_rate() -> None:
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


def test_a_slow_measurement_does_not_raise_the_rate() -> None:
    """A caller without time is refused rightly; this must not affect other requests."""
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


def test_check_refuses_by_the_estimate_of_tokens() -> None:
    gate = Gate(is_open=False)
    with engine_of(gate, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        caller.ask(window(0, 50))
        gate.wait_until_busy()
        engine.check(1)
        with pytest.raises(OverloadedError) as refused:
            engine.check(1, tokens=30)
        assert refused.value.reason == "deadline"
        # As `submit` would.
        with pytest.raises(OverloadedError):
            caller.ask(window(1, 30), seconds=1)
    # An idle engine lets everything be tokenized.
    with engine_of(Gate(), seconds_per_token=0.01) as engine:
        engine.check(1, tokens=1000)


def test_check_refuses_what_no_short_text_could_avoid() -> None:
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


def test_tokenizing_that_would_miss_the_deadline_is_refused_at_once() -> None:
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
        # A short text with as much time is refused because of the same work.
        clock.now += 0.3
        with pytest.raises(OverloadedError):
            engine.check(0.7)
        engine.cancel(waiting)
        engine.check(0.7)


def test_the_expected_tokens_of_tokenizing_tasks_count() -> None:
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
        # The number is an estimate, so only half of it counts towards a refusal.
        with pytest.raises(OverloadedError):
            caller.tokenize(lambda: [], promised=1600, seconds=1)
        caller.tokenize(lambda: [], promised=1300, seconds=1)


def test_an_urgent_request_goes_before_requests_that_can_wait() -> None:
    clock = Clock()
    gate = Gate(is_open=False)
    with engine_of(gate, clock=clock, batch_tokens=100, seconds_per_token=0.01) as engine:
        caller = Caller(engine)
        caller.ask(window(0))
        gate.wait_until_busy()
        # Five windows of one second each and a text take 6.54 s of the promised 6.75 s.
        crowd = [caller.ask(window(number, 100), seconds=10) for number in range(1, 6)]
        text = caller.tokenize(lambda: [], cost=1.5, seconds=10)
        # A later request with as much time has no reason to go first.
        with pytest.raises(OverloadedError):
            caller.ask(window(6, 30), seconds=10)
        hurry = caller.ask(window(7, 50), seconds=2)
        read = caller.tokenize(lambda: [], cost=0.1, seconds=2)
        # The last of the crowd can wait for 0.75 s, of which 0.6 s are promised by now.
        with pytest.raises(OverloadedError):
            caller.ask(window(8, 40), seconds=3)
        gate.open()
        caller.wait_for(9)
        assert caller.order[1:3] == [hurry, read]
        assert set(caller.order[3:]) == {*crowd, text}
        assert is_empty(engine)


def test_threads_that_only_tokenize_do_not_admit_urgent_requests() -> None:
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
        # The only thread that computes is busy for a second.
        with pytest.raises(OverloadedError):
            caller.ask(window(2, 10), seconds=1)
        clock.now += 0.8
        caller.ask(window(2, 10), seconds=1)
        stop.set()


class Timed(Gate):
    """A model whose batches advance the test's clock."""

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
def test_every_admitted_request_is_in_time_despite_urgent_ones(
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


def test_an_idle_engine_tokenizes_a_text_in_spite_of_its_estimate() -> None:
    clock = Clock()
    with engine_of(Gate(), clock=clock) as engine:
        caller = Caller(engine)
        with pytest.raises(OverloadedError):
            caller.tokenize(lambda: [], cost=100, seconds=1)
        clock.now += MEASURE_AFTER + 0.1
        caller.tokenize(lambda: [], cost=100, seconds=1)
        caller.wait_for(1)
