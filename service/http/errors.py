"""Refusals as answers: the one error schema, and that of text-embeddings-inference."""

from __future__ import annotations

from service.asgi import Answer, RequestError, to_json
from service.schemas import PREDICT_FAULT, EmptyTextError

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
# text-embeddings-inference's own names and statuses; what it has none for keeps ours.
PREDICT_ERROR_TYPES = {
    401: "Unauthorized",
    429: "Overloaded",
    PREDICT_FAULT: "Backend",
    503: "Unhealthy",
    504: "Backend",
}


def error_answer(error: RequestError) -> Answer:
    """A refusal in the one error schema."""
    detail = {
        "message": error.message,
        "type": ERROR_TYPES[error.status],
        "param": error.param,
        "code": error.status,
    }
    return Answer(error.status, to_json({"error": detail}), error.headers)


def predict_error_answer(error: RequestError) -> Answer:
    """The same in the schema of text-embeddings-inference."""
    status = PREDICT_FAULT if error.status == 500 else error.status
    kind = PREDICT_ERROR_TYPES.get(status, "Validation")
    if isinstance(error.__cause__, EmptyTextError):
        status, kind = 400, "Empty"
    return Answer(status, to_json({"error": error.message, "error_type": kind}), error.headers)
