"""What all routes share of ASGI: answers, headers and JSON.

The routes use plain ASGI, without a framework's request and response objects: for every request
those cost more than the work itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import orjson
from starlette.types import Message

JSON = b"application/json"

Headers = tuple[tuple[bytes, bytes], ...]

CLOSE: Headers = ((b"connection", b"close"),)


class Answer(NamedTuple):
    """Status, body, and the headers that not every answer has."""

    status: int
    body: bytes
    headers: Headers = ()
    media_type: bytes = JSON


def to_json(content: Any) -> bytes:
    """Encode plain values and numpy's as JSON; a float32 gets the digits that it needs."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def wait_for_ever() -> Message:
    """The `receive` of a caller who sends nothing more and cannot leave."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never
