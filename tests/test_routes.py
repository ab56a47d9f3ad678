"""The HTTP routes in process: the contract of `/classify`, and every refusal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.asgi import SWALLOWED_BODIES
from service.classifier import Classifier
from service.routes import Routes
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
    class Broken(Classifier):
        def encode(self, texts: Any, **_: Any) -> Any:
            raise RuntimeError(f"cannot classify {texts}")

    broken = Broken.__new__(Broken)
    broken.__dict__.update(classifier.__dict__)
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


def test_a_text_that_was_cut_off_says_so(client: TestClient) -> None:
    answer = client.post("/classify", json={"input": ["short", "word " * 200]}).json()
    assert [item["truncated"] for item in answer["data"]] == [False, True]
    assert client.post("/predict", json={"inputs": "word " * 200}).status_code == 200
