"""The access log, by switch: a line of JSON for a request, and never a part of its text."""

from __future__ import annotations

import logging
import sys
from datetime import datetime

from service.asgi import Request, to_json

access_logger = logging.getLogger("whetstone.access")


def write_accesses() -> None:
    """Write the lines as they are, one JSON object each, to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False


def log_access(request: Request, route: str, status: int, seconds: float) -> None:
    """Log a request that was answered."""
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
