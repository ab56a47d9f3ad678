"""The page for people, `GET /ui`: one file with its style and its script, and its policy.

The page loads nothing. Its Content-Security-Policy allows this script and this style by their
hashes, and requests to this server only. Text cannot become markup: the script inserts nothing but
text, and the policy forbids it to make markup.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from service.http.asgi import Headers

PATH = "/ui"
MEDIA_TYPE = b"text/html; charset=utf-8"
PAGE, STYLE, SCRIPT = "ui.html", "ui.css", "ui.js"


def page() -> tuple[bytes, Headers]:
    """The page, and its headers in addition to the content type."""
    style, script = _read(STYLE), _read(SCRIPT)
    html = _read(PAGE).replace("{style}", style).replace("{script}", script)
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
    return html.encode(), headers


def _source(content: str) -> str:
    """The source expression of a policy that allows a script or style with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return resources.files("service.page").joinpath(name).read_text(encoding="utf-8")
