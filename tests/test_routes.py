"""The HTTP routes in process: the contract of `/classify`, and every refusal."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import math
import re
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from service.asgi import SWALLOWED_BODIES
from service.classifier import Classifier
from service.inference.admission import ClosedError, OverloadedError
from service.inference.tokenizing import TextEncoder, TokenizationOptions
from service.inference.totals import Totals
from service.openapi import NOT_BLANK
from service.routes import ROUTES, Routes
from service.schemas import Limits
from service.settings import Settings
from tests.servers import routes_of

LABELS = ["delivery", "praise", "returns"]
LIMITS = Limits()


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[TestClient]:
    with routes_of(classifier, threads=2) as routes:
        yield TestClient(routes)


def post(client: TestClient, body: bytes, content_type: str = "application/json") -> Any:
    return client.post("/classify", content=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize("route", ["/classify", "/v1/classify"])
def test_the_answer_has_the_contracts_fields(
    client: TestClient, classifier: Classifier, route: str
) -> None:
    texts = ["where is my parcel", "thank you so much"]
    answer = client.post(route, json={"model": "anything", "input": texts}).json()
    manifest = classifier.manifest
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", f"tiny:{manifest.version}")
    expected = classifier.classify(texts)
    tokens = sum(prediction.tokens for prediction in expected)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    for index, (item, prediction) in enumerate(zip(answer["data"], expected, strict=True)):
        assert set(item) == {"index", "label", "score", "truncated", "probs", "num_classes"}
        assert (item["index"], item["num_classes"]) == (index, 3)
        assert item["label"] == prediction.label
        assert item["probs"] == pytest.approx(prediction.probs.tolist(), abs=1e-5)
        assert item["score"] == max(item["probs"])


def test_one_text_may_come_alone(client: TestClient) -> None:
    assert len(client.post("/classify", json={"input": "hello"}).json()["data"]) == 1


def test_top_k_limits_scores_and_leaves_probs_whole(client: TestClient) -> None:
    body = {"input": "hello", "top_k": 2}
    item = client.post("/classify", json=body).json()["data"][0]
    assert item["probs"] == pytest.approx(item["probs"]) and len(item["probs"]) == 3
    ranked = sorted(zip(item["probs"], LABELS, strict=True), reverse=True)[:2]
    assert item["scores"] == {label: score for score, label in ranked}
    assert next(iter(item["scores"])) == item["label"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"input": NaN}', 400, None),
        (b'{"input": Infinity}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'"text"', 422, None),
        (b"{}", 422, "input"),
        (b'{"inputs": "x"}', 422, "input"),
        (b'{"input": []}', 422, "input"),
        (b'{"input": null}', 422, "input"),
        (b'{"input": 7}', 422, "input"),
        (b'{"input": {"text": "x"}}', 422, "input"),
        (b'{"input": ""}', 422, "input"),
        (b'{"input": ["a", ""]}', 422, "input[1]"),
        (b'{"input": ["a", "b", " \\n"]}', 422, "input[2]"),
        (b'{"input": ["a", 7]}', 422, "input[1]"),
        (b'{"input": ["a", null]}', 422, "input[1]"),
        (b'{"input": ["a", ["b"]]}', 422, "input[1]"),
        (b'{"input": ["\\ud800"]}', 422, "input[0]"),
        (b'{"input": "a", "top_k": 0}', 422, "top_k"),
        (b'{"input": "a", "top_k": "2"}', 422, "top_k"),
        (b'{"input": "a", "model": 7}', 422, "model"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    client: TestClient, body: bytes, status: int, param: str | None
) -> None:
    answer = post(client, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param)


def test_too_many_texts_are_refused_whole(client: TestClient) -> None:
    assert client.post("/classify", json={"input": ["a"] * LIMITS.max_texts}).status_code == 200
    answer = client.post("/classify", json={"input": ["a"] * (LIMITS.max_texts + 1)})
    assert answer.status_code == 422
    assert str(LIMITS.max_texts) in answer.json()["error"]["message"]


def test_a_text_beyond_the_limit_is_refused(client: TestClient) -> None:
    assert client.post("/classify", json={"input": "a" * LIMITS.max_characters}).status_code == 200
    answer = client.post("/classify", json={"input": ["a", "a" * (LIMITS.max_characters + 1)]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")


@pytest.mark.parametrize(
    "size", [LIMITS.max_body_bytes + 1, (SWALLOWED_BODIES + 1) * LIMITS.max_body_bytes]
)
def test_a_body_beyond_the_limit_is_answered_413(client: TestClient, size: int) -> None:
    assert post(client, b" " * size).status_code == 413


def test_a_body_at_the_limit_is_read(client: TestClient) -> None:
    body = json.dumps({"input": "hello"}).encode()
    assert post(client, body.ljust(LIMITS.max_body_bytes)).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(client: TestClient, content_type: str) -> None:
    assert post(client, b'{"input": "a"}', content_type).status_code == 415


def test_a_charset_beside_the_content_type_is_fine(client: TestClient) -> None:
    assert post(client, b'{"input": "a"}', "application/json; charset=utf-8").status_code == 200


def deflate(body: bytes, window_bits: int) -> bytes:
    packer = zlib.compressobj(wbits=window_bits)
    return packer.compress(body) + packer.flush()


CODINGS = {
    "gzip": lambda body: deflate(body, 31),
    "X-GZip": lambda body: deflate(body, 31),
    "deflate": lambda body: deflate(body, 15),
    "Deflate ": lambda body: deflate(body, -15),
    "identity": bytes,
    "": bytes,
}


def coded(client: TestClient, coding: str, body: bytes, path: str = "/classify") -> Any:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    return client.post(path, content=body, headers=headers)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_body_is_decoded(client: TestClient, coding: str) -> None:
    body = b'{"input": "where is my parcel"}'
    expected = post(client, body).json()["data"]
    assert coded(client, coding, CODINGS[coding](body)).json()["data"] == expected
    # A body at the limit on what comes out, and one beyond it.
    for size, status in ((LIMITS.max_body_bytes, 200), (LIMITS.max_body_bytes + 1, 413)):
        answer = coded(client, coding, CODINGS[coding](body.ljust(size)))
        assert answer.status_code == status


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: b"",
        lambda body: b"{}",
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body + b"x",
        lambda body: body[:-6] + b"\0" * 6,
    ],
)
def test_a_broken_coding_is_400(client: TestClient, coding: str, spoil: Any) -> None:
    for path in ("/classify", "/predict"):
        answer = coded(client, coding, spoil(CODINGS[coding](b'{"input": "a"}')), path)
        assert answer.status_code == 400
        assert f"not whole {coding}" in answer.text


def test_a_bomb_is_refused_without_its_room(client: TestClient) -> None:
    bomb = deflate(b" " * (300 << 20), 31)
    assert len(bomb) < LIMITS.max_body_bytes
    tracemalloc.start()
    try:
        answer = coded(client, "gzip", bomb)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "body_too_large")
    assert most < 10 * LIMITS.max_body_bytes


@pytest.mark.parametrize(
    ("coding", "named"),
    [("br", "br"), ("gzip, gzip", "of this kind"), ("zstd", "zstd"), ("é" * 9, "of this kind")],
)
def test_another_coding_is_415_and_says_which_are_read(
    client: TestClient, coding: str, named: str
) -> None:
    headers = {"Content-Type": b"application/json", "Content-Encoding": coding.encode()}
    answer = client.post("/classify", content=b"{}", headers=headers)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (
        415,
        "gzip, deflate, identity",
    )
    assert f"a Content-Encoding {named} is not read" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff{}", "the body is not UTF-8"),
        (b'{"input": -Infinity}', "-Infinity is no number"),
        (b'{"input": "a", "x": ' + b"1" * 5000 + b"}", "a number in the body has too many digits"),
        (b"[" * 1100 + b"]" * 1100, "the body is nested too deeply"),
        ('{"input": "a"}'.encode("utf-16"), "the body is UTF-16"),
        ('{"input": "a"}'.encode("utf-16-be"), "the body is UTF-16"),
        ('{"input": "a"}'.encode("utf-32-le"), "the body is UTF-32"),
    ],
)
def test_a_body_that_is_no_json_is_told_why(client: TestClient, body: bytes, said: str) -> None:
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(("the body", "a number"))
    assert said in answer.json()["error"]["message"]


def test_a_byte_order_mark_and_depth_below_the_limit_are_fine(client: TestClient) -> None:
    assert post(client, b'\xef\xbb\xbf{"input": "a"}').status_code == 200
    assert post(client, b'{"input": "a", "x": ' + b"[" * 899 + b"]" * 899 + b"}").status_code == 200
    # The way of what orjson does not take.
    assert post(client, b'{"input": "a", "x": "\\ud800"}').status_code == 200


def test_another_method_is_refused_in_the_same_schema(client: TestClient) -> None:
    answer = client.get("/classify")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, 405)


def test_before_a_model_is_attached_nothing_is_classified() -> None:
    client = TestClient(Routes(Settings()))
    assert client.post("/classify", json={"input": "a"}).status_code == 503


def test_info_tells_what_is_served(client: TestClient, classifier: Classifier) -> None:
    answer = client.get("/info").json()
    assert answer["labels"] == LABELS
    assert answer["version"] == classifier.manifest.version
    assert answer["limits"]["texts"] == LIMITS.max_texts
    assert answer["provenance"]["dataset"]["train_rows"] > 0


def test_a_fault_of_ours_shows_neither_trace_nor_text(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(TextEncoder):
        def encode_beginnings(self, beginnings: Any) -> Any:
            raise RuntimeError(f"cannot classify {beginnings}")

    broken = copy.copy(classifier)
    broken.encoder = copy.copy(classifier.encoder)
    broken.encoder.__class__ = Broken
    with routes_of(broken) as routes, caplog.at_level(logging.DEBUG):
        # What escaped the application would be raised here, and logged by a server.
        answer = TestClient(routes).post("/classify", json={"input": "a secret text"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("inputs", [[], "", " ", [["a"], [""]]])
def test_predict_refuses_what_is_empty_as_the_server_it_follows(
    client: TestClient, inputs: Any
) -> None:
    answer = client.post("/predict", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "Empty")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": 7},
        {"inputs": [["a"], []]},
        {"inputs": [["a"], ["a", "b"]]},
        {"inputs": [["a"]] * (LIMITS.max_texts + 1)},
        {"inputs": "a", "truncation_direction": "Up"},
        {"inputs": "word " * 200, "truncate": False},
    ],
)
def test_predict_refuses_in_its_own_schema(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/predict", json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == "Validation"
    assert "word" not in answer.text


@pytest.mark.parametrize(
    "inputs", [[7] * 500_000, [[7] * 500_000], [{}] * 300_000, [["a"], *[7] * 500_000]]
)
def test_many_items_that_are_no_text_are_refused_at_the_first(
    client: TestClient, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydantic would write an error for each of them, for seconds."""

    def validate(_content: object) -> None:
        raise AssertionError("reached")

    monkeypatch.setattr("service.schemas.PredictRequest.model_validate", validate)
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    assert len(body) < LIMITS.max_body_bytes
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_a_text_that_was_cut_off_says_so(client: TestClient) -> None:
    answer = client.post("/classify", json={"input": ["short", "word " * 200]}).json()
    assert [item["truncated"] for item in answer["data"]] == [False, True]
    assert client.post("/predict", json={"inputs": "word " * 200}).status_code == 200


