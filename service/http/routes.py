"""The ASGI application of the server: it finds the route of a request and sends its answer.

Other routes are BentoML's (`/livez`, `/readyz`, `/metrics`, the OpenAPI page). A path that is
neither is refused.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from service.capture.capture import Capture
from service.http.access_log import log_access
from service.http.api_keys import ApiKeys
from service.http.asgi import CLOSE, Answer, wait_for_ever
from service.http.endpoints import MODEL_PREFIX, REQUESTED_PATH, Endpoints
from service.http.errors import (
    ClientGoneError,
    RequestError,
    error_answer,
    predict_error_answer,
)
from service.http.explaining import Explaining
from service.http.inference import Inference
from service.http.lifecycle import Lifecycle
from service.http.middleware import PAGE_POLICY, with_headers
from service.http.openapi import EXPLAIN_PATH, FEEDBACK_PATH
from service.http.request import Request, send_answer
from service.http.schemas import ClassifyResponse
from service.http.turns import Turns
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.metrics.recorder import Metrics
from service.page.page import PATH
from service.settings import Settings, SettingsError

logger = logging.getLogger("bentoml.service")


class Route(NamedTuple):
    """A route of ours: its method, what answers it, and its error schema."""

    method: str
    answer: Callable[[Endpoints, Request], Awaitable[Answer]]
    refuse: Callable[[RequestError], Answer] = error_answer


HEALTH_ROUTE = "/health"
# GET / is BentoML's page; this name tells the two apart, also in WHETSTONE_OPEN_ROUTES.
HUB_ROUTE = "POST /"
MODEL_ROUTE = MODEL_PREFIX + "{id}"
ROUTES = {
    "/classify": Route("POST", Endpoints.classify),
    "/v1/classify": Route("POST", Endpoints.classify),
    "/predict": Route("POST", Endpoints.predict, predict_error_answer),
    HUB_ROUTE: Route("POST", Endpoints.hub, predict_error_answer),
    "/info": Route("GET", Endpoints.info),
    "/v1/models": Route("GET", Endpoints.models),
    MODEL_ROUTE: Route("GET", Endpoints.model),
    HEALTH_ROUTE: Route("GET", Endpoints.health),
    "/docs.json": Route("GET", Endpoints.docs),
}
BENTOML_ROUTES = frozenset({"/", "/livez", "/readyz", "/healthz", "/metrics", "/schema.json"})
# The files of BentoML's page, each by its name: BentoML's metrics have a series for every path.
BENTOML_FILES = frozenset(
    f"/static_content/{file.name}"
    for file in Path(bentoml.__file__).parent.glob("_internal/server/static_content/*")
)
# The name of an unknown path in metrics and log; the path itself is the caller's.
OTHER = "other"


class Routes:
    """The ASGI application; it answers 503 until `attach` has given it a classifier.

    Args:
        settings: limits, and what else the operator decides.
        keys: the accepted API keys; None lets everybody in.
        bentoml: the application that answers BentoML's own routes.

    Raises:
        SettingsError: WHETSTONE_OPEN_ROUTES names an unknown route.
    """

    def __init__(
        self, settings: Settings, keys: ApiKeys | None = None, bentoml: ASGIApp | None = None
    ) -> None:
        self.settings = settings
        self.bentoml = bentoml
        self.routes = dict(ROUTES)
        if settings.ui:
            self.routes[PATH] = Route("GET", Endpoints.ui)
        if settings.explain:
            self.routes[EXPLAIN_PATH] = Route("POST", Endpoints.explain)
        if settings.capture is not None:
            self.routes[FEEDBACK_PATH] = Route("POST", Endpoints.feedback)
        self._keys = keys
        # The page itself needs no key: its requests do.
        self._open_routes = frozenset([*settings.open_routes, PATH])
        self._refuse_unknown(settings.open_routes)
        self.lifecycle = Lifecycle(settings)
        self._endpoints = Endpoints(
            settings, with_keys=keys is not None, is_ready=lambda: self.lifecycle.ready
        )
        self._metrics: Metrics | None = None
        self._turns = Turns()

    def _refuse_unknown(self, open_routes: tuple[str, ...]) -> None:
        known = [*self.routes, *sorted(BENTOML_ROUTES)]
        for route in open_routes:
            if route not in known:
                nearest = difflib.get_close_matches(route, known, n=1, cutoff=0.0)[0]
                raise SettingsError(
                    f"WHETSTONE_OPEN_ROUTES names {route}, which is no route: "
                    f"did you mean {nearest}?"
                )

    def attach(
        self,
        classifier: Classifier,
        engine: Engine,
        metrics: Metrics | None = None,
        folder: Path | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Serve `classifier` with `engine`.

        Args:
            metrics: counts every request.
            folder: where several workers of one server report their state.
            capture: keeps answers and feedback.
        """
        self._metrics = metrics
        inference = Inference(classifier, engine, self.settings, metrics, capture)
        explaining = (
            Explaining(classifier, engine, self.settings, metrics)
            if self.settings.explain
            else None
        )
        self._endpoints.attach(inference, classifier, capture, explaining)
        self.lifecycle.attach(engine, metrics, folder, capture)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to BentoML."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self.lifecycle.begin()
            await self._bentoml(scope, receive, send)
            return
        name = self.name_of(scope)
        if name is None:
            await self._serve_other(scope, receive, send)
        elif self.settings.tracing_url is None:
            await self.serve(name, scope, receive, send)
        else:
            await self._trace(name, scope, receive, send)

    def name_of(self, scope: Scope) -> str | None:
        """The name of our route that is requested, as in metrics and log; None for other paths."""
        path: str = scope["path"]
        if path in self.routes:
            return path
        if path == "/" and scope["method"] == "POST":
            return HUB_ROUTE
        return MODEL_ROUTE if path.startswith(MODEL_PREFIX) else None

    async def serve(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to the route of ours that `name_of` has named."""
        route = self.routes[name]
        request = Request.of(scope, receive)
        try:
            self._check_method(scope, route.method)
            self._check_key(request, name)
            request.came(self._turns.look())
            request.set_deadline(self.settings)
            answer = await route.answer(self._endpoints, request)
        except RequestError as error:
            answer = route.refuse(error)
            if self._metrics is not None and error.reason is not None:
                self._metrics.refused(error.reason)
        except ClientGoneError:
            self._record(request, name, 499)
            return
        except Exception as error:  # noqa: BLE001 - the last resort; its message may hold a text
            logger.error("request %s failed: %s", request.id, type(error).__name__)
            answer = route.refuse(RequestError(500, "the server failed to answer: see its log"))
        await self._finish(send, request, name, answer)

    async def classify_here(self, content: dict[str, Any]) -> ClassifyResponse:
        """Answer the decoded body of `POST /classify` without HTTP.

        Raises:
            RequestError: as the route refuses it.
        """
        request = Request.of({"path": "/classify", "headers": []}, wait_for_ever)
        request.set_deadline(self.settings)
        answer = await self._endpoints.classify_content(request, content)
        return ClassifyResponse.model_validate_json(answer)

    async def _trace(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to a route of ours through BentoML's middlewares, for its span.

        Their metrics have a series for every path, so a path that the caller chooses is replaced
        by the route's name.
        """
        if name == MODEL_ROUTE:
            scope = {**scope, "path": MODEL_ROUTE, REQUESTED_PATH: scope["path"]}
        await self._bentoml(scope, receive, send)

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to BentoML, or refuse it."""
        path: str = scope["path"]
        request = Request.of(scope, receive)
        name = path if path in BENTOML_ROUTES else OTHER
        try:
            if path not in BENTOML_ROUTES and path not in BENTOML_FILES:
                raise RequestError(404, "there is no such route: GET /docs.json lists them")
            self._check_method(scope, "GET")
            self._check_key(request, path)
        except RequestError as error:
            await self._finish(send, request, name, error_answer(error))
            return
        if path == "/metrics" and self._metrics is not None:
            self._metrics.update()
        headers = (*PAGE_POLICY, *CLOSE) if self._is_last(request) else PAGE_POLICY
        record = partial(self._record, request, name)
        await self._bentoml(scope, receive, with_headers(send, headers, record))

    def _is_last(self, request: Request) -> bool:
        """Whether the connection ends with this request.

        It does where the body is unread: uvicorn would go on reading it for ever.
        """
        return self.lifecycle.draining.begun or request.unread

    async def _finish(self, send: Send, request: Request, name: str, answer: Answer) -> None:
        """Send an answer and record it; receive the rest of an unread body."""
        if self._is_last(request):
            answer = answer._replace(headers=(*answer.headers, *CLOSE))
        await send_answer(send, request, answer)
        self._record(request, name, answer.status)
        if request.unread:
            await request.discard_body(self.settings)
            await send({"type": "http.response.body", "body": b""})

    def _check_method(self, scope: Scope, method: str) -> None:
        if scope["method"] == method:
            return
        allowed: tuple[str, ...] = ("GET", "HEAD") if method == "GET" else (method,)
        if scope["path"] == "/":
            allowed = ("GET", "HEAD", "POST")
        if scope["method"] not in allowed:
            headers = ((b"allow", ", ".join(allowed).encode()),)
            raise RequestError(405, f"this route is called by {method}", headers=headers)

    def _check_key(self, request: Request, name: str) -> None:
        if self._keys is None or name in self._open_routes:
            return
        if not self._keys.accept(request.headers.get(b"authorization")):
            raise RequestError(
                401,
                "send an API key as Authorization: Bearer <key>",
                headers=((b"www-authenticate", b"Bearer"),),
            )

    def _record(self, request: Request, name: str, status: int) -> None:
        """Count a request and, by switch, log it.

        A successful request to `/health` or to BentoML's routes is not logged: there are too many
        probes.
        """
        seconds = monotonic() - request.started
        if self._metrics is not None:
            self._metrics.request(name, status, seconds)
        if not self.settings.access_log:
            return
        if status >= 400 or (name in self.routes and name != HEALTH_ROUTE):
            log_access(request, name, status, seconds)

    async def _bentoml(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.bentoml is None:
            raise RuntimeError("there is no BentoML application behind these routes")
        await self.bentoml(scope, receive, send)
