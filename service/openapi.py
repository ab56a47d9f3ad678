"""The OpenAPI document of the routes, with the limits and the labels of what is served."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.model_package import Manifest
from service.schemas import (
    PREDICT_FAULT,
    ClassifyRequest,
    ClassifyResponse,
    ErrorResponse,
    LabelScore,
    ModelList,
    PredictError,
    PredictRequest,
)
from service.settings import Settings
from service.ui import PATH

MODELS: tuple[type[BaseModel], ...] = (
    ClassifyRequest,
    ClassifyResponse,
    ErrorResponse,
    LabelScore,
    ModelList,
    PredictError,
    PredictRequest,
)
REFUSALS = {
    400: "the body is not UTF-8, not JSON, or not in the coding that its header says",
    401: "no API key, or a wrong one",
    404: "there is no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "another content type than application/json, or a coding that is not read",
    422: "JSON that cannot be classified; `param` names field and index",
    429: "more work than can be done in time; `Retry-After` says when to come again",
    500: "a fault of the server",
    503: "the server is starting or shutting down",
    504: "the deadline passed",
}
# Something besides what `str.strip` takes for white space: \s differs from engine to engine.
NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# Of a request with a body, and of one without a body and without work.
POST_REFUSALS = tuple(status for status in REFUSALS if status != 404)
GET_REFUSALS = (401, 503)


def document(
    manifest: Manifest, settings: Settings, *, with_keys: bool, special_tokens: int
) -> dict[str, Any]:
    """The document for a server of `manifest`, as JSON values.

    Args:
        manifest: what is served.
        settings: the limits in force.
        with_keys: whether requests need an API key.
        special_tokens: how many tokens each text has besides its own.
    """
    _, found = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas = found["$defs"]
    _state_limits(schemas, manifest, settings)
    tokens = schemas["ClassifyRequest"]["properties"]["truncate_prompt_tokens"]
    some = {"type": "integer", "minimum": special_tokens + 1, "maximum": manifest.max_length}
    tokens["anyOf"] = [some, {"const": -1}, {"type": "null"}]
    components: dict[str, Any] = {"schemas": schemas}
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": manifest.name,
            "version": manifest.version,
            "description": f"Text classifier, {len(manifest.labels)} labels.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/classify": {"post": _classify("classify")},
            "/v1/classify": {"post": _classify("classify_v1")},
            "/predict": {"post": _predict()},
            "/": {"post": _hub()},
            "/v1/models": {"get": _get("models", "The model that is served", "ModelList")},
            "/v1/models/{id}": {"get": _model()},
            "/info": {"get": _get("info", "What is served, and within which limits", None)},
            "/docs.json": {"get": _get("docs", "This document", None)},
            "/livez": {"get": _probe("livez", "Whether the process lives")},
            "/readyz": {"get": _probe("readyz", "Whether requests are answered")},
            "/health": {"get": _get("health", "Whether requests are answered, in JSON", None)},
            "/metrics": {"get": _probe("metrics", "Metrics for Prometheus")},
        },
        "components": components,
    }
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in content["paths"].items():
            for method, operation in operations.items():
                # The name of a route that has its path in common with another one.
                name = "POST /" if (path, method) == ("/", "post") else path
                if name not in settings.open_routes:
                    operation["security"] = [{"key": []}]
    if settings.ui:
        html = {"text/html": {"schema": {"type": "string"}}}
        answer = {"200": {"description": "the page", "content": html}}
        summary = "A page to try the model on; open without a key"
        page = {"operationId": "ui", "summary": summary, "responses": answer}
        content["paths"][PATH] = {"get": page}
    return content


def _state_limits(schemas: dict[str, Any], manifest: Manifest, settings: Settings) -> None:
    """Put into the schemas what the checks of `service.schemas` ask for beyond types."""
    text = {
        "type": "string",
        "minLength": 1,
        "maxLength": settings.max_characters,
        "pattern": NOT_BLANK,
    }
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": settings.max_texts}
    request = schemas["ClassifyRequest"]
    fields = request["properties"]
    fields["input"]["anyOf"] = [text, texts]
    if manifest.has_pairs:
        fields["text_pair"]["anyOf"] = [text, texts]
        fields["text_pair"].pop("default", None)
        request["required"].append("text_pair")
    else:
        del fields["text_pair"]
    pair = {"type": "array", "items": text, "minItems": 2, "maxItems": 2}
    one = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    item = pair if manifest.has_pairs else one
    batch = {"type": "array", "items": item, "minItems": 1, "maxItems": settings.max_texts}
    alone = [pair] if manifest.has_pairs else [text, one]
    inputs = schemas["PredictRequest"]["properties"]["inputs"]
    inputs["anyOf"] = [*alone, batch]


def _classify(name: str) -> dict[str, Any]:
    return _post(name, "Classify texts", "ClassifyRequest", _reference("ClassifyResponse"))


def _predict() -> dict[str, Any]:
    answer = {"type": "array", "items": _reference("LabelScore")}
    summary = "Classify texts, in the schema of text-embeddings-inference"
    either = {"anyOf": [answer, {"type": "array", "items": answer}]}
    return _with_predict_errors(_post("predict", summary, "PredictRequest", either))


def _hub() -> dict[str, Any]:
    answer = {"type": "array", "items": _reference("LabelScore")}
    summary = "The same for Hugging Face's clients: always a list for each text"
    several = {"type": "array", "items": answer}
    return _with_predict_errors(_post("hub", summary, "PredictRequest", several))


def _with_predict_errors(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation whose refusals are those of text-embeddings-inference."""
    responses = operation["responses"]
    responses[str(PREDICT_FAULT)] = responses.pop("500")
    for status, response in responses.items():
        if status != "200":
            response["content"] = _json(_reference("PredictError"))
    return operation


def _model() -> dict[str, Any]:
    operation = _get("model", "The model, by its id or by its name without version", "ModelCard")
    place = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    operation["parameters"] = [place]
    operation["responses"] |= _refusals((404,))
    return operation


def _post(name: str, summary: str, request: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        # Not a parameter: who generates requests from this would ask for a millisecond, get his
        # 504, and take it for a fault.
        "description": "The header `X-Request-Timeout-Ms` asks for an earlier deadline, "
        "`X-Request-Id` names the request.",
        "requestBody": {"required": True, "content": _json(_reference(request))},
        "responses": {"200": _success(answer), **_refusals(POST_REFUSALS)},
    }


def _get(name: str, summary: str, answer: str | None) -> dict[str, Any]:
    schema = _reference(answer) if answer else {"type": "object"}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _success(schema), **_refusals(GET_REFUSALS)},
    }


def _probe(name: str, summary: str) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "yes", "content": text},
            "503": {"description": "no", "content": text},
        },
    }


def _refusals(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = _json(_reference("ErrorResponse"))
    return {
        str(status): {"description": REFUSALS[status], "content": content} for status in statuses
    }


def _success(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "the answer", "content": _json(schema)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
