"""What a request has waited for the event loop before it was read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import uvloop

from service.http.errors import refusal_of
from service.http.request import Request
from service.http.routes import Routes
from service.http.turns import Arrival, Turns
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.inference.errors import OverloadedError
from tests.servers import routes_of
from tests.service.http.callers import ask

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_bytes_that_came_during_a_long_turn_came_after_the_first_moment(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Bytes go over a real socket; the loop is busy for 50 ms then, and other requests come."""
    turns = Turns()
    written: list[float] = []
    moments: list[tuple[float, float]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            await reader.readexactly(1)
            moments.append((turns.look().moment, monotonic()))
        writer.close()

    async def others() -> None:
        while len(moments) < 5:
            turns.look()
            await asyncio.sleep(0)

    async def scenario() -> None:
        busy = asyncio.create_task(others())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with server:
            for number in range(5):
                written.append(monotonic())
                writer.write(b"x")
                time.sleep(0.05)
                while len(moments) <= number:
                    await asyncio.sleep(0)
            writer.close()
        await busy

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
    for came, (first_moment, served) in zip(written, moments, strict=True):
        assert first_moment <= came <= served


def test_a_request_to_an_idle_loop_has_not_waited() -> None:
    turns = Turns()

    async def scenario() -> tuple[float, float, float]:
        turns.look()
        await asyncio.sleep(0.05)
        before = monotonic()
        return before, turns.look().moment, monotonic()

    before, moment, after = asyncio.run(scenario())
    assert before <= moment <= after


def request_of(headers: list[tuple[bytes, bytes]]) -> Request:
    async def receive() -> Any:
        raise AssertionError

    return Request.of({"path": "/classify", "headers": headers}, receive)


def test_the_engine_gets_what_the_event_loop_leaves() -> None:
    request = request_of([])
    request.came(Arrival(request.started - 0.25, behind=0.2))
    request.deadline = request.started + 1
    assert request.seconds_left < 0.75
    # The answer is likely to wait as long as the request did.
    assert request.seconds_to_compute < 0.55
    # What every loop needs now and then changes nothing: no request goes before others for it.
    request = request_of([])
    request.came(Arrival(request.started + 1, behind=0.001))
    assert request.started < monotonic()
    assert request.behind == 0


@pytest.mark.parametrize(("milliseconds", "expected"), [("100", 504), ("10000", 200)])
def test_what_a_request_waits_for_the_event_loop_counts_towards_its_deadline(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, milliseconds: str, expected: int
) -> None:
    checked: list[tuple[float, float]] = []

    def check(_engine: Engine, seconds: float, tokens: float = 1) -> None:
        checked.append((seconds, tokens))

    async def others(routes: Routes) -> None:
        while True:
            assert (await ask(routes, {}))[0] == 422
            await asyncio.sleep(0)

    async def scenario(routes: Routes) -> int:
        busy = asyncio.create_task(others(routes))
        for _ in range(5):
            await asyncio.sleep(0)
        headers = {"x-request-timeout-ms": milliseconds}
        asked = asyncio.create_task(ask(routes, {"input": "word " * 50}, headers=headers))
        time.sleep(0.2)
        status, _, _ = await asked
        busy.cancel()
        return status

    monkeypatch.setattr(Engine, "check", check)
    with routes_of(classifier) as routes:
        assert asyncio.run(scenario(routes)) == expected
    if expected == 200:
        ((seconds, tokens),) = checked
        # It waited for 0.2 s, and so may its answer.
        assert seconds <= 10 - 2 * 0.2
        # As many as the text is likely to have.
        assert tokens > 10


def test_what_is_too_long_only_because_the_loop_is_behind_can_be_asked_again() -> None:
    too_long = OverloadedError(0.2, "too_long")
    assert refusal_of(too_long).reason == "too_long"
    late = refusal_of(too_long, behind=1.0)
    assert late.reason == "deadline"
    assert dict(late.headers)[b"retry-after"] == b"2"
