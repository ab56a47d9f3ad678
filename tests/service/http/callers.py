"""Callers of the routes in this process: a test client, and plain ASGI with a slow model."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from starlette.testclient import TestClient
from starlette.types import Message

from service.http.limits import Limits
from service.http.routes import Routes
from service.inference.classifier import Classifier

LABELS = ["delivery", "praise", "returns"]
LIMITS = Limits()
LONG = "lovely " * 40 + "parcel " * 40


def post(client: TestClient, body: bytes, content_type: str = "application/json") -> Any:
    return client.post("/classify", content=body, headers={"Content-Type": content_type})


def classified(client: TestClient, **body: Any) -> dict[str, Any]:
    """The item that answers one text, with the number of its tokens."""
    answer = client.post("/classify", json={"input": LONG, **body})
    assert answer.status_code == 200, answer.text
    item = answer.json()["data"][0]
    return {**item, "tokens": answer.json()["usage"]["prompt_tokens"]}


class Slow(Classifier):
    """The classifier, whose model waits at a gate until the test opens it."""

    def __init__(self, classifier: Classifier) -> None:
        self.__dict__.update(classifier.__dict__)
        self.inside = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.batches = 0

    def logits(self, encodings: Any) -> Any:
        self.batches += 1
        self.inside.release()
        assert self.gate.acquire(timeout=30)
        return super().logits(encodings)


async def ask(
    routes: Routes,
    content: Any,
    *,
    path: str = "/classify",
    headers: dict[str, str] | None = None,
    leave: asyncio.Event | None = None,
) -> tuple[int, dict[str, str], Any]:
    """Call the application as a server does; the caller leaves when `leave` is set."""
    body: Message = {"type": "http.request", "body": json.dumps(content).encode()}
    waiting = [body]
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await routes(scope, receive, send)
    if not sent:
        return 0, {}, None
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], names, json.loads(sent[1]["body"])


async def busy(slow: Slow) -> None:
    assert await asyncio.to_thread(slow.inside.acquire, timeout=30)
