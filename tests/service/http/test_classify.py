"""`/classify`: its answers, its options and its refusals."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from service.inference.classifier import Classifier
from tests.service.http.callers import LABELS, LIMITS, classified, post


@pytest.mark.parametrize("route", ["/classify", "/v1/classify"])
def test_an_answer_has_exactly_the_documented_fields(
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


def test_a_single_text_needs_no_list(client: TestClient) -> None:
    assert len(client.post("/classify", json={"input": "hello"}).json()["data"]) == 1


def test_top_k_limits_scores_but_not_probs(client: TestClient) -> None:
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


def test_the_answer_says_that_a_text_was_truncated(client: TestClient) -> None:
    answer = client.post("/classify", json={"input": ["short", "word " * 200]}).json()
    assert [item["truncated"] for item in answer["data"]] == [False, True]
    assert client.post("/predict", json={"inputs": "word " * 200}).status_code == 200


def test_without_activation_probs_holds_logits(client: TestClient) -> None:
    plain = classified(client, return_logits=True, top_k=3)
    for value in (None, True):
        assert classified(client, use_activation=value)["probs"] == plain["probs"]
    bare = classified(client, use_activation=False, return_logits=True, top_k=3)
    assert bare["probs"] == bare["logits"] == pytest.approx(plain["logits"], abs=1e-5)
    # Our own fields keep their values.
    for name in ("label", "score", "scores"):
        assert bare[name] == plain[name]


def test_the_requested_number_of_tokens_is_read(client: TestClient) -> None:
    whole = classified(client)
    for most in (-1, 32, 32.0, None):
        assert classified(client, truncate_prompt_tokens=most) == whole
    short = classified(client, truncate_prompt_tokens=10)
    # [CLS] and [SEP] are two of them.
    assert (short["tokens"], short["truncated"]) == (10, True)
    assert short["probs"] == pytest.approx(
        classified(client, input="lovely " * 8)["probs"], abs=1e-5
    )
    left = classified(client, truncate_prompt_tokens=10, truncation_side="left")
    assert left["probs"] == pytest.approx(
        classified(client, input="parcel " * 8)["probs"], abs=1e-5
    )
    assert classified(client, truncation_side="left")["probs"] == pytest.approx(
        classified(client, input="parcel " * 30)["probs"], abs=1e-5
    )
    assert classified(client, truncation_side="right") == whole
    bare = classified(client, input="parcel", add_special_tokens=False, truncate_prompt_tokens=1)
    assert (bare["tokens"], bare["truncated"]) == (1, False)
    assert classified(client, input="parcel", add_special_tokens=None)["tokens"] == 3
    assert classified(client, add_special_tokens=False)["tokens"] == 32
    # The next request is read as usual.
    assert classified(client) == whole


def test_more_tokens_than_requested_are_refused_without_truncation(
    client: TestClient,
) -> None:
    body = {"input": "parcel " * 9, "truncate": False}
    assert classified(client, **body, truncate_prompt_tokens=11)["tokens"] == 11
    answer = client.post("/classify", json={**body, "truncate_prompt_tokens": 10})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[0]")
    assert "more than 10 tokens" in answer.json()["error"]["message"]


def test_a_text_that_is_too_long_is_refused_without_truncation(client: TestClient) -> None:
    texts = ["short", "word " * 200]
    answer = client.post("/classify", json={"input": texts, "truncate": False})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")
    assert "32 tokens" in answer.json()["error"]["message"]
    assert "word" not in answer.text
    short = client.post("/classify", json={"input": texts[:1], "truncate": False})
    assert short.status_code == 200


def test_a_text_without_tokens_is_refused(client: TestClient) -> None:
    """A tokenizer drops control characters, so only special tokens could be left."""
    body = {"input": ["short", "\u008c"], "add_special_tokens": False}
    answer = client.post("/classify", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")
    assert client.post("/classify", json={"input": body["input"]}).status_code == 200


def test_logits_are_returned_on_request(client: TestClient, classifier: Classifier) -> None:
    item = client.post("/classify", json={"input": "hello", "return_logits": True}).json()["data"][
        0
    ]
    (encoded,) = classifier.encode(["hello"])
    assert item["logits"] == pytest.approx(classifier.logits(encoded.windows)[0], abs=1e-5)
