"""Requests that wait: deadlines, overload, callers who leave, faults of model and tokenizer."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import tracemalloc
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.http.routes import Routes
from service.inference.classifier import Classifier
from service.inference.errors import OverloadedError
from service.inference.tokenizing import TextEncoder, TokenizationOptions
from service.inference.totals import Totals
from tests.servers import routes_of
from tests.service.http.callers import Slow, ask, busy


def test_a_request_past_its_deadline_is_answered_504_and_dropped(classifier: Classifier) -> None:
    slow = Slow(classifier)

    async def scenario(routes: Routes) -> None:
        first = asyncio.create_task(ask(routes, {"input": "a"}))
        await busy(slow)
        late = {"x-request-timeout-ms": "150"}
        status, _, body = await ask(routes, {"input": "b"}, headers=late)
        assert (status, body["error"]["type"]) == (504, "deadline_exceeded")
        status, _, body = await ask(routes, {"inputs": "b"}, path="/predict", headers=late)
        assert (status, body["error_type"]) == (504, "Backend")
        slow.gate.release()
        assert (await first)[0] == 200

    with routes_of(slow) as routes:
        asyncio.run(scenario(routes))
    # Neither late request was computed.
    assert slow.batches == 1


@pytest.mark.parametrize(("path", "field"), [("/classify", "input"), ("/predict", "inputs")])
def test_a_waiting_request_does_not_hold_its_decoded_body(
    classifier: Classifier, path: str, field: str
) -> None:
    """A megabyte of ignored fields must not occupy many megabytes while the request waits."""
    slow = Slow(classifier)
    content = {field: "a", "x": [{}] * 130_000, "rid": [{}] * 130_000}

    async def scenario(routes: Routes) -> int:
        before, _ = tracemalloc.get_traced_memory()
        asked = asyncio.create_task(ask(routes, content, path=path))
        await busy(slow)
        held, _ = tracemalloc.get_traced_memory()
        slow.gate.release()
        assert (await asked)[0] == 200
        return held - before

    with routes_of(slow, max_body_bytes=1 << 21) as routes:
        tracemalloc.start()
        try:
            held = asyncio.run(scenario(routes))
        finally:
            tracemalloc.stop()
    # The test's caller holds the bytes of the body.
    body_bytes = len(json.dumps(content))
    assert held < 1.5 * body_bytes


@pytest.mark.parametrize("most", ["600000", "9" * 18, "9" * 1_000_000, "0" * 100 + "151"])
def test_no_caller_gets_more_time_than_the_operator_allows(
    classifier: Classifier, most: str
) -> None:
    slow = Slow(classifier)

    async def scenario(routes: Routes) -> None:
        asked = asyncio.create_task(
            ask(routes, {"input": "a"}, headers={"x-request-timeout-ms": most})
        )
        assert (await asyncio.wait_for(asked, 30))[0] == 504
        slow.gate.release()

    with routes_of(slow, timeout_ms=150) as routes:
        asyncio.run(scenario(routes))


def test_a_full_queue_is_answered_at_once_with_retry_after(classifier: Classifier) -> None:
    slow = Slow(classifier)

    async def scenario(routes: Routes) -> None:
        first = asyncio.create_task(ask(routes, {"input": "a"}))
        await busy(slow)
        second = asyncio.create_task(ask(routes, {"input": "b " * 6}))
        await asyncio.sleep(0)
        status, headers, body = await ask(routes, {"input": "c"})
        assert (status, body["error"]["type"]) == (429, "overloaded")
        assert int(headers["retry-after"]) >= 1
        status, headers, body = await ask(routes, {"inputs": "c"}, path="/predict")
        assert (status, body["error_type"]) == (429, "Overloaded")
        assert int(headers["retry-after"]) >= 1
        slow.gate.release(2)
        assert [(await task)[0] for task in (first, second)] == [200, 200]

    with routes_of(slow, queue_tokens=10) as routes:
        asyncio.run(scenario(routes))


def test_a_request_that_would_be_refused_anyway_is_not_tokenized(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OverloadedError(3.2, "deadline")

    def encode(*_: object, **__: object) -> None:
        raise AssertionError("tokenized for nothing")

    with routes_of(classifier) as routes:
        monkeypatch.setattr("service.inference.engine.Engine.check", full)
        monkeypatch.setattr(TextEncoder, "encode_beginnings", encode)
        status, headers, _ = asyncio.run(ask(routes, {"input": "a"}))
    assert (status, headers["retry-after"]) == (429, "4")


def test_the_work_of_a_caller_who_left_is_dropped(classifier: Classifier) -> None:
    slow = Slow(classifier)

    async def scenario(routes: Routes) -> None:
        leave = asyncio.Event()
        first = asyncio.create_task(ask(routes, {"input": "a"}))
        await busy(slow)
        gone = asyncio.create_task(ask(routes, {"input": "b"}, leave=leave))
        await asyncio.sleep(0.01)
        leave.set()
        assert (await gone)[0] == 0
        slow.gate.release()
        assert (await first)[0] == 200

    with routes_of(slow) as routes:
        asyncio.run(scenario(routes))
    assert slow.batches == 1


def test_the_rest_is_not_tokenized_after_the_caller_left(classifier: Classifier) -> None:
    class Counting(Slow):
        parts = 0

        def encode(self, texts: Any, *options: Any) -> Any:
            self.parts += 1
            self.inside.release()
            assert self.gate.acquire(timeout=30)
            return super().encode(texts, *options)

    counting = Counting(classifier)

    async def scenario(routes: Routes) -> None:
        leave = asyncio.Event()
        gone = asyncio.create_task(ask(routes, {"input": ["word " * 4000] * 20}, leave=leave))
        await busy(counting)
        leave.set()
        await asyncio.sleep(0.01)
        counting.gate.release(100)
        assert (await gone)[0] == 0

    with routes_of(counting) as routes:
        asyncio.run(scenario(routes))
    assert (counting.parts, counting.batches) == (1, 0)


def test_a_fault_of_the_model_fails_only_its_own_request(classifier: Classifier) -> None:
    class Broken(Slow):
        def logits(self, encodings: Any) -> Any:
            if len(encodings[0]) > 10:
                raise RuntimeError("a text of somebody")
            return Classifier.logits(self, encodings)

    with routes_of(Broken(classifier)) as routes:
        client = TestClient(routes)
        answer = client.post("/classify", json={"input": "word " * 20})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
        refused = client.post("/predict", json={"inputs": "word " * 20})
        assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
        assert "somebody" not in answer.text + refused.text
        assert client.post("/classify", json={"input": "word"}).status_code == 200


class NotFinite(Slow):
    """A model whose logits are NaN for texts of more than ten tokens."""

    def logits(self, encodings: Any) -> Any:
        rows = Classifier.logits(self, encodings).copy()
        for row, encoding in zip(rows, encodings, strict=True):
            if len(encoding) > 10:
                row[1] = np.nan
        return rows


def test_logits_that_are_not_finite_are_a_fault_of_the_server(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    with routes_of(NotFinite(classifier)) as routes:
        client = TestClient(routes)
        for texts in ("word " * 20, ["word", "word " * 20]):
            answer = client.post("/classify", json={"input": texts})
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
        refused = client.post("/predict", json={"inputs": "word " * 20})
        assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
        assert client.post("/classify", json={"input": "word"}).status_code == 200
    assert "not finite for 1 windows" in caplog.text
    assert "word" not in caplog.text


class StuckTokenizer(Slow):
    """The classifier, whose tokenizer threads wait at a gate until the test opens it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier)
        self.parts = 0

    def encode(self, texts: Any, *options: Any) -> Any:
        self.parts += 1
        self.inside.release()
        assert self.gate.acquire(timeout=30)
        return super().encode(texts, *options)

    def logits(self, encodings: Any) -> Any:
        return Classifier.logits(self, encodings)


