"""`POST /explain`: its switch, its refusals, its limits, its metric, and who goes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from service.explanation.explain import Bounds
from service.explanation.local import explain_text
from service.http.routes import Routes
from service.inference.capacity import Capacity
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.metrics.recorder import Metrics
from service.settings import Settings
from tests.servers import routes_of, samples

TEXT = "where is my parcel, I have waited for so long"


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture
def client(classifier: Classifier) -> Iterator[TestClient]:
    with routes_of(classifier, threads=2, explain=True) as routes:
        yield TestClient(routes)


def test_the_route_and_its_description_exist_only_by_switch(classifier: Classifier) -> None:
    for switch in (False, True):
        with routes_of(classifier, explain=switch) as routes:
            client = TestClient(routes, raise_server_exceptions=False)
            status = client.post("/explain", json={"input": TEXT}).status_code
            assert status == (200 if switch else 404)
            assert ("/explain" in client.get("/docs.json").json()["paths"]) == switch
            assert client.get("/info").json()["explain"] == switch
    starting = TestClient(Routes(Settings(explain=True)))
    assert starting.post("/explain", json={"input": TEXT}).status_code == 503


def test_the_server_explains_as_the_report_does(client: TestClient, classifier: Classifier) -> None:
    answer = client.post("/explain", json={"input": [TEXT, "thank you"], "max_words": 5}).json()
    assert answer["id"].startswith("explain-")
    for text, item in zip([TEXT, "thank you"], answer["data"], strict=True):
        expected = explain_text(classifier, text, bounds=Bounds(words=5, texts=128))
        assert len(item["words"]) <= 5
        assert ("sentences" in item) == (text == TEXT)
        assert [word["contribution"] for word in item["words"]] == pytest.approx(
            [weight for _, weight in expected.words], abs=1e-4
        )
        places = None if item["counterfactual"] is None else item["counterfactual"]["words"]
        other = expected.counterfactual
        assert places == (None if other is None else list(other.words))


def test_the_same_request_has_the_same_answer(client: TestClient) -> None:
    first, second = (client.post("/explain", json={"input": TEXT}).json() for _ in range(2))
    assert first["data"][0].keys() == second["data"][0].keys()
    assert [word["word"] for word in first["data"][0]["words"]] == [
        word["word"] for word in second["data"][0]["words"]
    ]
    assert first["usage"] == second["usage"]


REFUSED: list[Any] = [
    [],
    {},
    {"input": ""},
    {"input": ["a", " "]},
    {"input": 7},
    {"input": "a", "text_pair": "b"},
    {"input": "a", "truncate": "no"},
    {"input": "a", "top_kk": 3},
    {"input": "a", "padding": "longest"},
    {"input": "a\ud800"},
    {"input": "a" * 100_001},
    {"input": "a", "truncate_prompt_tokens": 1},
    {"input": "word " * 500, "truncate": False},
]


@pytest.mark.parametrize("body", REFUSED, ids=range(len(REFUSED)))
def test_what_classify_refuses_is_refused_in_the_same_words(client: TestClient, body: Any) -> None:
    import json

    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    classified, explained = (
        client.post(path, content=content, headers=headers) for path in ("/classify", "/explain")
    )
    assert classified.status_code >= 400
    assert explained.status_code == classified.status_code
    assert explained.json() == classified.json()


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"label": "nothing"}, "label", "does not have: GET /info lists them"),
        ({"label": 3}, "label", "label: Input should be a valid string"),
        ({"max_words": 0}, "max_words", "greater than or equal to 1"),
        ({"max_words": 65}, "max_words", "max_words must be from 1 to 64 here"),
        ({"labell": "x"}, "label", "looks like label"),
        ({"input": ["a"] * 9}, "input", "input has 9 texts, the limit of explanations is 8"),
    ],
)
def test_what_only_explain_refuses(
    client: TestClient, fields: dict[str, Any], param: str, sentence: str
) -> None:
    answer = client.post("/explain", json={"input": TEXT} | fields)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param
    assert sentence in error["message"]


def test_the_budget_of_windows_is_kept_and_refuses_what_it_cannot_explain(
    classifier: Classifier,
) -> None:
    with routes_of(classifier, explain=True, explain_max_windows=16) as routes:
        client = TestClient(routes)
        answer = client.post("/explain", json={"input": [TEXT, TEXT]}).json()
        assert 0 < answer["usage"]["windows"] <= 16 + 2
        refused = client.post("/explain", json={"input": [TEXT] * 5})
        assert refused.status_code == 422
        assert "send less text in one request" in refused.json()["error"]["message"]


def test_a_deadline_that_passes_is_answered_like_that_of_classify(client: TestClient) -> None:
    headers = {"X-Request-Timeout-Ms": "1"}
    answer = client.post("/explain", json={"input": [TEXT] * 8}, headers=headers)
    assert answer.status_code in (429, 504)
    known = (
        "the deadline passed",
        "the server has more work",
        "this request takes longer than its deadline allows",
    )
    assert answer.json()["error"]["message"].startswith(known)


def test_explanations_are_counted_and_are_no_predictions(classifier: Classifier) -> None:
    engine = Engine(classifier, Capacity(threads=1), answers=classifier.row_answers)
    registry = CollectorRegistry()
    metrics = Metrics(classifier.manifest, engine, registry)
    routes = Routes(Settings(explain=True))
    routes.attach(classifier, engine, metrics)
    try:
        answer = TestClient(routes).post("/explain", json={"input": [TEXT, "thank you"]}).json()
        metrics.write()
        counts = samples(generate_latest(registry).decode())
    finally:
        routes.lifecycle.close()
    found = sum(item["counterfactual"] is not None for item in answer["data"])
    assert counts["whetstone_explanations_total", "found"] == found
    assert counts["whetstone_explanations_total", "none"] == 2 - found
    windows = counts["whetstone_explanation_windows_total",]
    assert windows == answer["usage"]["windows"] - 2
    assert counts["whetstone_texts_total",] == 0


def test_every_window_of_an_explanation_is_in_the_background(classifier: Classifier) -> None:
    asked: list[bool] = []

    class Watched(Engine):
        def submit(self, *args: Any, background: bool = False, **options: Any) -> Any:
            asked.append(background)
            return super().submit(*args, background=background, **options)

    engine = Watched(classifier, Capacity(threads=1), answers=classifier.row_answers)
    routes = Routes(Settings(explain=True))
    routes.attach(classifier, engine)
    try:
        client = TestClient(routes)
        assert client.post("/explain", json={"input": TEXT}).status_code == 200
        assert len(asked) > 2
        assert all(asked)
        client.post("/classify", json={"input": TEXT})
        assert asked[-1] is False
    finally:
        routes.lifecycle.close()
