"""The access log, by switch: one line of JSON for each request, without its text."""

from __future__ import annotations

import logging
import sys
from datetime import datetime

from service.http.asgi import to_json
from service.http.request import Request

access_logger = logging.getLogger("whetstone.access")


def enable_access_log() -> None:
    """Write the log to standard output, one JSON object a line."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False


def log_access(request: Request, route: str, status: int, seconds: float) -> None:
    """Log an answered request."""
    line = {
        "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "request_id": request.id,
        "method": request.scope["method"],
        "route": route,
        "status": status,
        "texts": request.texts,
        "tokens": request.tokens,
        "milliseconds": round(seconds * 1000, 3),
    }
    access_logger.info(to_json(line).decode())
