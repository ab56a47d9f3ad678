"""The OpenAPI document of the routes, with the limits and the model that are served."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.explain_schemas import ExplainRequest, ExplainResponse
from service.http.feedback import FeedbackRequest, FeedbackResponse
from service.http.limits import Limits
from service.http.schemas import (
    PREDICT_FAULT,
    ClassifyRequest,
    ClassifyResponse,
    ErrorResponse,
    LabelScore,
    ModelList,
    PredictError,
    PredictRequest,
)
from service.package.manifest import Manifest
from service.page.page import PATH
from service.settings import Settings

EXPLAIN_PATH = "/explain"
FEEDBACK_PATH = "/feedback"
# Parts of an OpenAPI document, as JSON values.
Json = dict[str, Any]

MODELS: tuple[type[BaseModel], ...] = (
    ExplainRequest,
    ExplainResponse,
    FeedbackRequest,
    FeedbackResponse,
    ClassifyRequest,
    ClassifyResponse,
    ErrorResponse,
    LabelScore,
    ModelList,
    PredictError,
    PredictRequest,
)
REFUSALS = {
    400: "the body is not UTF-8, not JSON, or not in the coding that its header names",
    401: "the API key is missing or wrong",
    404: "there is no such model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the content type is not application/json, or the coding is not supported",
    422: "JSON that cannot be classified; `param` names field and index",
    429: "more work than can be done in time; `Retry-After` says when to try again",
    500: "a fault of the server",
    503: "the server is starting or shutting down",
    504: "the deadline passed",
}
# A character that `str.strip` does not remove; the meaning of \s differs between engines.
NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# The refusals of a request with a body, and of one without.
POST_REFUSALS = tuple(status for status in REFUSALS if status != 404)
GET_REFUSALS = (401, 503)


def document(
    manifest: Manifest, settings: Settings, *, with_keys: bool, special_tokens: int
) -> Json:
    """The document, as JSON values.

    Args:
        manifest: the model that is served.
        settings: the limits in force.
        with_keys: whether requests need an API key.
        special_tokens: how many special tokens each text has.
    """
    content: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": manifest.name,
            "version": manifest.version,
            "description": f"Text classifier, {len(manifest.labels)} labels.",
        },
        "servers": [{"url": "."}],
        "paths": _paths(),
        "components": {"schemas": _schemas(manifest, settings, special_tokens)},
    }
    if settings.explain:
        content["paths"][EXPLAIN_PATH] = {"post": _explain()}
    if settings.capture is not None:
        content["paths"][FEEDBACK_PATH] = {"post": _feedback()}
    if with_keys:
        _require_keys(content, settings.open_routes)
    if settings.ui:
        content["paths"][PATH] = {"get": _page()}
    return content


def _paths() -> Json:
    return {
        "/classify": {"post": _classify("classify")},
        "/v1/classify": {"post": _classify("classify_v1")},
        "/predict": {"post": _predict()},
        "/": {"post": _hub()},
        "/v1/models": {"get": _get("models", "The model that is served", "ModelList")},
        "/v1/models/{id}": {"get": _model()},
        "/info": {"get": _get("info", "The model that is served, and the limits", None)},
        "/docs.json": {"get": _get("docs", "This document", None)},
        "/livez": {"get": _probe("livez", "Whether the server makes progress")},
        "/readyz": {"get": _probe("readyz", "Whether requests are answered")},
        "/health": {"get": _get("health", "Whether requests are answered, in JSON", None)},
        "/metrics": {"get": _probe("metrics", "Metrics for Prometheus")},
    }


def _schemas(manifest: Manifest, limits: Limits, special_tokens: int) -> Json:
    """The schemas of all bodies, with what `service.http.parsing` checks in addition to types."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas: Json = definitions["$defs"]
    text = {
        "type": "string",
        "minLength": 1,
        "maxLength": limits.max_characters,
        "pattern": NOT_BLANK,
    }
    _restrict_classify(schemas["ClassifyRequest"], text, manifest, limits)
    _restrict_classify(schemas["ExplainRequest"], text, manifest, limits)
    _restrict_predict(schemas["PredictRequest"], text, manifest, limits)
    allowed = {"type": "integer", "minimum": special_tokens + 1, "maximum": manifest.max_length}
    for request in ("ClassifyRequest", "ExplainRequest"):
        tokens = schemas[request]["properties"]["truncate_prompt_tokens"]
        tokens["anyOf"] = [allowed, {"const": -1}, {"type": "null"}]
    return schemas


