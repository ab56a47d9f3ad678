"""Why a request gets no answer, and how this is answered: in one error schema.

RequestError                     refused, with a status
└── UnacceptableRequestError     well-formed JSON that cannot be classified (422)
    └── EmptyTextError           a text, or the list of texts, is empty
ClientGoneError                  the caller closed the connection
"""

from __future__ import annotations

import math

from service.http.asgi import Answer, Headers, to_json
from service.http.schemas import PREDICT_FAULT
from service.inference.errors import EngineError, OverloadedError

ERROR_TYPES = {
    400: "invalid_json",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "unacceptable_request",
    429: "overloaded",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
# The names and statuses of text-embeddings-inference; where it has none, ours stay.
PREDICT_ERROR_TYPES = {
    401: "Unauthorized",
    429: "Overloaded",
    PREDICT_FAULT: "Backend",
    503: "Unhealthy",
    504: "Backend",
}


class RequestError(Exception):
    """Answer this request with `status`. The message never holds a part of the request.

    `param` names the field concerned. `reason` is the label under which a 429 is counted.
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


class UnacceptableRequestError(RequestError):
    """Well-formed JSON that cannot be classified; `param` names the field and index."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(422, message, param)


class EmptyTextError(UnacceptableRequestError):
    """A text, or the list of texts, is empty."""


class ClientGoneError(Exception):
    """The caller has closed the connection, so there is nobody to answer."""


def error_answer(error: RequestError) -> Answer:
    """A refusal in the error schema of this server."""
    detail = {
        "message": error.message,
        "type": ERROR_TYPES[error.status],
        "param": error.param,
        "code": error.status,
    }
    return Answer(error.status, to_json({"error": detail}), error.headers)


def predict_error_answer(error: RequestError) -> Answer:
    """A refusal in the error schema of text-embeddings-inference."""
    status = PREDICT_FAULT if error.status == 500 else error.status
    kind = PREDICT_ERROR_TYPES.get(status, "Validation")
    if isinstance(error, EmptyTextError):
        status, kind = 400, "Empty"
    return Answer(status, to_json({"error": error.message, "error_type": kind}), error.headers)


def deadline_passed() -> RequestError:
    """504: the deadline passed while the request waited."""
    return RequestError(504, "the deadline passed before the answer was ready")


def refusal_of(error: EngineError, behind: float = 0.0) -> RequestError:
    """429 or 503: the engine does not take the request.

    Args:
        behind: seconds by which the event loop is behind, which leave less to the engine.
    """
    if isinstance(error, OverloadedError):
        # A request that is too long for what is left may be short enough at another time.
        too_late = error.reason == "too_long" and behind > 0
        return _overloaded(error.retry_after + behind, "deadline" if too_late else error.reason)
    return RequestError(503, "the server is shutting down: ask another one")


def _overloaded(retry_after: float, reason: str) -> RequestError:
    """429 with the whole seconds until the present work is done."""
    seconds = max(1, math.ceil(retry_after))
    message = (
        "this request takes longer than its deadline allows: send fewer texts at a time"
        if reason == "too_long"
        else f"the server has more work than it can do in time: try again in {seconds} s"
    )
    headers: Headers = ((b"retry-after", str(seconds).encode()),)
    return RequestError(429, message, headers=headers, reason=reason)
