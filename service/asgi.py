"""What every route needs of HTTP: a request's body and headers in, one answer out.

Plain ASGI, without a framework's request and response objects: on the way of every request they
cost more than the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import zlib
from dataclasses import dataclass, field
from random import getrandbits
from time import monotonic
from typing import Any, NamedTuple, NoReturn

import orjson
from starlette.types import Message, Receive, Scope, Send

from service.schemas import Limits

# A client that is still sending does not read: swallow this many times the limit of a body that is
# too large, so that it gets its 413 rather than a reset.
SWALLOWED_BODIES = 32
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
SANE_CODING = re.compile(r"[a-z0-9._-]{1,32}")
JSON = b"application/json"
CLOSE = ((b"connection", b"close"),)
ACCEPTED_CODINGS = ((b"accept-encoding", b"gzip, deflate, identity"),)
# What some editors and .NET write before UTF-8.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Headers = tuple[tuple[bytes, bytes], ...]


class RequestError(Exception):
    """Answer this request with `status`; the message never holds a part of the request.

    `reason` is what refusals (429) are counted by.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Headers = (),
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers
        self.reason = reason


class ClientGoneError(Exception):
    """The caller has closed the connection: there is nobody to answer."""


class Answer(NamedTuple):
    """Status, body and the headers that are not those of every answer."""

    status: int
    body: bytes
    headers: Headers = ()
    media_type: bytes = JSON


@dataclass(slots=True)
class Request:
    """One HTTP request; `deadline` is on the clock of `time.monotonic`.

    `unread` says that it has a body which nobody has asked for yet, `named` that `id` is the
    caller's.
    """

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    id: str
    started: float
    unread: bool
    named: bool = False
    deadline: float = 0.0
    # For the log and the Server-Timing header: counts, and seconds by name.
    texts: int = 0
    tokens: int = 0
    timing: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Request:
        """The request of an ASGI scope; its id is the caller's where that is sane."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        named = SANE_REQUEST_ID.fullmatch(given) is not None
        # A name, no secret. `uuid4` asks the system and lets go of the interpreter's lock, which
        # the inference threads then have first.
        name = given.decode() if named else f"{getrandbits(128):032x}"
        unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        return cls(scope, receive, headers, name, monotonic(), unread, named)

    def name(self, *given: object) -> None:
        """Take the first name that the body gives, where it is sane and no header gives one."""
        if self.named:
            return
        name = next((name for name in given if name is not None), None)
        if not isinstance(name, str) or not name.isascii():
            return
        if SANE_REQUEST_ID.fullmatch(name.encode()):
            self.id, self.named = name, True

    def set_deadline(self, limits: Limits) -> None:
        """The operator's time, or less where the caller asks for less.

        Raises:
            RequestError: the caller's header is not a number of milliseconds.
        """
        milliseconds = limits.timeout_ms
        asked = self.headers.get(b"x-request-timeout-ms")
        if asked is not None:
            digits = asked.lstrip(b"0")
            if not digits.isdigit():
                raise RequestError(
                    422,
                    "X-Request-Timeout-Ms must be a whole number of milliseconds from 1 on",
                    "X-Request-Timeout-Ms",
                )
            # int() takes long over a megabyte of digits, and so many are more than any limit.
            if len(digits) < 10:
                milliseconds = min(milliseconds, int(digits))
        self.deadline = self.started + milliseconds / 1000

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative past it."""
        return self.deadline - monotonic()

    async def json(self, limits: Limits) -> Any:
        """The body, decoded.

        Raises:
            RequestError: another content type or coding, a body that is too large, too slow or
                not JSON.
            ClientGoneError: the caller left before the body had come.
        """
        content_type = self.headers.get(b"content-type", b"")
        if content_type != JSON:
            content_type = content_type.partition(b";")[0].strip().lower()
        if content_type != JSON:
            raise RequestError(415, "send the request as Content-Type: application/json")
        coding = self._coding()
        body = await self._body(limits)
        return parse_json(inflated(body, coding, limits) if coding else body)

    def _coding(self) -> str | None:
        """The coding of the body; None where it has none."""
        if b"content-encoding" not in self.headers:
            return None
        given = self.headers[b"content-encoding"].decode("latin-1").strip().lower()
        coding = {"": None, "identity": None, "x-gzip": "gzip"}.get(given, given)
        if coding not in (None, "gzip", "deflate"):
            name = given if SANE_CODING.fullmatch(given) else "of this kind"
            raise RequestError(
                415,
                f"a Content-Encoding {name} is not read here: send gzip, deflate or none",
                headers=ACCEPTED_CODINGS,
            )
        return coding

    async def swallow(self, limits: Limits) -> None:
        """Let a body come that nobody reads, with the bytes and seconds of one that is read.

        A connection that is closed while its client sends may be reset, and the answer lost.
        """
        received = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.body_timeout_ms / 1000):
                while received <= limits.max_body_bytes:
                    message = await self.receive()
                    received += len(message.get("body", b""))
                    # Neither has the message that says that the client is gone.
                    if not message.get("more_body"):
                        break

    async def _body(self, limits: Limits) -> bytes:
        self.unread = False
        received = 0
        chunks: list[bytes] = []
        seconds = limits.body_timeout_ms / 1000
        late = self.deadline < self.started + seconds
        try:
            async with asyncio.timeout(self.seconds_left if late else seconds):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk: bytes = message.get("body", b"")
                    received += len(chunk)
                    if received <= limits.max_body_bytes:
                        chunks.append(chunk)
                    elif received > SWALLOWED_BODIES * limits.max_body_bytes:
                        break
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            if received <= limits.max_body_bytes:
                if late:
                    raise RequestError(
                        504, "the deadline passed before the body had come", headers=CLOSE
                    ) from None
                raise RequestError(
                    408,
                    f"the body did not come within {limits.body_timeout_ms} ms",
                    headers=CLOSE,
                ) from None
        if received > limits.max_body_bytes:
            raise RequestError(
                413,
                f"the body is larger than {limits.max_body_bytes} bytes: send several requests",
                headers=CLOSE,
            )
        return b"".join(chunks)