def _restrict_classify(request: Json, text: Json, manifest: Manifest, limits: Limits) -> None:
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": limits.max_texts}
    fields = request["properties"]
    fields["input"]["anyOf"] = [text, texts]
    if manifest.has_pairs:
        fields["text_pair"]["anyOf"] = [text, texts]
        fields["text_pair"].pop("default", None)
        request["required"].append("text_pair")
    else:
        del fields["text_pair"]


def _restrict_predict(request: Json, text: Json, manifest: Manifest, limits: Limits) -> None:
    pair = {"type": "array", "items": text, "minItems": 2, "maxItems": 2}
    single = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    item = pair if manifest.has_pairs else single
    batch = {"type": "array", "items": item, "minItems": 1, "maxItems": limits.max_texts}
    alone = [pair] if manifest.has_pairs else [text, single]
    request["properties"]["inputs"]["anyOf"] = [*alone, batch]


def _require_keys(content: Json, open_routes: tuple[str, ...]) -> None:
    """State that all operations need an API key, except those of open routes."""
    content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            # `GET /` has the same path, so this route has another name.
            name = "POST /" if (path, method) == ("/", "post") else path
            if name not in open_routes:
                operation["security"] = [{"key": []}]


def _classify(name: str) -> Json:
    return _post(name, "Classify texts", "ClassifyRequest", _reference("ClassifyResponse"))


def _predict() -> Json:
    answer = {"type": "array", "items": _reference("LabelScore")}
    summary = "Classify texts, in the schema of text-embeddings-inference"
    either = {"anyOf": [answer, {"type": "array", "items": answer}]}
    return _with_predict_errors(_post("predict", summary, "PredictRequest", either))


def _hub() -> Json:
    answer = {"type": "array", "items": _reference("LabelScore")}
    summary = "The same for Hugging Face's clients: always a list for each text"
    several = {"type": "array", "items": answer}
    return _with_predict_errors(_post("hub", summary, "PredictRequest", several))


def _with_predict_errors(operation: Json) -> Json:
    """An operation with the refusals of text-embeddings-inference."""
    responses = operation["responses"]
    responses[str(PREDICT_FAULT)] = responses.pop("500")
    for status, response in responses.items():
        if status != "200":
            response["content"] = _json(_reference("PredictError"))
    return operation


def _explain() -> Json:
    summary = "The words that made a label, and those whose removal changes it"
    return _post("explain", summary, "ExplainRequest", _reference("ExplainResponse"))


def _feedback() -> Json:
    summary = "What is known about an answer: its right label or labels"
    operation = _post("feedback", summary, "FeedbackRequest", _reference("FeedbackResponse"))
    operation["responses"]["202"] = operation["responses"].pop("200")
    return operation


def _model() -> Json:
    operation = _get("model", "The model, by its id or by its name without version", "ModelCard")
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    operation["parameters"] = [parameter]
    operation["responses"] |= _refusals((404,))
    return operation


def _page() -> Json:
    html = {"text/html": {"schema": {"type": "string"}}}
    return {
        "operationId": "ui",
        "summary": "A page to try the model on; open without a key",
        "responses": {"200": {"description": "the page", "content": html}},
    }


def _post(name: str, summary: str, request: str, answer: Json) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        # Not parameters: a generator of requests would ask for one millisecond, get its 504, and
        # report it as a fault.
        "description": "The header `X-Request-Timeout-Ms` asks for an earlier deadline, "
        "`X-Request-Id` names the request.",
        "requestBody": {"required": True, "content": _json(_reference(request))},
        "responses": {"200": _success(answer), **_refusals(POST_REFUSALS)},
    }


def _get(name: str, summary: str, answer: str | None) -> Json:
    schema = _reference(answer) if answer else {"type": "object"}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _success(schema), **_refusals(GET_REFUSALS)},
    }


def _probe(name: str, summary: str) -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "yes", "content": text},
            "503": {"description": "no", "content": text},
        },
    }


def _refusals(statuses: tuple[int, ...]) -> Json:
    content = _json(_reference("ErrorResponse"))
    return {
        str(status): {"description": REFUSALS[status], "content": content} for status in statuses
    }


def _success(schema: Json) -> Json:
    return {"description": "the answer", "content": _json(schema)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