def test_a_request_that_waits_for_tokenizing_is_answered_by_its_deadline(
    classifier: Classifier,
) -> None:
    """Eighty long texts and two short ones, none of which is finished."""
    stuck = StuckTokenizer(classifier)

    async def scenario(routes: Routes) -> list[tuple[int, Any, Any]]:
        # A text without a space is read whole.
        long = [asyncio.create_task(ask(routes, {"input": "x" * 100_000})) for _ in range(80)]
        await busy(stuck)
        hurried = {"x-request-timeout-ms": "50"}
        other = asyncio.create_task(ask(routes, {"input": "y" * 20_000}, headers=hurried))
        short = asyncio.create_task(ask(routes, {"input": "where is it"}, headers=hurried))
        return await asyncio.gather(other, short, *long)

    with routes_of(stuck, timeout_ms=500) as routes:
        answers = asyncio.run(scenario(routes))
        stuck.gate.release(100)
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {429, 504}
    assert set(statuses[:2]) <= {429, 504} and statuses.count(504) >= 1
    # Texts that nobody waits for are not tokenized.
    assert stuck.parts == 1


def test_long_texts_that_cannot_be_tokenized_in_time_are_refused_at_once(
    classifier: Classifier,
) -> None:
    stuck = StuckTokenizer(classifier)

    async def scenario(routes: Routes) -> list[tuple[int, Any, Any]]:
        first = asyncio.create_task(ask(routes, {"input": "x" * 100_000}))
        await busy(stuck)
        # Each takes about 50 ms, so together they take far more than a second.
        texts = ["x" * 99_999] * 10
        rest = [asyncio.create_task(ask(routes, {"input": texts})) for _ in range(20)]
        done, _ = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result() for task in done]
        stuck.gate.release(1000)
        await asyncio.gather(first, *rest)
        return refused

    with routes_of(
        stuck, timeout_ms=1000, max_characters=100_000, max_body_bytes=1 << 22
    ) as routes:
        refused = asyncio.run(scenario(routes))
    assert {status for status, _, _ in refused} == {429}
    assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in refused)