LONG = "lovely " * 40 + "parcel " * 40


def asked(client: TestClient, **body: Any) -> dict[str, Any]:
    """The item that answers one text."""
    answer = client.post("/classify", json={"input": LONG, **body})
    assert answer.status_code == 200, answer.text
    item = answer.json()["data"][0]
    return {**item, "tokens": answer.json()["usage"]["prompt_tokens"]}


def test_without_activation_probs_holds_logits(client: TestClient) -> None:
    plain = asked(client, return_logits=True, top_k=3)
    for value in (None, True):
        assert asked(client, use_activation=value)["probs"] == plain["probs"]
    bare = asked(client, use_activation=False, return_logits=True, top_k=3)
    assert bare["probs"] == bare["logits"] == pytest.approx(plain["logits"], abs=1e-5)
    # What is ours stays what it is.
    for name in ("label", "score", "scores"):
        assert bare[name] == plain[name]


def test_so_many_tokens_are_read_as_are_asked_for(client: TestClient) -> None:
    whole = asked(client)
    for most in (-1, 32, 32.0, None):
        assert asked(client, truncate_prompt_tokens=most) == whole
    short = asked(client, truncate_prompt_tokens=10)
    # [CLS] and [SEP] are two of them.
    assert (short["tokens"], short["truncated"]) == (10, True)
    assert short["probs"] == pytest.approx(asked(client, input="lovely " * 8)["probs"], abs=1e-5)
    left = asked(client, truncate_prompt_tokens=10, truncation_side="left")
    assert left["probs"] == pytest.approx(asked(client, input="parcel " * 8)["probs"], abs=1e-5)
    assert asked(client, truncation_side="left")["probs"] == pytest.approx(
        asked(client, input="parcel " * 30)["probs"], abs=1e-5
    )
    assert asked(client, truncation_side="right") == whole
    bare = asked(client, input="parcel", add_special_tokens=False, truncate_prompt_tokens=1)
    assert (bare["tokens"], bare["truncated"]) == (1, False)
    assert asked(client, input="parcel", add_special_tokens=None)["tokens"] == 3
    assert asked(client, add_special_tokens=False)["tokens"] == 32
    # The next one is read as ever.
    assert asked(client) == whole


