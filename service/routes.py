"""The HTTP routes: JSON in, the classifier's answer out, one error schema for everything else."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.classifier import Classifier, Prediction
from service.schemas import (
    MAX_BODY_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    ErrorDetail,
    ErrorResponse,
    UnacceptableRequestError,
    Usage,
    parse_request,
)

logger = logging.getLogger(__name__)

# A client that is still sending does not read: swallow this much of a body that is too large, so
# that it gets its 413 rather than a reset.
MAX_SWALLOWED_BYTES = 32 * MAX_BODY_BYTES

ERROR_TYPES = {
    400: "invalid_json",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "unacceptable_request",
    500: "internal_error",
    503: "not_ready",
}


class RequestError(Exception):
    """Answer this request with `status`; the message never holds a part of the request."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


Endpoint = Callable[[Request], Awaitable[Response]]


def answering_errors(endpoint: Endpoint) -> Endpoint:
    """Answer every exception of `endpoint` in the error schema.

    Here and not in a handler of the application: Starlette raises again what an `Exception`
    handler has answered, and the server then logs it with its message, which may hold the text of
    a request.
    """

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestError as error:
            headers = {"Connection": "close"} if error.status == 413 else None
            return error_response(error.status, error.message, error.param, headers)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - the last resort
            logger.error("request failed: %s", type(error).__name__)
            return error_response(500, "the server failed to answer: see its log")

    return answer


def make_app() -> Starlette:
    """The routes, answering 503 until `attach` has given them a classifier."""
    app = Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/v1/classify", classify, methods=["POST"]),
            Route("/info", info, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _answer_http_exception},
    )
    app.state.classifier = None
    return app


def attach(app: Starlette, classifier: Classifier, threads: int) -> None:
    """Serve `classifier`, on `threads` requests at once."""
    app.state.executor = ThreadPoolExecutor(threads, thread_name_prefix="classify")
    app.state.classifier = classifier


@answering_errors
async def classify(request: Request) -> Response:
    """`POST /classify`: see `ClassifyRequest` and `ClassifyResponse`."""
    classifier = _classifier(request)
    body = await _read_body(request)
    parsed = _parse(body)
    loop = asyncio.get_running_loop()
    answers = await loop.run_in_executor(
        request.app.state.executor, classifier.classify, parsed.texts
    )
    response = _response(parsed, answers, classifier)
    return Response(
        response.model_dump_json(exclude_none=True),
        media_type="application/json",
    )


@answering_errors
async def info(request: Request) -> Response:
    """`GET /info`: what is served, and within which limits."""
    classifier = _classifier(request)
    manifest = classifier.manifest
    return JSONResponse(
        {
            "name": manifest.name,
            "version": manifest.version,
            "created_at": manifest.created_at,
            "task": manifest.task,
            "labels": list(manifest.labels),
            "precision": manifest.precision,
            "max_length": manifest.max_length,
            "limits": {
                "body_bytes": MAX_BODY_BYTES,
                "texts": MAX_TEXTS,
                "characters": MAX_CHARACTERS,
            },
            "metrics": manifest.metrics,
            "provenance": {
                key: manifest.provenance.get(key)
                for key in ("base_model", "dataset", "git_commit", "packages")
            },
        }
    )


def _classifier(request: Request) -> Classifier:
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None:
        raise RequestError(503, "the model is not loaded yet: try again in a moment")
    return classifier


async def _read_body(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(415, "send the request as Content-Type: application/json")
    received = 0
    chunks: list[bytes] = []
    async for chunk in request.stream():
        received += len(chunk)
        if received <= MAX_BODY_BYTES:
            chunks.append(chunk)
        elif received > MAX_SWALLOWED_BYTES:
            break
    if received > MAX_BODY_BYTES:
        raise RequestError(
            413, f"the body is larger than {MAX_BODY_BYTES} bytes: send several requests"
        )
    return b"".join(chunks)


def _parse(body: bytes) -> ClassifyRequest:
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    try:
        return parse_request(content)
    except UnacceptableRequestError as error:
        raise RequestError(422, error.message, error.param) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _response(
    parsed: ClassifyRequest, answers: list[Prediction], classifier: Classifier
) -> ClassifyResponse:
    manifest = classifier.manifest
    tokens = sum(answer.tokens for answer in answers)
    return ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=f"{manifest.name}:{manifest.version}",
        data=[
            _classification(index, answer, manifest.labels, parsed.top_k)
            for index, answer in enumerate(answers)
        ],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _classification(
    index: int, answer: Prediction, labels: tuple[str, ...], top_k: int | None
) -> Classification:
    probs: list[float] = answer.probs.tolist()
    ranked = sorted(zip(labels, probs, strict=True), key=lambda pair: -pair[1])
    return Classification(
        index=index,
        label=answer.label,
        score=answer.score,
        probs=probs,
        num_classes=len(labels),
        scores=dict(ranked[:top_k]) if top_k else None,
    )


def error_response(
    status: int, message: str, param: str | None = None, headers: Any = None
) -> Response:
    """An answer in the one error schema."""
    detail = ErrorDetail(
        message=message, type=ERROR_TYPES.get(status, "error"), param=param, code=status
    )
    return JSONResponse(
        ErrorResponse(error=detail).model_dump(), status_code=status, headers=headers
    )


async def _answer_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    return error_response(error.status_code, error.detail, headers=error.headers)
