"""`/predict` and `POST /`, in the schema of text-embeddings-inference."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.inference.classifier import Classifier
from tests.service.http.callers import LIMITS


@pytest.mark.parametrize("inputs", [[], "", " ", [["a"], [""]]])
def test_predict_refuses_empty_texts_like_text_embeddings_inference(
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
def test_predict_refuses_in_the_schema_of_text_embeddings_inference(
    client: TestClient, body: dict[str, Any]
) -> None:
    answer = client.post("/predict", json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == "Validation"
    assert "word" not in answer.text


@pytest.mark.parametrize(
    "inputs", [[7] * 500_000, [[7] * 500_000], [{}] * 300_000, [["a"], *[7] * 500_000]]
)
def test_many_items_that_are_not_texts_are_refused_at_the_first(
    client: TestClient, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydantic would take seconds to write an error for each of them."""

    def validate(_content: object) -> None:
        raise AssertionError("reached")

    monkeypatch.setattr("service.http.schemas.PredictRequest.model_validate", validate)
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    assert len(body) < LIMITS.max_body_bytes
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def scores_of(client: TestClient, path: str = "/predict", **body: Any) -> dict[str, float]:
    answer = client.post(path, json={"inputs": "where is my parcel", **body})
    assert answer.status_code == 200, answer.text
    scores = answer.json()[0] if path == "/" else answer.json()
    assert [item["score"] for item in scores] == sorted((i["score"] for i in scores), reverse=True)
    return {item["label"]: item["score"] for item in scores}


@pytest.mark.parametrize("path", ["/", "/predict"])
def test_the_parameters_of_hugging_faces_clients_are_applied(client: TestClient, path: str) -> None:
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


def test_the_hub_route_answers_a_list_for_each_text(client: TestClient) -> None:
    for inputs, count in (("a", 1), (["a"], 1), (["a", "b"], 2), ([["a"], ["b"], ["c"]], 3)):
        answer = client.post("/", json={"inputs": inputs})
        assert [len(scores) for scores in answer.json()] == [3] * count
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
def test_another_task_is_refused_by_name(
    client: TestClient, body: dict[str, Any], named: str
) -> None:
    for path in ("/", "/predict"):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")
        assert answer.json()["error"].startswith(named)
        assert "secret" not in answer.text


def test_the_truncation_of_one_request_does_not_affect_the_next(
    client: TestClient, classifier: Classifier
) -> None:
    text = "lovely " * 40 + "parcel " * 40
    before = client.post("/predict", json={"inputs": text}).json()
    left = client.post("/predict", json={"inputs": text, "truncation_direction": "Left"}).json()
    assert client.post("/predict", json={"inputs": text}).json() == before
    assert left != before
    # It is answered like a text that consists of its end alone.
    end = client.post("/predict", json={"inputs": "parcel " * 30}).json()
    assert [item["label"] for item in left] == [item["label"] for item in end]
    for item, other in zip(left, end, strict=True):
        assert item["score"] == pytest.approx(other["score"], abs=1e-5)
