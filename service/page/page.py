"""The page for people, `GET /ui`: one file with its style and its script, and the policy it has.

It loads nothing. Its Content-Security-Policy allows that one script and that one style by their
hashes, and requests to this server only; text cannot become markup, as the script puts in
nothing but text and the policy lets it make no other.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from service.asgi import Headers

PATH = "/ui"
MEDIA_TYPE = b"text/html; charset=utf-8"
PAGE, STYLE, SCRIPT = "ui.html", "ui.css", "ui.js"


def page() -> tuple[bytes, Headers]:
    """The page, and its headers beside the content type."""
    style, script = _file(STYLE), _file(SCRIPT)
    whole = _file(PAGE).replace("{style}", style).replace("{script}", script)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    headers: Headers = (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        # A server of another version has another page.
        (b"cache-control", b"no-cache"),
    )
    return whole.encode(), headers


def _source(content: str) -> str:
    """What stands in a policy for a script or a style of that content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return resources.files("service").joinpath(name).read_text(encoding="utf-8")