def test_more_tokens_than_are_asked_for_are_refused_where_truncation_is(
    client: TestClient,
) -> None:
    body = {"input": "parcel " * 9, "truncate": False}
    assert asked(client, **body, truncate_prompt_tokens=11)["tokens"] == 11
    answer = client.post("/classify", json={**body, "truncate_prompt_tokens": 10})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[0]")
    assert "more than 10 tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"truncate_prompt_tokens": 33}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0, "add_special_tokens": False}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 10**30}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 2.5}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": "all"}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"use_activation": "no"}, "use_activation"),
        ({"add_special_tokens": 0}, "add_special_tokens"),
        ({"request_id": 7}, "request_id"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"activation": False}, "activation"),
        ({"softmax": False}, "softmax"),
        ({"normalize": False}, "normalize"),
        ({"raw_scores": True}, "raw_scores"),
        ({"truncation_direction": "Left"}, "truncation_direction"),
        ({"padding": "max_length"}, "padding"),
        ({"mm_processor_kwargs": {"size": 7}}, "mm_processor_kwargs"),
        ({"input": [101, 102]}, "input[0]"),
        ({"input": [[101, 102]]}, "input[0]"),
    ],
)
def test_what_would_change_the_answer_and_is_not_done_is_refused_by_name(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    answer = client.post("/classify", json={"input": "a", **body})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]
    assert "\n" not in error["message"]


