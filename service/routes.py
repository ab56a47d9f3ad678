"""The HTTP routes: JSON in, the classifier's answer out, one error schema for everything else."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, NoReturn, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.classifier import Classifier, Prediction, length_sorted_batches
from service.decisions import FloatArray, aggregate_windows
from service.model_package import Text
from service.schemas import (
    MAX_BODY_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    MAX_WINDOWS,
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    ErrorDetail,
    ErrorResponse,
    LabelScore,
    UnacceptableRequestError,
    Usage,
    parse_predict_request,
    parse_request,
)

logger = logging.getLogger(__name__)

# A client that is still sending does not read: swallow this much of a body that is too large, so
# that it gets its 413 rather than a reset.
MAX_SWALLOWED_BYTES = 32 * MAX_BODY_BYTES
# A thread turns to another request after so many tokens: a text of many windows delays its
# neighbours by one batch, not by all of them.
BATCH_TEXTS = 32
BATCH_TOKENS = 512

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


PREDICT_ERROR_TYPES = {400: "Validation", 422: "Validation", 500: "Backend", 503: "Unhealthy"}


def answering_predict_errors(endpoint: Endpoint) -> Endpoint:
    """The same errors in the schema of text-embeddings-inference."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        response = await answering_errors(endpoint)(request)
        if response.status_code < 400 or response.status_code == 499:
            return response
        detail = json.loads(bytes(response.body))["error"]
        kind = PREDICT_ERROR_TYPES.get(response.status_code, "Validation")
        headers = {"Connection": "close"} if response.status_code == 413 else None
        return JSONResponse(
            {"error": detail["message"], "error_type": kind},
            status_code=response.status_code,
            headers=headers,
        )

    return answer


def make_app() -> Starlette:
    """The routes, answering 503 until `attach` has given them a classifier."""
    app = Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/v1/classify", classify, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
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
    content = await _read_json(request)
    with _refusing_unacceptable():
        parsed = parse_request(content, has_pairs=classifier.manifest.has_pairs)
    answers, _ = await _answer(request, parsed.texts, "input")
    response = _response(parsed, answers, classifier)
    return Response(
        response.model_dump_json(exclude_none=True),
        media_type="application/json",
    )


@answering_predict_errors
async def predict(request: Request) -> Response:
    """`POST /predict`: see `PredictRequest`; every label, the highest score first."""
    classifier = _classifier(request)
    content = await _read_json(request)
    with _refusing_unacceptable():
        parsed, texts = parse_predict_request(content, has_pairs=classifier.manifest.has_pairs)
    answers, logits = await _answer(request, texts, "inputs")
    if not parsed.truncate and any(answer.truncated for answer in answers):
        raise RequestError(
            422,
            f"a text has more than {classifier.manifest.max_length} tokens: shorten it, or leave "
            "truncate out",
            "inputs",
        )
    found = [
        _ranked(classifier, scores if parsed.raw_scores else answer.probs)
        for answer, scores in zip(answers, logits, strict=True)
    ]
    batch = isinstance(parsed.inputs, list) and isinstance(parsed.inputs[0], list)
    return JSONResponse(found if batch else found[0])


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
            "text_columns": list(manifest.text_columns),
            "max_length": manifest.max_length,
            "long_text": manifest.long_text,
            "thresholds": manifest.thresholds,
            "abstain_threshold": manifest.abstain_threshold,
            "limits": {
                "body_bytes": MAX_BODY_BYTES,
                "texts": MAX_TEXTS,
                "characters": MAX_CHARACTERS,
                "windows": MAX_WINDOWS,
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


T = TypeVar("T")


async def _run(request: Request, work: Callable[[], T]) -> T:
    """Do `work` on one of the classifier's threads; whoever asked first is first."""
    executor: ThreadPoolExecutor = request.app.state.executor
    return await asyncio.get_running_loop().run_in_executor(executor, work)


async def _answer(
    request: Request, texts: list[Text], field: str
) -> tuple[list[Prediction], FloatArray]:
    """Answers and logits of shape (texts, labels).

    One small batch at a time, so that the threads take turns between the requests.
    """
    classifier = _classifier(request)
    encoded = await _run(request, lambda: classifier.encode(texts))
    windows = [window for windows in encoded for window in windows]
    if len(windows) > max(MAX_WINDOWS, len(texts)):
        raise RequestError(
            422,
            f"{field} needs {len(windows)} windows of {classifier.manifest.max_length} tokens, "
            f"the limit is {MAX_WINDOWS}: send less text in one request",
            field,
        )
    logits = np.empty((len(windows), len(classifier.manifest.labels)), dtype=np.float32)
    lengths = [len(window) for window in windows]
    for batch in length_sorted_batches(lengths, BATCH_TEXTS, BATCH_TOKENS):
        chosen = [windows[index] for index in batch]
        logits[batch] = await _run(request, partial(classifier.logits, chosen))
    answers = classifier.predictions(encoded, logits)
    how = classifier.manifest.window_aggregation
    counts = [len(windows) for windows in encoded]
    return answers, aggregate_windows(logits, counts, "multi_label", how)


def _ranked(classifier: Classifier, scores: FloatArray) -> list[dict[str, Any]]:
    labels = classifier.manifest.labels
    pairs = sorted(zip(labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    return [LabelScore(label=label, score=score).model_dump() for label, score in pairs]


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


async def _read_json(request: Request) -> Any:
    body = await _read_body(request)
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None


@contextmanager
def _refusing_unacceptable() -> Iterator[None]:
    try:
        yield
    except UnacceptableRequestError as error:
        raise RequestError(422, error.message, error.param) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _response(
    parsed: ClassifyRequest, answers: list[Prediction], classifier: Classifier
) -> ClassifyResponse:
    manifest = classifier.manifest
    windowed = manifest.long_text == "window"
    tokens = sum(answer.tokens for answer in answers)
    return ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=f"{manifest.name}:{manifest.version}",
        data=[
            _classification(index, answer, manifest.labels, parsed.top_k, windowed=windowed)
            for index, answer in enumerate(answers)
        ],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _classification(
    index: int, answer: Prediction, labels: tuple[str, ...], top_k: int | None, *, windowed: bool
) -> Classification:
    probs: list[float] = answer.probs.tolist()
    ranked = sorted(zip(labels, probs, strict=True), key=lambda pair: -pair[1])
    return Classification(
        index=index,
        label=answer.label,
        score=answer.score,
        labels=None if answer.labels is None else list(answer.labels),
        abstained=answer.abstained,
        truncated=None if windowed else answer.truncated,
        windows=answer.windows if windowed else None,
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
