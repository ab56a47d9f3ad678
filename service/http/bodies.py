"""The bytes of a body → decompressed → decoded JSON."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, NoReturn

import orjson

from service.http.asgi import Headers
from service.http.errors import RequestError

SAFE_CODING_NAME = re.compile(r"[a-z0-9._-]{1,32}")
ACCEPTED_CODINGS: Headers = ((b"accept-encoding", b"gzip, deflate, identity"),)
# Some editors and .NET write this before UTF-8.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def coding_of(content_encoding: bytes) -> str | None:
    """The coding that a `Content-Encoding` header names; None for `identity`.

    Raises:
        RequestError: this server does not read the coding.
    """
    name = content_encoding.decode("latin-1").strip().lower()
    coding = {"": None, "identity": None, "x-gzip": "gzip"}.get(name, name)
    if coding not in (None, "gzip", "deflate"):
        kind = name if SAFE_CODING_NAME.fullmatch(name) else "of this kind"
        raise RequestError(
            415,
            f"a Content-Encoding {kind} is not read here: send gzip, deflate or none",
            headers=ACCEPTED_CODINGS,
        )
    return coding


def decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Undo the coding of a body; at most one byte more than the limit is produced.

    Args:
        body: the bytes that were sent.
        coding: `gzip`, or `deflate` in the zlib format or, as some clients send it, without it.
        max_bytes: the largest size of the result.

    Raises:
        RequestError: the body is broken, or too large.
    """
    inflater = zlib.decompressobj(_window_bits(body, coding))
    try:
        content = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        content = None
    if content is not None and len(content) > max_bytes:
        raise RequestError(
            413,
            f"the body is larger than {max_bytes} bytes when its {coding} is undone: "
            "send several requests",
        )
    if content is None or not inflater.eof or inflater.unused_data:
        raise RequestError(400, f"the body is not whole {coding}, as its Content-Encoding says")
    return content


def _window_bits(body: bytes, coding: str) -> int:
    """How `zlib` is told the format of a compressed body."""
    if coding == "gzip":
        return 16 + zlib.MAX_WBITS
    # The zlib format begins with two bytes (RFC 1950) that cannot begin a raw deflate block.
    is_zlib = body[:1] and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def parse_json(body: bytes) -> Any:
    """Decode JSON by RFC 8259; where a key comes twice, the last one counts.

    Raises:
        RequestError: the body is not JSON in UTF-8. NaN and Infinity are not JSON.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # orjson refuses a lone surrogate, which is well-formed JSON, and does not give its reason.
        return _parse_slowly(body)


def _parse_slowly(body: bytes) -> Any:
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
        # The only other ValueError: Python limits the digits of an integer
        # (sys.set_int_max_str_digits).
        raise RequestError(
            400, "a number in the body has too many digits: 4,300 are the most"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(400, f"the body is not JSON: {name} is no number there")
