"""The OpenAPI document."""

from __future__ import annotations

import re
import sys

from starlette.testclient import TestClient

from service.http.openapi import NOT_BLANK
from service.http.routes import ROUTES


def test_the_openapi_document_describes_the_model(client: TestClient) -> None:
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


def test_the_document_and_the_routes_agree_on_blank_texts() -> None:
    pattern = re.compile(NOT_BLANK)
    for code in range(sys.maxunicode + 1):
        assert (pattern.search(chr(code)) is None) == (not chr(code).strip()), hex(code)