def test_messages_are_refused_also_where_they_come_alone(client: TestClient) -> None:
    answer = client.post("/classify", json={"messages": []})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "messages")


HARMLESS_FIELDS = {
    "user": "u",
    "priority": 3,
    "cache_salt": "salt",
    "mm_processor_kwargs": None,
    "padding": None,
    "activation": True,
    "raw_scores": False,
    "messages": None,
    "rid": ["a", "b"],
}


def counting(counts: list[int]) -> SimpleNamespace:
    """Metrics that keep what ignored fields are counted."""
    return SimpleNamespace(
        ignored=counts.append,
        request=lambda *_: None,
        answered=lambda *_: None,
        close=lambda: None,
    )


def test_unknown_fields_are_ignored_and_counted(classifier: Classifier) -> None:
    counts: list[int] = []
    with routes_of(classifier, metrics=counting(counts)) as routes:
        client = TestClient(routes)
        plain = asked(client)
        assert asked(client, **HARMLESS_FIELDS) == plain
        assert counts == []
        strangers = {"top_p": 0.9, "mode": "fast", "metadata": {}, "encoding_format": "float"}
        assert asked(client, **strangers) == plain
        assert counts == [4]
        body = {"inputs": "a", "model": "x", "options": {"use_cache": True}, "stream": False}
        assert client.post("/predict", json=body).status_code == 200
        assert counts == [4, 1]


