"""One HTTP request: its id, its deadline and its body; and how its answer is sent."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from random import getrandbits
from time import monotonic
from typing import Any

from starlette.types import Receive, Scope, Send

from service.http.asgi import CLOSE, JSON, Answer
from service.http.bodies import coding_of, decompress, parse_json
from service.http.errors import ClientGoneError, RequestError
from service.http.limits import Limits
from service.http.turns import Arrival

# A client that is still sending does not read yet. Up to this many times the limit of a body is
# received and thrown away, so that the client gets its 413 and no connection reset.
DISCARDED_BODIES = 32
# Seconds by which an event loop is behind only if it has much work.
NOTABLY_BEHIND = 0.01
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class Request:
    """One HTTP request; `deadline` is on the clock of `time.monotonic`.

    `behind` is how many seconds the event loop is behind, if these are many. `unread` says that
    there is a body which has not been read. `is_named` says that `id` comes from the caller.
    """

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    id: str
    started: float
    unread: bool
    is_named: bool = False
    deadline: float = 0.0
    behind: float = 0.0
    # For the access log and the Server-Timing header: counts, and seconds by stage.
    texts: int = 0
    tokens: int = 0
    timing: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Request:
        """The request of an ASGI scope. Its id is the caller's, if that is safe to repeat."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        callers_id = headers.get(b"x-request-id", b"")
        is_named = SAFE_REQUEST_ID.fullmatch(callers_id) is not None
        # A name, not a secret. `uuid4` asks the operating system and releases the interpreter's
        # lock, which the inference threads would then take first.
        name = callers_id.decode() if is_named else f"{getrandbits(128):032x}"
        unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        return cls(scope, receive, headers, name, monotonic(), unread, is_named)

    def take_id(self, *ids: object) -> None:
        """Use the first id of the body that is not None, if it is safe and no header gives one."""
        if self.is_named:
            return
        name = next((each for each in ids if each is not None), None)
        if not isinstance(name, str) or not name.isascii():
            return
        if SAFE_REQUEST_ID.fullmatch(name.encode()):
            self.id, self.is_named = name, True

    def set_deadline(self, limits: Limits) -> None:
        """Set the operator's deadline, or an earlier one where the caller asks for it.

        Raises:
            RequestError: the caller's header is not a number of milliseconds.
        """
        milliseconds = limits.timeout_ms
        wanted = self.headers.get(b"x-request-timeout-ms")
        if wanted is not None:
            digits = wanted.lstrip(b"0")
            if not digits.isdigit():
                raise RequestError(
                    422,
                    "X-Request-Timeout-Ms must be a whole number of milliseconds from 1 on",
                    "X-Request-Timeout-Ms",
                )
            # int() would take long for a megabyte of digits. More than nine exceed any limit.
            if len(digits) < 10:
                milliseconds = min(milliseconds, int(digits))
        self.deadline = self.started + milliseconds / 1000

    def came(self, arrival: Arrival) -> None:
        """Let the request's time begin when it came, not when the event loop came to it."""
        self.started = min(self.started, arrival.moment)
        # Small differences between requests shall not change their order.
        self.behind = arrival.behind if arrival.behind > NOTABLY_BEHIND else 0.0

    @property
    def seconds_to_compute(self) -> float:
        """The time until the answer must be computed.

        The event loop is likely to send it as late as it was when the request came.
        """
        return self.seconds_left - self.behind

    @property
    def seconds_left(self) -> float:
        """The time until the deadline; negative after it."""
        return self.deadline - monotonic()

    async def json(self, limits: Limits) -> Any:
        """Read and decode the body.

        Raises:
            RequestError: the content type or coding is not supported, or the body is too large,
                too slow or not JSON.
            ClientGoneError: the caller left before the body was complete.
        """
        content_type = self.headers.get(b"content-type", b"")
        if content_type != JSON:
            content_type = content_type.partition(b";")[0].strip().lower()
        if content_type != JSON:
            raise RequestError(415, "send the request as Content-Type: application/json")
        coding = None
        if b"content-encoding" in self.headers:
            coding = coding_of(self.headers[b"content-encoding"])
        body = await self._read_body(limits)
        return parse_json(decompress(body, coding, limits.max_body_bytes) if coding else body)

    async def discard_body(self, limits: Limits) -> None:
        """Receive and drop a body that nobody reads, within the usual bytes and seconds.

        If the connection were closed while the client sends, the answer could be lost in a reset.
        """
        received = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.body_timeout_ms / 1000):
                while received <= limits.max_body_bytes:
                    message = await self.receive()
                    received += len(message.get("body", b""))
                    # The message that the client is gone has no `more_body` either.
                    if not message.get("more_body"):
                        break

    async def _read_body(self, limits: Limits) -> bytes:
        self.unread = False
        received = 0
        chunks: list[bytes] = []
        body_seconds = limits.body_timeout_ms / 1000
        deadline_is_first = self.deadline < self.started + body_seconds
        try:
            async with asyncio.timeout(self.seconds_left if deadline_is_first else body_seconds):
                while received <= DISCARDED_BODIES * limits.max_body_bytes:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk: bytes = message.get("body", b"")
                    received += len(chunk)
                    if received <= limits.max_body_bytes:
                        chunks.append(chunk)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            if received <= limits.max_body_bytes:
                raise _late_body(limits, deadline_is_first=deadline_is_first) from None
        if received > limits.max_body_bytes:
            raise RequestError(
                413,
                f"the body is larger than {limits.max_body_bytes} bytes: send several requests",
                headers=CLOSE,
            )
        return b"".join(chunks)


def _late_body(limits: Limits, *, deadline_is_first: bool) -> RequestError:
    if deadline_is_first:
        return RequestError(504, "the deadline passed before the body had come", headers=CLOSE)
    return RequestError(
        408, f"the body did not come within {limits.body_timeout_ms} ms", headers=CLOSE
    )


async def send_answer(send: Send, request: Request, answer: Answer) -> None:
    """Send an answer, with the headers that every answer has.

    Where the request's body is unread, the answer's end is left to the caller of this function:
    the server closes a connection as soon as its last answer has ended.
    """
    headers = [
        (b"content-type", answer.media_type),
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request.id.encode()),
        *answer.headers,
    ]
    if request.timing:
        timing = ", ".join(
            [f"{name};dur={seconds * 1000:.2f}" for name, seconds in request.timing.items()]
        )
        headers.append((b"server-timing", timing.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": request.unread})
