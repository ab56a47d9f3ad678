"""The routes that are ours: JSON in, the engine's answer out, one error schema for everything else.

`Routes` is the ASGI application that the server runs. What it does not answer itself is BentoML's
(`/livez`, `/readyz`, `/metrics`, the OpenAPI page), and nothing else is there.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any, NamedTuple, TypeVar

import bentoml
import numpy as np
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answering import Answering, Answers, Asked
from service.api_keys import ApiKeys
from service.asgi import (
    CLOSE,
    Answer,
    ClientGoneError,
    Headers,
    Request,
    RequestError,
    send_answer,
    to_json,
)
from service.classifier import AS_PACKAGED, Classifier, TokenizationOptions
from service.decisions import FloatArray, probabilities
from service.draining import Draining
from service.inference.engine import Engine
from service.metrics import Metrics
from service.model_package import Manifest, Task, Text
from service.openapi import document
from service.schemas import (
    HARMLESS,
    PREDICT_FAULT,
    PREDICT_HARMLESS,
    ClassifyRequest,
    ClassifyResponse,
    EmptyTextError,
    PredictRequest,
    UnacceptableRequestError,
    ignored_fields,
    parse_predict_request,
    parse_request,
)
from service.settings import Settings, SettingsError
from service.ui import MEDIA_TYPE, PATH, page
from service.workers import Workers

logger = logging.getLogger("bentoml.service")
access_logger = logging.getLogger("whetstone.access")

Parsed = TypeVar("Parsed")

# How often the event loop shows that it runs, in seconds.
TURN_SECONDS = 1.0

ERROR_TYPES = {
    400: "invalid_json",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "unacceptable_request",
    429: "overloaded",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
# text-embeddings-inference's own names and statuses; what it has none for keeps ours.
PREDICT_ERROR_TYPES = {
    401: "Unauthorized",
    429: "Overloaded",
    PREDICT_FAULT: "Backend",
    503: "Unhealthy",
    504: "Backend",
}


def error_answer(error: RequestError) -> Answer:
    """A refusal in the one error schema."""
    detail = {
        "message": error.message,
        "type": ERROR_TYPES[error.status],
        "param": error.param,
        "code": error.status,
    }
    return Answer(error.status, to_json({"error": detail}), error.headers)


def predict_error_answer(error: RequestError) -> Answer:
    """The same in the schema of text-embeddings-inference."""
    status = PREDICT_FAULT if error.status == 500 else error.status
    kind = PREDICT_ERROR_TYPES.get(status, "Validation")
    if isinstance(error.__cause__, EmptyTextError):
        status, kind = 400, "Empty"
    return Answer(status, to_json({"error": error.message, "error_type": kind}), error.headers)


class Loaded(NamedTuple):
    """What there is once a model is loaded."""

    classifier: Classifier
    engine: Engine
    answering: Answering


class Route(NamedTuple):
    """One of our routes: how it is called, what answers it, and how it refuses."""

    method: str
    answer: Callable[[Routes, Request], Awaitable[Answer]]
    refuse: Callable[[RequestError], Answer] = error_answer


class Routes:
    """The ASGI application; it answers 503 until `attach` has given it a classifier.

    Args:
        settings: limits, and what else the operator decides.
        keys: who may ask; everybody when None.
        bentoml: the application that has BentoML's own routes.

    Raises:
        SettingsError: a route that is to be open is none.
    """

    def __init__(
        self, settings: Settings, keys: ApiKeys | None = None, bentoml: ASGIApp | None = None
    ) -> None:
        self.ours = {**ROUTES, PATH: Route("GET", Routes.ui)} if settings.ui else ROUTES
        known = [*self.ours, *sorted(BENTOML_ROUTES)]
        for route in settings.open_routes:
            if route not in known:
                nearest = difflib.get_close_matches(route, known, n=1, cutoff=0.0)[0]
                raise SettingsError(
                    f"WHETSTONE_OPEN_ROUTES names {route}, which is no route: "
                    f"did you mean {nearest}?"
                )
        self.settings = settings
        self.bentoml = bentoml
        self._keys = keys
        # The page says nothing about the model before its reader has given a key.
        self._open_routes = frozenset([*settings.open_routes, PATH])
        self._page = page() if settings.ui else (b"", ())
        self._loaded: Loaded | None = None
        self._info = b""
        self._models = b""
        self._document = b""
        self._metrics: Metrics | None = None
        # Nothing takes longer than its deadline.
        longest = settings.timeout_ms / 1000 + 1
        self._draining = Draining(settings.drain_ms / 1000, longest, self._stop_being_ready)
        # When the event loop had a turn for itself; None where it does not run yet.
        self._turned_at: float | None = None
        self._workers = Workers(1, None, 0.0, self._state)

    def attach(
        self,
        classifier: Classifier,
        engine: Engine,
        metrics: Metrics | None = None,
        folder: Path | None = None,
    ) -> None:
        """Serve `classifier` through `engine`.

        Args:
            metrics: what is told of every request.
            folder: where several workers of one server tell how they are.
        """
        self._info = to_json(_describe(classifier, self.settings))
        self._models = to_json(_model_list(classifier.manifest))
        self._document = to_json(
            document(
                classifier.manifest,
                self.settings,
                with_keys=self._keys is not None,
                special_tokens=classifier.special_tokens,
            )
        )
        self._metrics = metrics
        self._loaded = Loaded(classifier, engine, Answering(classifier, engine, self.settings))
        stall = self.settings.stall_ms / 1000
        self._workers = Workers(self.settings.workers, folder, stall, self._state)

    @property
    def ready(self) -> bool:
        """Whether there is a classifier, and no signal to end yet, in every worker."""
        return self._workers.ready

    @property
    def alive(self) -> bool:
        """Whether the event loop and inference move, in every worker."""
        return self._workers.alive

    def _state(self) -> tuple[bool, bool]:
        """Whether this worker is ready, and whether it is alive.

        It is alive where no thread has died, and neither a batch nor a turn of the event loop takes
        longer than it should.
        """
        if self._loaded is None:
            return False, True
        engine = self._loaded.engine
        stall = self.settings.stall_ms / 1000
        turns = self._turned_at is None or monotonic() - self._turned_at <= stall
        moves = engine.threads_alive and engine.running_seconds <= stall
        return not self._draining.begun, turns and moves

    def _turn(self) -> None:
        """See that the event loop runs."""
        self._turned_at = monotonic()
        asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)

    def close(self) -> None:
        """Finish what is queued and take no more; no longer than an answer may take."""
        if self._loaded is not None:
            # For a batch that hangs nobody has to wait any more.
            alive = self._state()[1]
            self._loaded.engine.close(self.settings.timeout_ms / 1000 if alive else 0)
        self._workers.close()
        if self._metrics is not None:
            self._metrics.close()

    def _stop_being_ready(self) -> None:
        self._workers.say()
        if self._metrics is not None:
            self._metrics.ready = False
            self._metrics.look()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or leave it to BentoML."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._draining.take_over()
                self._turn()
            await self._bentoml(scope, receive, send)
            return
        ours = self.name_of(scope)
        if ours is not None and self.settings.tracing_url is None:
            await self.serve(ours, scope, receive, send)
            return
        if ours is not None:
            # With tracing on, by way of BentoML's middlewares. They have a series for every path,
            # and the end of this one is a stranger's.
            if ours == MODEL_ROUTE:
                scope = {**scope, "path": MODEL_ROUTE, ASKED_PATH: scope["path"]}
            await self._bentoml(scope, receive, send)
            return
        path: str = scope["path"]
        request = Request.of(scope, receive)
        route = path if path in BENTOML_ROUTES else OTHER
        try:
            if path not in BENTOML_ROUTES and path not in BENTOML_FILES:
                raise RequestError(404, "there is no such route: GET /docs.json lists them")
            self._check_method(scope, "GET")
            self._check_key(request, path)
        except RequestError as error:
            await self._finish(send, request, route, error_answer(error))
            return
        if path == "/metrics" and self._metrics is not None:
            self._metrics.look()
        headers = (*PAGE_POLICY, *CLOSE) if self._is_last(request) else PAGE_POLICY
        record = partial(self._record, request, route)
        await self._bentoml(scope, receive, _with_headers(send, headers, record))

    def name_of(self, scope: Scope) -> str | None:
        """The name, in log and metrics too, of our route that is asked; None where it is none."""
        path: str = scope["path"]
        if path in self.ours:
            return path
        if path == "/" and scope["method"] == "POST":
            return HUB_ROUTE
        return MODEL_ROUTE if path.startswith(MODEL_PREFIX) else None

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to the route of ours that `name_of` has named."""
        route = self.ours[path]
        request = Request.of(scope, receive)
        try:
            self._check_method(scope, route.method)
            self._check_key(request, path)
            request.set_deadline(self.settings)
            answer = await route.answer(self, request)
        except RequestError as error:
            answer = route.refuse(error)
            if self._metrics is not None and error.reason is not None:
                self._metrics.refused(error.reason)
        except ClientGoneError:
            self._record(request, path, 499)
            return
        except Exception as error:  # noqa: BLE001 - the last resort; its message may hold a text
            logger.error("request %s failed: %s", request.id, type(error).__name__)
            answer = route.refuse(RequestError(500, "the server failed to answer: see its log"))
        await self._finish(send, request, path, answer)

    def _is_last(self, request: Request) -> bool:
        """Whether the connection ends with this request.

        It does where the body was not read: uvicorn would go on reading it for ever.
        """
        return self._draining.begun or request.unread

    async def _finish(self, send: Send, request: Request, path: str, answer: Answer) -> None:
        """Send an answer, record it, and bear with a client that still sends what nobody reads."""
        if self._is_last(request):
            answer = answer._replace(headers=(*answer.headers, *CLOSE))
        await send_answer(send, request, answer)
        self._record(request, path, answer.status)
        if request.unread:
            await request.swallow(self.settings)
            await send({"type": "http.response.body", "body": b""})

    async def classify(self, request: Request) -> Answer:
        """`POST /classify`: see `ClassifyRequest` and `ClassifyResponse`."""
        self._serving()
        # The decoded body is held by no name: it may be 26 times as large as its bytes, and this
        # request may wait.
        parsed = self._parse(parse_request, ClassifyRequest, await request.json(self.settings))
        return Answer(200, to_json(await self._classify_parsed(request, parsed)))

    async def classify_here(self, content: dict[str, Any]) -> ClassifyResponse:
        """The same without HTTP.

        Raises:
            RequestError: as the route refuses it.
        """
        scope = {"path": "/classify", "headers": []}
        request = Request.of(scope, _never)
        request.set_deadline(self.settings)
        parsed = self._parse(parse_request, ClassifyRequest, content)
        answer = to_json(await self._classify_parsed(request, parsed))
        return ClassifyResponse.model_validate_json(answer)

    async def predict(self, request: Request) -> Answer:
        """`POST /predict`: see `PredictRequest`; every label, the highest score first."""
        # By no name, as in `classify`.
        parsed, texts = self._parse(
            parse_predict_request, PredictRequest, await request.json(self.settings)
        )
        found = await self._label_scores(request, parsed, texts)
        batch = isinstance(parsed.inputs, list) and isinstance(parsed.inputs[0], list)
        return Answer(200, to_json(found if batch else found[0]))

    async def hub(self, request: Request) -> Answer:
        """`POST /`: the same as Hugging Face's clients want it, always a list for each text."""
        has_pairs = self._serving().classifier.manifest.has_pairs
        parsed, texts = self._parse(
            parse_predict_request,
            PredictRequest,
            _as_several(await request.json(self.settings), has_pairs=has_pairs),
        )
        return Answer(200, to_json(await self._label_scores(request, parsed, texts)))

    async def _label_scores(
        self, request: Request, parsed: PredictRequest, texts: list[Text]
    ) -> list[list[dict[str, Any]]]:
        """For each text its labels and their scores."""
        manifest = self._serving().classifier.manifest
        left = parsed.truncation_direction.lower() == "left"
        asked = Asked(
            texts,
            "inputs",
            truncate=parsed.truncate is not False,
            options=TokenizationOptions(keep_end=True) if left else AS_PACKAGED,
        )
        answers = await self._answer(request, asked)
        function = parsed.function
        if function in (None, OWN_FUNCTIONS[manifest.task]):
            scores: Iterable[FloatArray] = (answer.probs for answer in answers.predictions)
        elif function == "none":
            scores = answers.logits()
        else:
            other: Task = "single_label" if function == "softmax" else "multi_label"
            scores = probabilities(answers.logits(), other)
        return [_ranked(manifest.labels, row)[: parsed.top_k] for row in scores]

    async def info(self, _request: Request) -> Answer:
        """`GET /info`: what is served, and within which limits."""
        self._serving()
        return Answer(200, self._info)

    async def models(self, _request: Request) -> Answer:
        """`GET /v1/models`: see `ModelList`."""
        self._serving()
        return Answer(200, self._models)

    async def model(self, request: Request) -> Answer:
        """`GET /v1/models/{id}`: the card of the model, also by its name without the version."""
        manifest = self._serving().classifier.manifest
        path = request.scope.get(ASKED_PATH, request.scope["path"])
        asked = path.removeprefix(MODEL_PREFIX)
        if asked not in (manifest.name, _model_name(manifest)):
            raise RequestError(404, "there is no such model: GET /v1/models names the one here")
        return Answer(200, to_json(_model_card(manifest)))

    async def health(self, _request: Request) -> Answer:
        """`GET /health`: as other servers have it; what `/readyz` says."""
        if not self.ready:
            raise RequestError(503, "the server is starting or shutting down")
        return Answer(200, to_json({"status": "ok"}))

    async def docs(self, _request: Request) -> Answer:
        """`GET /docs.json`: the OpenAPI document."""
        self._serving()
        return Answer(200, self._document)

    async def ui(self, _request: Request) -> Answer:
        """`GET /ui`, by switch: the page for people."""
        return Answer(200, *self._page, MEDIA_TYPE)

    def _serving(self) -> Loaded:
        if self._loaded is None:
            raise RequestError(503, "the model is not loaded yet: try again in a moment")
        return self._loaded

    def _check_method(self, scope: Scope, method: str) -> None:
        if scope["method"] == method:
            return
        allowed: tuple[str, ...] = ("GET", "HEAD") if method == "GET" else (method,)
        if scope["path"] == "/":
            allowed = ("GET", "HEAD", "POST")
        if scope["method"] not in allowed:
            headers = ((b"allow", ", ".join(allowed).encode()),)
            raise RequestError(405, f"this route is called by {method}", headers=headers)

    def _check_key(self, request: Request, route: str) -> None:
        if self._keys is None or route in self._open_routes:
            return
        if not self._keys.accept(request.headers.get(b"authorization")):
            raise RequestError(
                401,
                "send an API key as Authorization: Bearer <key>",
                headers=((b"www-authenticate", b"Bearer"),),
            )

    def _parse(self, parse: Callable[..., Parsed], model: type[BaseModel], content: Any) -> Parsed:
        """A decoded body as one of `service.schemas` parses it, whose fields `model` has.

        Raises:
            RequestError: it is not acceptable.
        """
        classifier = self._serving().classifier
        harmless = HARMLESS if model is ClassifyRequest else PREDICT_HARMLESS
        try:
            ignored = ignored_fields(content, model, harmless)
            parsed = parse(content, self.settings, has_pairs=classifier.manifest.has_pairs)
        except UnacceptableRequestError as error:
            raise RequestError(422, error.message, error.param) from error
        if ignored and self._metrics is not None:
            self._metrics.ignored(ignored)
        return parsed

    async def _classify_parsed(self, request: Request, parsed: ClassifyRequest) -> dict[str, Any]:
        """The content of a `ClassifyResponse`."""
        classifier = self._serving().classifier
        request.name(parsed.request_id, parsed.rid)
        options = _tokenization(parsed, classifier)
        asked = Asked(parsed.texts, "input", truncate=parsed.truncate, options=options)
        answers = await self._answer(request, asked)
        return _response(request, parsed, answers, classifier)

    async def _answer(self, request: Request, asked: Asked) -> Answers:
        """Answers, counted."""
        answers = await self._serving().answering.answer(request, asked)
        if self._metrics is not None:
            self._metrics.answered(answers.predictions, request.timing)
        return answers

    def _record(self, request: Request, path: str, status: int) -> None:
        """Count and, by switch, log a request.

        Of those to BentoML's routes and to `/health` only what went wrong is logged: probes would
        drown the rest.
        """
        seconds = monotonic() - request.started
        if self._metrics is not None:
            self._metrics.request(path, status, seconds)
        if not self.settings.access_log:
            return
        if status >= 400 or (path in self.ours and path != HEALTH_ROUTE):
            line = {
                "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
                "request_id": request.id,
                "method": request.scope["method"],
                "route": path,
                "status": status,
                "texts": request.texts,
                "tokens": request.tokens,
                "milliseconds": round(seconds * 1000, 3),
            }
            access_logger.info(to_json(line).decode())

    async def _bentoml(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.bentoml is None:
            raise RuntimeError("there is no BentoML application behind these routes")
        await self.bentoml(scope, receive, send)


class TracedRoutes:
    """Our routes as a middleware of BentoML's application, inside its OpenTelemetry span."""

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is ours."""
        ours = self._routes.name_of(scope) if scope["type"] == "http" else None
        if ours is not None:
            await self._routes.serve(ours, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class BoundedPreflights:
    """Ends the connection of a preflight that has a body.

    The middleware that answers preflights, which must be inside of this one, reads none: uvicorn
    would go on reading it for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            request = Request.of(scope, receive)
            if request.unread and b"access-control-request-method" in request.headers:
                send = _with_headers(send, CLOSE, lambda _status: None)
        await self._app(scope, receive, send)


HEALTH_ROUTE = "/health"
# Beside BentoML's page, which answers GET; `open_routes` tells the two apart, too.
HUB_ROUTE = "POST /"
MODEL_PREFIX = "/v1/models/"
MODEL_ROUTE = MODEL_PREFIX + "{id}"
# Where a scope has the path that was asked when it says the name of the route instead.
ASKED_PATH = "whetstone.path"
ROUTES = {
    "/classify": Route("POST", Routes.classify),
    "/v1/classify": Route("POST", Routes.classify),
    "/predict": Route("POST", Routes.predict, predict_error_answer),
    HUB_ROUTE: Route("POST", Routes.hub, predict_error_answer),
    "/info": Route("GET", Routes.info),
    "/v1/models": Route("GET", Routes.models),
    MODEL_ROUTE: Route("GET", Routes.model),
    HEALTH_ROUTE: Route("GET", Routes.health),
    "/docs.json": Route("GET", Routes.docs),
}
BENTOML_ROUTES = frozenset({"/", "/livez", "/readyz", "/healthz", "/metrics", "/schema.json"})
# What BentoML's page loads, name by name: its metrics have a series for every path that is asked.
BENTOML_FILES = frozenset(
    f"/static_content/{file.name}"
    for file in Path(bentoml.__file__).parent.glob("_internal/server/static_content/*")
)
# What makes probabilities of a model's logits, by its task.
OWN_FUNCTIONS: dict[Task, str] = {"single_label": "softmax", "multi_label": "sigmoid"}
# What a route that is none is called in metrics and log: its own name is a stranger's.
OTHER = "other"
# Keeps BentoML's page to what this server sends: it would load a tracker of Google's.
PAGE_POLICY: Headers = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    ),
)