@pytest.mark.parametrize("repeated", [1, 10_000])
@pytest.mark.parametrize("options", [{}, {"truncate_prompt_tokens": 8}])
def test_a_tokenizer_that_fails_is_a_fault_of_the_server(
    classifier: Classifier,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    repeated: int,
    options: dict[str, Any],
) -> None:
    """In the event loop, for a short text, and in the threads, for a long one."""

    def broken(_encoder: TextEncoder, texts: Any, *_: Any) -> Any:
        raise RuntimeError(f"cannot read {texts}")

    counted: list[Exception] = []
    monkeypatch.setattr(Totals, "count_failure", lambda _, error: counted.append(error))
    classifier.encoder.prepare(TokenizationOptions(max_length=8))
    with routes_of(classifier) as routes:
        for name in ("encode", "encode_beginnings"):
            monkeypatch.setattr(TextEncoder, name, broken)
        body = {"input": "secret" * repeated, **options}
        answer = TestClient(routes).post("/classify", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert "tokenized" in answer.json()["error"]["message"]
    assert "RuntimeError" in caplog.text
    assert "secret" not in answer.text + caplog.text
    assert len(counted) == 1


def test_more_of_a_text_is_read_where_its_beginning_does_not_suffice(
    client: TestClient, classifier: Classifier
) -> None:
    """Spaces are not tokens, so the text behind them counts."""
    text = "where is" + " " * 5_000 + "my parcel"
    answer = client.post("/classify", json={"input": [text, "word"]}).json()
    expected = classifier.classify(["where is my parcel"])[0]
    assert answer["data"][0]["probs"] == pytest.approx(expected.probs.tolist(), abs=1e-5)
    assert answer["data"][0]["truncated"] is False


def test_many_long_texts_get_their_own_answers(client: TestClient, classifier: Classifier) -> None:
    texts = [f"{index} " + "word " * 1000 for index in range(20)] + ["short"]
    answer = client.post("/classify", json={"input": texts}).json()
    for item, expected in zip(answer["data"], classifier.classify(texts), strict=True):
        assert item["probs"] == pytest.approx(expected.probs.tolist(), abs=1e-5)


def test_a_fault_of_the_server_shows_neither_trace_nor_text(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(TextEncoder):
        def encode_beginnings(self, beginnings: Any) -> Any:
            raise RuntimeError(f"cannot classify {beginnings}")

    broken = copy.copy(classifier)
    broken.encoder = copy.copy(classifier.encoder)
    broken.encoder.__class__ = Broken
    with routes_of(broken) as routes, caplog.at_level(logging.DEBUG):
        # An exception that escaped the application would be raised here.
        answer = TestClient(routes).post("/classify", json={"input": "a secret text"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret" not in caplog.text
