"""The routes that are ours: JSON in, the engine's answer out, one error schema for everything else.

`Routes` is the ASGI application that the server runs. What it does not answer itself is BentoML's
(`/livez`, `/readyz`, `/metrics`, the OpenAPI page), and nothing else is there.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import ApiKeys
from service.asgi import (
    CLOSE,
    Answer,
    ClientGoneError,
    Request,
    RequestError,
    send_answer,
    to_json,
    wait_for_ever,
)
from service.classifier import Classifier
from service.draining import Draining
from service.http.access_log import log_access
from service.http.answers import describe, model_card, model_list, model_name
from service.http.errors import error_answer, predict_error_answer
from service.http.inference import Inference
from service.http.middleware import PAGE_POLICY, with_headers
from service.inference.engine import Engine
from service.metrics import Metrics
from service.openapi import document
from service.schemas import ClassifyResponse
from service.settings import Settings, SettingsError
from service.ui import MEDIA_TYPE, PATH, page
from service.workers import Workers

logger = logging.getLogger("bentoml.service")

# How often the event loop shows that it runs, in seconds.
TURN_SECONDS = 1.0


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
        self._inference: Inference | None = None
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
        self._info = to_json(describe(classifier, self.settings))
        self._models = to_json(model_list(classifier.manifest))
        self._document = to_json(
            document(
                classifier.manifest,
                self.settings,
                with_keys=self._keys is not None,
                special_tokens=classifier.encoder.special_tokens,
            )
        )
        self._metrics = metrics
        self._inference = Inference(classifier, engine, self.settings, metrics)
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
        if self._inference is None:
            return False, True
        engine = self._inference.engine
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
        if self._inference is not None:
            # For a batch that hangs nobody has to wait any more.
            alive = self._state()[1]
            self._inference.engine.close(self.settings.timeout_ms / 1000 if alive else 0)
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
        await self._bentoml(scope, receive, with_headers(send, headers, record))

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
        inference = self._serving()
        # The decoded body is held by no name: it may be 26 times as large as its bytes, and this
        # request may wait.
        parsed = inference.parse_classify(await request.json(self.settings))
        return Answer(200, to_json(await inference.classify(request, parsed)))

    async def classify_here(self, content: dict[str, Any]) -> ClassifyResponse:
        """The same without HTTP.

        Raises:
            RequestError: as the route refuses it.
        """
        scope = {"path": "/classify", "headers": []}
        request = Request.of(scope, wait_for_ever)
        request.set_deadline(self.settings)
        inference = self._serving()
        answer = to_json(await inference.classify(request, inference.parse_classify(content)))
        return ClassifyResponse.model_validate_json(answer)

    async def predict(self, request: Request) -> Answer:
        """`POST /predict`: see `PredictRequest`; every label, the highest score first."""
        inference = self._serving()
        # By no name, as in `classify`.
        parsed, texts = inference.parse_predict(await request.json(self.settings))
        found = await inference.label_scores(request, parsed, texts)
        batch = isinstance(parsed.inputs, list) and isinstance(parsed.inputs[0], list)
        return Answer(200, to_json(found if batch else found[0]))

    async def hub(self, request: Request) -> Answer:
        """`POST /`: the same as Hugging Face's clients want it, always a list for each text."""
        inference = self._serving()
        parsed, texts = inference.parse_hub(await request.json(self.settings))
        return Answer(200, to_json(await inference.label_scores(request, parsed, texts)))

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
        if asked not in (manifest.name, model_name(manifest)):
            raise RequestError(404, "there is no such model: GET /v1/models names the one here")
        return Answer(200, to_json(model_card(manifest)))

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

    def _serving(self) -> Inference:
        if self._inference is None:
            raise RequestError(503, "the model is not loaded yet: try again in a moment")
        return self._inference

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
            log_access(request, path, status, seconds)

    async def _bentoml(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.bentoml is None:
            raise RuntimeError("there is no BentoML application behind these routes")
        await self.bentoml(scope, receive, send)


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
# What a route that is none is called in metrics and log: its own name is a stranger's.
OTHER = "other"