def _with_headers(send: Send, headers: Headers, record: Callable[[int], object]) -> Send:
    """Add headers to an answer, and record its status."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
            record(message["status"])
        await send(message)

    return send_with_headers


async def _never() -> Message:
    """What a caller who cannot leave sends after the body."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


def _response(
    request: Request,
    parsed: ClassifyRequest,
    answers: Answers,
    classifier: Classifier,
) -> dict[str, Any]:
    """The content of a `ClassifyResponse`; as plain values, which cost a tenth of the model's."""
    manifest = classifier.manifest
    plain = parsed.use_activation is False
    logits = answers.logits() if parsed.return_logits or plain else None
    data = []
    for index, answer in enumerate(answers.predictions):
        item: dict[str, Any] = {
            "index": index,
            "label": answer.label,
            "score": np.float32(answer.score),
        }
        if answer.labels is not None:
            item["labels"] = answer.labels
        if answer.abstained is not None:
            item["abstained"] = answer.abstained
        by_windows = manifest.long_text == "window"
        if by_windows:
            item["windows"] = answer.windows
        if answer.truncated or not by_windows:
            item["truncated"] = answer.truncated
        # As vLLM has it: the same field, other numbers.
        item["probs"] = logits[index] if plain and logits is not None else answer.probs
        item["num_classes"] = len(manifest.labels)
        if parsed.top_k:
            ranked = _ranked(manifest.labels, answer.probs)[: parsed.top_k]
            item["scores"] = {found["label"]: found["score"] for found in ranked}
        if parsed.return_logits and logits is not None:
            item["logits"] = logits[index]
        data.append(item)
    return {
        "id": f"classify-{request.id}",
        "object": "list",
        "created": int(time()),
        "model": _model_name(manifest),
        "data": data,
        "usage": {"prompt_tokens": request.tokens, "total_tokens": request.tokens},
    }


