"""What stands around our routes: BentoML's span, preflights, headers that are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.asgi import CLOSE, Headers, Request

if TYPE_CHECKING:
    from service.routes import Routes


# Keeps BentoML's page to what this server sends: it would load a tracker of Google's.
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
                send = with_headers(send, CLOSE, lambda _status: None)
        await self._app(scope, receive, send)


def with_headers(send: Send, headers: Headers, record: Callable[[int], object]) -> Send:
    """Add headers to an answer, and record its status."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
            record(message["status"])
        await send(message)

    return send_with_headers
