"""Fields that this server does not read: refused by name, or ignored and counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.inference.classifier import Classifier
from tests.servers import routes_of
from tests.service.http.callers import classified


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
def test_an_unsupported_field_that_changes_the_answer_is_refused_by_name(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    answer = client.post("/classify", json={"input": "a", **body})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]
    assert "\n" not in error["message"]


def test_messages_are_refused_even_without_input(client: TestClient) -> None:
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
    """Metrics that keep the counts of ignored fields."""
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
        plain = classified(client)
        assert classified(client, **HARMLESS_FIELDS) == plain
        assert counts == []
        strangers = {"top_p": 0.9, "mode": "fast", "metadata": {}, "encoding_format": "float"}
        assert classified(client, **strangers) == plain
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
def test_a_misspelled_field_is_refused_with_the_right_name(
    client: TestClient, path: str, field: str, ours: str
) -> None:
    text = {"inputs" if path == "/predict" else "input": "a"}
    answer = client.post(path, json={**text, field: 1})
    assert answer.status_code == 422
    assert f"looks like {ours}: call it {ours}" in answer.text
    assert ours == field or f" {field} " not in answer.text


def test_only_the_first_of_many_unknown_fields_are_checked_for_spelling(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compare each of them with our fields would take seconds."""
    compared = []

    def compare(name: str, *_: Any, **__: Any) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr("service.http.fields.difflib.get_close_matches", compare)
    fields = {f"x{index}": 0 for index in range(80_000)}
    assert client.post("/classify", json={"input": "a", **fields}).status_code == 200
    assert compared == [f"x{index}" for index in range(16)]