def _ranked(labels: tuple[str, ...], scores: FloatArray) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first; of equal ones in label order."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"label": labels[index], "score": scores[index]} for index in order]


def _describe(classifier: Classifier, settings: Settings) -> dict[str, Any]:
    """The content of `/info`."""
    manifest = classifier.manifest
    return {
        "model": _model_name(manifest),
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
            "body_bytes": settings.max_body_bytes,
            "texts": settings.max_texts,
            "characters": settings.max_characters,
            "windows": settings.max_windows,
            "timeout_ms": settings.timeout_ms,
        },
        "metrics": manifest.metrics,
        "provenance": {
            key: manifest.provenance.get(key)
            for key in ("base_model", "dataset", "git_commit", "packages", "label_change")
        },
    }


def _model_name(manifest: Manifest) -> str:
    """What the model is called wherever it is named by one word."""
    return f"{manifest.name}:{manifest.version}"


def _model_card(manifest: Manifest) -> dict[str, Any]:
    """The content of a `ModelCard`."""
    return {
        "id": _model_name(manifest),
        "object": "model",
        "created": int(datetime.fromisoformat(manifest.created_at).timestamp()),
        "owned_by": "whetstone",
        "version": manifest.version,
        "max_model_len": manifest.max_length,
    }


def _model_list(manifest: Manifest) -> dict[str, Any]:
    """The content of a `ModelList`."""
    return {"object": "list", "data": [_model_card(manifest)]}


