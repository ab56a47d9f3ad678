"""The routes: methods, names, request ids, the model's description, limits."""

from __future__ import annotations

from datetime import datetime

import pytest
from starlette.testclient import TestClient

from service.http.routes import Routes
from service.inference.classifier import Classifier
from service.settings import Settings
from tests.servers import routes_of
from tests.service.http.callers import LABELS, LIMITS, post


def test_another_method_is_refused_in_the_same_schema(client: TestClient) -> None:
    answer = client.get("/classify")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, 405)


def test_before_a_model_is_attached_nothing_is_classified() -> None:
    client = TestClient(Routes(Settings()))
    assert client.post("/classify", json={"input": "a"}).status_code == 503


def test_info_describes_the_model(client: TestClient, classifier: Classifier) -> None:
    answer = client.get("/info").json()
    assert answer["labels"] == LABELS
    assert answer["version"] == classifier.manifest.version
    assert answer["limits"]["texts"] == LIMITS.max_texts
    assert answer["provenance"]["dataset"]["train_rows"] > 0


@pytest.mark.parametrize("field", ["request_id", "rid"])
def test_the_body_gives_the_request_id_where_no_header_does(client: TestClient, field: str) -> None:
    for given, kept in (("order-7", True), ("x" * 129, False), ("é", False)):
        answer = client.post("/classify", json={"input": "a", field: given})
        assert (answer.headers["x-request-id"] == given) == kept
        assert answer.json()["id"] == f"classify-{answer.headers['x-request-id']}"
    headers = {"X-Request-Id": "header"}
    answer = client.post("/classify", json={"input": "a", field: "body"}, headers=headers)
    assert answer.headers["x-request-id"] == "header"
    surrogate = b'{"input": "a", "%s": "\\ud800"}' % field.encode()
    assert post(client, surrogate).status_code in (200, 422)


def test_the_model_list_names_the_model(client: TestClient, classifier: Classifier) -> None:
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


def test_health_tells_readiness(classifier: Classifier) -> None:
    starting = TestClient(Routes(Settings())).get("/health")
    assert (starting.status_code, starting.json()["error"]["type"]) == (503, "unavailable")
    with routes_of(classifier) as routes:
        asked = TestClient(routes)
        assert (asked.get("/health").status_code, asked.post("/health").status_code) == (200, 405)
        assert asked.head("/health").status_code == 200
        routes.lifecycle.draining.begun = True
        assert asked.get("/health").status_code == 503


@pytest.mark.parametrize(
    ("given", "kept"),
    [("order-7.a:b_c", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)],
)
def test_a_safe_request_id_of_the_caller_is_kept(
    client: TestClient, given: str, kept: bool
) -> None:
    headers = {"X-Request-Id": given.encode()}
    answer = client.post("/classify", json={"input": "a"}, headers=headers)
    used = answer.headers["x-request-id"]
    assert (used == given) == kept
    assert answer.json()["id"] == f"classify-{used}"
    refused = client.post("/classify", json={}, headers=headers)
    assert ("x-request-id" in refused.headers) and (
        refused.headers["x-request-id"] == given
    ) == kept


def test_the_answer_names_the_seconds_of_its_stages(client: TestClient) -> None:
    timing = client.post("/classify", json={"input": "a"}).headers["server-timing"]
    parts = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(parts) == ["tokenize", "queue", "inference"]
    assert all(float(milliseconds) >= 0 for milliseconds in parts.values())


@pytest.mark.parametrize(
    "asked", ["0", "000", "-1", "+1", "1.5", "1e3", "0x1", "1_0", "soon", "", "9" * 60 + "x"]
)
def test_an_invalid_deadline_is_refused(client: TestClient, asked: str) -> None:
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


def test_requests_after_closing_are_refused(classifier: Classifier) -> None:
    with routes_of(classifier) as routes:
        routes.lifecycle.close()
        client = TestClient(routes)
        answer = client.post("/classify", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
        answer = client.post("/predict", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")


def test_the_operator_sets_the_limits(classifier: Classifier) -> None:
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