def inflated(body: bytes, coding: str, limits: Limits) -> bytes:
    """A body without its coding; of one that is too large no more is made than the limit.

    Args:
        body: as it came.
        coding: `gzip`, or `deflate`: in the zlib format, and without it as some clients send it.
        limits: the limit is on what comes out.

    Raises:
        RequestError: it is broken, or too large.
    """
    if coding == "gzip":
        window_bits = 16 + zlib.MAX_WBITS
    else:
        # The two bytes that the zlib format begins with (RFC 1950) begin no raw block.
        in_zlib = body[:1] and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        window_bits = zlib.MAX_WBITS if in_zlib else -zlib.MAX_WBITS
    inflater = zlib.decompressobj(window_bits)
    try:
        content = inflater.decompress(body, limits.max_body_bytes + 1)
    except zlib.error:
        content = None
    if content is not None and len(content) > limits.max_body_bytes:
        raise RequestError(
            413,
            f"the body is larger than {limits.max_body_bytes} bytes when its {coding} is undone: "
            "send several requests",
        )
    if content is None or not inflater.eof or inflater.unused_data:
        raise RequestError(400, f"the body is not whole {coding}, as its Content-Encoding says")
    return content


def parse_json(body: bytes) -> Any:
    """A body decoded, as RFC 8259 has it: of keys that come twice, the last one counts.

    Raises:
        RequestError: it is not UTF-8, or not JSON; NaN and Infinity are not.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    # orjson refuses a lone surrogate, which is well-formed JSON and an unacceptable text. It also
    # does not say why it refuses.
    encoding = json.detect_encoding(body[:4])
    if not encoding.startswith("utf-8"):
        name = encoding[:6].upper()
        raise RequestError(400, f"the body is {name} or no text at all: send JSON in UTF-8")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8: send JSON in UTF-8") from None
    except RecursionError:
        raise RequestError(
            400, "the body is nested too deeply: lists and objects may be 900 deep"
        ) from None
    except json.JSONDecodeError:
        raise RequestError(400, "the body is not JSON") from None
    except ValueError:
        # What is left of it: Python makes no integer of more digits (sys.set_int_max_str_digits).
        raise RequestError(
            400, "a number in the body has too many digits: 4,300 are the most"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(400, f"the body is not JSON: {name} is no number there")


def to_json(content: Any) -> bytes:
    """JSON of plain values and numpy's; a float32 is written with the digits it needs."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def send_answer(send: Send, request: Request, answer: Answer) -> None:
    """Send an answer, with the headers that each has; of an unread body its end is still to come.

    The server closes a connection as soon as its last answer has ended.
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


async def wait_for_ever() -> Message:
    """What a caller who cannot leave sends after the body."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never