def _as_several(content: Any, *, has_pairs: bool) -> Any:
    """The decoded body of `POST /`: where no pairs are read, a list of texts is several of them."""
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if isinstance(inputs, list) and not has_pairs:
        content["inputs"] = [[text] if isinstance(text, str) else text for text in inputs]
    return content


def _tokenization(parsed: ClassifyRequest, classifier: Classifier) -> TokenizationOptions:
    """How the texts of a request are to be read.

    Raises:
        RequestError: more or fewer tokens are asked for than the model can read.
    """
    asked = parsed.truncate_prompt_tokens
    given = (asked, parsed.truncation_side, parsed.add_special_tokens)
    if given == (None, None, None):
        return AS_PACKAGED
    longest = classifier.manifest.max_length
    special = parsed.add_special_tokens is not False
    least = 1 + classifier.special_tokens if special else 1
    if asked == -1:
        asked = longest
    if asked is not None and not least <= asked <= longest:
        raise RequestError(
            422,
            f"truncate_prompt_tokens must be from {least} to {longest} here, or -1: "
            f"the model reads no more than {longest} tokens, special ones included",
            "truncate_prompt_tokens",
        )
    side = parsed.truncation_side
    if asked == longest and classifier.manifest.long_text != "window":
        # That is what it reads anyway.
        asked = None
    return TokenizationOptions(None if side is None else side == "left", asked, special)