@pytest.mark.parametrize(
    ("path", "field", "ours"),
    [
        ("/classify", "topk", "top_k"),
        ("/classify", "top-k", "top_k"),
        ("/classify", "inputs", "input"),
        ("/classify", "truncationSide", "truncation_side"),
        ("/classify", "truncate_prompt_token", "truncate_prompt_tokens"),
        ("/classify", "return_logit", "return_logits"),
        ("/classify", "use_activations", "use_activation"),
        ("/predict", "raw_score", "raw_scores"),
        ("/predict", "truncation_directions", "truncation_direction"),
        ("/predict", "parameter", "parameters"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_right_name(
    client: TestClient, path: str, field: str, ours: str
) -> None:
    text = {"inputs" if path == "/predict" else "input": "a"}
    answer = client.post(path, json={**text, field: 1})
    assert answer.status_code == 422
    assert f"looks like {ours}: call it {ours}" in answer.text
    assert ours == field or f" {field} " not in answer.text


def test_of_a_hundred_thousand_unknown_fields_only_the_first_are_spelled_out(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compared with the names of ours would take seconds."""
    compared = []

    def compare(name: str, *_: Any, **__: Any) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr("service.schemas.difflib.get_close_matches", compare)
    fields = {f"x{index}": 0 for index in range(80_000)}
    assert client.post("/classify", json={"input": "a", **fields}).status_code == 200
    assert compared == [f"x{index}" for index in range(16)]


@pytest.mark.parametrize("field", ["request_id", "rid"])
def test_a_request_is_named_by_its_body_where_no_header_does(
    client: TestClient, field: str
) -> None:
    for given, kept in (("order-7", True), ("x" * 129, False), ("é", False)):
        answer = client.post("/classify", json={"input": "a", field: given})
        assert (answer.headers["x-request-id"] == given) == kept
        assert answer.json()["id"] == f"classify-{answer.headers['x-request-id']}"
    headers = {"X-Request-Id": "header"}
    answer = client.post("/classify", json={"input": "a", field: "body"}, headers=headers)
    assert answer.headers["x-request-id"] == "header"
    surrogate = b'{"input": "a", "%s": "\\ud800"}' % field.encode()
    assert post(client, surrogate).status_code in (200, 422)


def scores_of(client: TestClient, path: str = "/predict", **body: Any) -> dict[str, float]:
    answer = client.post(path, json={"inputs": "where is my parcel", **body})
    assert answer.status_code == 200, answer.text
    found = answer.json()[0] if path == "/" else answer.json()
    assert [item["score"] for item in found] == sorted((i["score"] for i in found), reverse=True)
    return {item["label"]: item["score"] for item in found}


@pytest.mark.parametrize("path", ["/", "/predict"])
def test_the_parameters_of_hugging_faces_clients(client: TestClient, path: str) -> None:
    plain = scores_of(client, path)
    assert sum(plain.values()) == pytest.approx(1) and len(plain) == 3
    for parameters in (None, {}, {"top_k": None, "candidate_labels": None}, {"truncation": True}):
        assert scores_of(client, path, parameters=parameters) == plain
    (first,) = scores_of(client, path, parameters={"top_k": 1}).items()
    assert first == next(iter(plain.items()))
    assert scores_of(client, path, parameters={"function_to_apply": "softmax"}) == plain
    logits = scores_of(client, path, parameters={"function_to_apply": "none"})
    assert logits == scores_of(client, path, raw_scores=True)
    softmax = {"function_to_apply": "softmax"}
    assert scores_of(client, path, raw_scores=True, parameters=softmax) == plain
    sigmoids = scores_of(client, path, parameters={"function_to_apply": "sigmoid"})
    for label, score in sigmoids.items():
        assert score == pytest.approx(1 / (1 + math.exp(-logits[label])), abs=1e-6)


def test_the_hubs_route_answers_a_list_for_each_text(client: TestClient) -> None:
    for inputs, count in (("a", 1), (["a"], 1), (["a", "b"], 2), ([["a"], ["b"], ["c"]], 3)):
        answer = client.post("/", json={"inputs": inputs})
        assert [len(found) for found in answer.json()] == [3] * count
    refused = client.post("/", json={"inputs": ["a", ""]})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "Empty")
    assert client.put("/").headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"inputs": "a", "parameters": {"candidate_labels": ["b"]}}, "parameters.candidate_labels"),
        ({"inputs": {"question": "a", "context": "b"}}, "inputs.context"),
        ({"inputs": {"source_sentence": "a", "sentences": []}}, "inputs.sentences"),
        ({"query": "a", "texts": ["b"]}, "query"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 9}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"a-secret": 9}}, "parameters"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": "a", "parameters": {"function_to_apply": "relu"}}, "parameters.function_to"),
        ({"inputs": "a", "parameters": {"truncation": False}}, "parameters.truncation"),
        ({"inputs": "a", "parameters": [1]}, "parameters"),
    ],
)
def test_what_asks_for_another_task_is_refused_by_name(
    client: TestClient, body: dict[str, Any], named: str
) -> None:
    for path in ("/", "/predict"):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")
        assert answer.json()["error"].startswith(named)
        assert "secret" not in answer.text


def test_a_text_that_is_too_long_is_refused_where_truncation_is(client: TestClient) -> None:
    texts = ["short", "word " * 200]
    answer = client.post("/classify", json={"input": texts, "truncate": False})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")
    assert "32 tokens" in answer.json()["error"]["message"]
    assert "word" not in answer.text
    short = client.post("/classify", json={"input": texts[:1], "truncate": False})
    assert short.status_code == 200


def test_a_text_of_which_no_token_is_left_is_refused(client: TestClient) -> None:
    """A tokenizer drops control characters; with the special tokens there are always some."""
    body = {"input": ["short", "\u008c"], "add_special_tokens": False}
    answer = client.post("/classify", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")
    assert client.post("/classify", json={"input": body["input"]}).status_code == 200


def test_one_requests_truncation_is_not_the_next_ones(
    client: TestClient, classifier: Classifier
) -> None:
    text = "lovely " * 40 + "parcel " * 40
    before = client.post("/predict", json={"inputs": text}).json()
    left = client.post("/predict", json={"inputs": text, "truncation_direction": "Left"}).json()
    assert client.post("/predict", json={"inputs": text}).json() == before
    assert left != before
    # Its end is what a text of that end alone gets.
    end = client.post("/predict", json={"inputs": "parcel " * 30}).json()
    assert [item["label"] for item in left] == [item["label"] for item in end]
    for item, other in zip(left, end, strict=True):
        assert item["score"] == pytest.approx(other["score"], abs=1e-5)


def test_logits_come_when_asked_for(client: TestClient, classifier: Classifier) -> None:
    item = client.post("/classify", json={"input": "hello", "return_logits": True}).json()["data"][
        0
    ]
    (encoded,) = classifier.encode(["hello"])
    assert item["logits"] == pytest.approx(classifier.logits(encoded.windows)[0], abs=1e-5)


def test_the_model_list_names_what_is_served(client: TestClient, classifier: Classifier) -> None:
    answer = client.get("/v1/models").json()
    (card,) = answer["data"]
    assert answer["object"] == "list"
    version = classifier.manifest.version
    assert (card["id"], card["object"]) == (f"tiny:{version}", "model")
    assert (card["version"], card["max_model_len"]) == (version, 32)
    made = datetime.fromisoformat(classifier.manifest.created_at)
    assert card["created"] == int(made.timestamp())


def test_the_model_has_one_name(client: TestClient, classifier: Classifier) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    info = client.get("/info").json()
    assert card["id"] == info["model"] == f"{info['name']}:{info['version']}"
    assert client.post("/classify", json={"input": "a"}).json()["model"] == card["id"]
    for name in (card["id"], info["name"], card["id"].replace(":", "%3A")):
        assert client.get(f"/v1/models/{name}").json() == card
    for name in ("", "other", f"{info['name']}:0", f"{card['id']}/x", "{id}"):
        answer = client.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
        assert name == "" or name not in answer.text


def test_health_is_readiness(classifier: Classifier) -> None:
    starting = TestClient(Routes(Settings())).get("/health")
    assert (starting.status_code, starting.json()["error"]["type"]) == (503, "unavailable")
    with routes_of(classifier) as routes:
        asked = TestClient(routes)
        assert (asked.get("/health").status_code, asked.post("/health").status_code) == (200, 405)
        assert asked.head("/health").status_code == 200
        routes._draining.begun = True
        assert asked.get("/health").status_code == 503


@pytest.mark.parametrize(
    ("given", "kept"),
    [("order-7.a:b_c", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)],
)
def test_a_sane_request_id_is_the_callers(client: TestClient, given: str, kept: bool) -> None:
    headers = {"X-Request-Id": given.encode()}
    answer = client.post("/classify", json={"input": "a"}, headers=headers)
    used = answer.headers["x-request-id"]
    assert (used == given) == kept
    assert answer.json()["id"] == f"classify-{used}"
    refused = client.post("/classify", json={}, headers=headers)
    assert ("x-request-id" in refused.headers) and (
        refused.headers["x-request-id"] == given
    ) == kept


def test_the_answer_tells_where_its_time_went(client: TestClient) -> None:
    timing = client.post("/classify", json={"input": "a"}).headers["server-timing"]
    parts = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(parts) == ["tokenize", "queue", "inference"]
    assert all(float(milliseconds) >= 0 for milliseconds in parts.values())


@pytest.mark.parametrize(
    "asked", ["0", "000", "-1", "+1", "1.5", "1e3", "0x1", "1_0", "soon", "", "9" * 60 + "x"]
)
def test_a_deadline_that_is_none_is_refused(client: TestClient, asked: str) -> None:
    headers = {"X-Request-Timeout-Ms": asked}
    answer = client.post("/classify", json={"input": "a"}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "X-Request-Timeout-Ms"


def test_unknown_routes_and_methods_are_refused_in_the_schema(client: TestClient) -> None:
    for path in ("/nowhere", "/classify/", "/v1", "/metrics/x"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    for method, path, allowed in (
        ("GET", "/classify", "POST"),
        ("DELETE", "/info", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, 405)
        assert answer.headers["allow"] == allowed


class Slow(Classifier):
    """The classifier, but its model waits until it is let go."""

    def __init__(self, classifier: Classifier) -> None:
        self.__dict__.update(classifier.__dict__)
        self.inside = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.batches = 0

    def logits(self, encodings: Any) -> Any:
        self.batches += 1
        self.inside.release()
        assert self.gate.acquire(timeout=30)
        return super().logits(encodings)


async def ask(
    routes: Routes,
    content: Any,
    *,
    path: str = "/classify",
    headers: dict[str, str] | None = None,
    leave: asyncio.Event | None = None,
) -> tuple[int, dict[str, str], Any]:
    """Call the application as a server does; the caller leaves when `leave` is set."""
    body: Message = {"type": "http.request", "body": json.dumps(content).encode()}
    waiting = [body]
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await routes(scope, receive, send)
    if not sent:
        return 0, {}, None
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], names, json.loads(sent[1]["body"])


async def busy(slow: Slow) -> None:
    assert await asyncio.to_thread(slow.inside.acquire, timeout=30)


def test_past_its_deadline_a_request_is_answered_and_dropped(classifier: Classifier) -> None:
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
    # Neither of the late ones was computed.
    assert slow.batches == 1


@pytest.mark.parametrize(("path", "field"), [("/classify", "input"), ("/predict", "inputs")])
def test_while_a_request_waits_its_decoded_body_is_gone(
    classifier: Classifier, path: str, field: str
) -> None:
    """Unknown fields are ignored: a megabyte of them must not be held as many megabytes."""
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
    # The caller itself holds the body's bytes.
    body_bytes = len(json.dumps(content))
    assert held < 1.5 * body_bytes


@pytest.mark.parametrize("most", ["600000", "9" * 18, "9" * 1_000_000, "0" * 100 + "151"])
def test_nobody_gets_more_time_than_the_operator_gives(classifier: Classifier, most: str) -> None:
    slow = Slow(classifier)

    async def scenario(routes: Routes) -> None:
        asked = asyncio.create_task(
            ask(routes, {"input": "a"}, headers={"x-request-timeout-ms": most})
        )
        assert (await asyncio.wait_for(asked, 30))[0] == 504
        slow.gate.release()

    with routes_of(slow, timeout_ms=150) as routes:
        asyncio.run(scenario(routes))


def test_a_full_queue_is_answered_at_once_with_when_to_come_again(classifier: Classifier) -> None:
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


def test_what_is_refused_however_short_is_not_tokenized(
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


def test_who_leaves_while_his_texts_are_tokenized_leaves_the_rest(classifier: Classifier) -> None:
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


def test_a_fault_of_the_model_is_its_own_requests(classifier: Classifier) -> None:
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
    """A model whose logits are no numbers for texts of more than ten tokens."""

    def logits(self, encodings: Any) -> Any:
        rows = Classifier.logits(self, encodings).copy()
        for row, encoding in zip(rows, encodings, strict=True):
            if len(encoding) > 10:
                row[1] = np.nan
        return rows


def test_logits_that_are_no_numbers_are_a_fault_and_no_answer(
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
    assert "no finite logits for 1 windows" in caplog.text
    assert "word" not in caplog.text


class StuckTokenizer(Slow):
    """The classifier, but to tokenize what waits in turn takes until it is let go."""

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


def test_whoever_waits_to_be_tokenized_is_answered_by_the_deadline(classifier: Classifier) -> None:
    """Eighty long texts, and two short ones beside them, while not one of them is finished."""
    stuck = StuckTokenizer(classifier)

    async def scenario(routes: Routes) -> list[tuple[int, Any, Any]]:
        # Without a space it is read whole.
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
    # What nobody waits for any more is not tokenized.
    assert stuck.parts == 1


def test_long_texts_that_cannot_all_be_tokenized_in_time_are_refused_at_once(
    classifier: Classifier,
) -> None:
    stuck = StuckTokenizer(classifier)

    async def scenario(routes: Routes) -> list[tuple[int, Any, Any]]:
        first = asyncio.create_task(ask(routes, {"input": "x" * 100_000}))
        await busy(stuck)
        # Each takes about 50 ms: far more than are tokenized in a second.
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
def test_a_tokenizer_that_fails_is_a_fault_of_ours(
    classifier: Classifier,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    repeated: int,
    options: dict[str, Any],
) -> None:
    """Wherever the text is tokenized: a short one where it came, a long one by the threads."""

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


def test_a_beginning_that_does_not_suffice_is_read_on(
    client: TestClient, classifier: Classifier
) -> None:
    """Spaces are no tokens: what is behind them counts."""
    text = "where is" + " " * 5_000 + "my parcel"
    answer = client.post("/classify", json={"input": [text, "word"]}).json()
    expected = classifier.classify(["where is my parcel"])[0]
    assert answer["data"][0]["probs"] == pytest.approx(expected.probs.tolist(), abs=1e-5)
    assert answer["data"][0]["truncated"] is False


def test_after_closing_nothing_more_is_taken(classifier: Classifier) -> None:
    with routes_of(classifier) as routes:
        routes.close()
        client = TestClient(routes)
        answer = client.post("/classify", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
        answer = client.post("/predict", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")
        with pytest.raises(ClosedError):
            routes._inference.engine.submit(classifier.encode(["a"]), print)  # type: ignore[union-attr]


def test_many_long_texts_are_tokenized_beside_the_others(
    client: TestClient, classifier: Classifier
) -> None:
    texts = [f"{index} " + "word " * 1000 for index in range(20)] + ["short"]
    answer = client.post("/classify", json={"input": texts}).json()
    for item, expected in zip(answer["data"], classifier.classify(texts), strict=True):
        assert item["probs"] == pytest.approx(expected.probs.tolist(), abs=1e-5)


def test_limits_are_the_operators(classifier: Classifier) -> None:
    limits = {"max_texts": 2, "max_characters": 10, "max_body_bytes": 200}
    with routes_of(classifier, **limits) as routes:
        client = TestClient(routes)
        assert client.post("/classify", json={"input": ["a", "b"]}).status_code == 200
        assert client.post("/classify", json={"input": ["a", "b", "c"]}).status_code == 422
        assert client.post("/predict", json={"inputs": [["a"], ["b"], ["c"]]}).status_code == 422
        assert client.post("/classify", json={"input": "a" * 11}).status_code == 422
        assert client.post("/classify", json={"input": "a", "more": "x" * 200}).status_code == 413
        assert client.get("/info").json()["limits"]["texts"] == 2
        text = client.get("/docs.json").json()["components"]["schemas"]["ClassifyRequest"]
        assert text["properties"]["input"]["anyOf"][1]["maxItems"] == 2


def test_the_openapi_document_is_that_of_the_model(client: TestClient) -> None:
    content = client.get("/docs.json").json()
    for name, route in ROUTES.items():
        path = name.removeprefix("POST ")
        assert route.method.lower() in content["paths"][path], name
    request = content["components"]["schemas"]["ClassifyRequest"]
    # This model reads single texts.
    assert set(request["properties"]) == {
        "model",
        "input",
        "top_k",
        "return_logits",
        "truncate",
        "use_activation",
        "truncate_prompt_tokens",
        "truncation_side",
        "add_special_tokens",
        "request_id",
        "rid",
    }
    assert "429" in content["paths"]["/classify"]["post"]["responses"]
    assert "424" in content["paths"]["/predict"]["post"]["responses"]


def test_the_documents_blank_text_is_the_routes_blank_text() -> None:
    pattern = re.compile(NOT_BLANK)
    for code in range(sys.maxunicode + 1):
        assert (pattern.search(chr(code)) is None) == (not chr(code).strip()), hex(code)
