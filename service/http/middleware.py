"""Wrappers around our routes: for BentoML's spans, for preflights, and for added headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.asgi import CLOSE, Headers
from service.http.request import Request

if TYPE_CHECKING:
    from service.http.routes import Routes


# BentoML's page may load nothing from other servers: it would load a tracker of Google's.
PAGE_POLICY: Headers = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    ),
)


class TracedRoutes:
    """Our routes as a middleware of BentoML's application, inside its OpenTelemetry span."""

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a route of ours, or pass the request on."""
        name = self._routes.name_of(scope) if scope["type"] == "http" else None
        if name is not None:
            await self._routes.serve(name, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class BoundedPreflights:
    """Closes the connection of a preflight that has a body.

    It stands outside the middleware that answers preflights, which reads no body: uvicorn would go
    on reading it for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; the answer to a preflight with a body gets a header more."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            request = Request.of(scope, receive)
            if request.unread and b"access-control-request-method" in request.headers:
                send = with_headers(send, CLOSE, lambda _status: None)
        await self._app(scope, receive, send)


def with_headers(send: Send, headers: Headers, record: Callable[[int], object]) -> Send:
    """A `send` that adds headers to the answer and passes its status to `record`."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
            record(message["status"])
        await send(message)

    return send_with_headers
