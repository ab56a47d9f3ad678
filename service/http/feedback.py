"""A decoded body of `/feedback` → what is known of an answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.http.errors import UnacceptableRequestError
from service.http.limits import Limits
from service.package.manifest import VERSION_PATTERN, Manifest

ID_PATTERN = r"^[A-Za-z0-9._:-]{1,140}$"
MOST_NOTE_CHARACTERS = 1_000
# Of labels of another version, which nothing here can check.
MOST_LABEL_CHARACTERS = 200


class FeedbackRequest(BaseModel):
    """What a person, or a later process, knows about an answer.

    `id` is the answer's id, from its body or its header `X-Request-Id`. `index` is the place of the
    text in its request. A model of one label a text takes `label`, one of several takes `labels`.
    `version` is the version that answered, as the field `model` of the answer names it. Without it,
    the answer is taken as one of the version that serves. The labels of another version are not
    known here: they are checked when the feedback meets its answer.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=ID_PATTERN)
    index: int = Field(0, ge=0)
    label: str | None = None
    labels: list[str] | None = None
    note: str | None = Field(None, max_length=MOST_NOTE_CHARACTERS)
    version: str | None = Field(None, pattern=VERSION_PATTERN)

    @property
    def known(self) -> tuple[str, ...]:
        """The right label or labels."""
        return tuple(dict.fromkeys(self.labels or ())) if self.label is None else (self.label,)


class FeedbackResponse(BaseModel):
    """The feedback was taken; it is written within seconds, or to a bucket within a minute."""

    status: str = "accepted"


def parse_feedback(content: Any, manifest: Manifest, limits: Limits) -> FeedbackRequest:
    """The body, checked against the labels of the model.

    Raises:
        UnacceptableRequestError: a field is missing, unknown or wrong, or a label does not exist.
    """
    if not isinstance(content, dict):
        raise UnacceptableRequestError("the body must be a JSON object", None)
    labels = content.get("labels")
    # Before pydantic, which would write an error for each of half a million items.
    if isinstance(labels, list) and len(labels) > len(manifest.labels):
        raise UnacceptableRequestError("labels has more labels than this model has", "labels")
    try:
        feedback = FeedbackRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        known = [str(part) for part in first["loc"] if part in FeedbackRequest.model_fields]
        if not known:
            raise UnacceptableRequestError(
                "a field is unknown: feedback has id, index, label or labels, note and version",
                None,
            ) from None
        raise UnacceptableRequestError(f"{known[0]}: {first['msg']}", known[0]) from None
    if feedback.index >= limits.max_texts:
        raise UnacceptableRequestError("index is larger than any request has texts", "index")
    if feedback.version not in (None, manifest.version):
        return _of_another_version(feedback)
    field, other = ("labels", "label") if manifest.task == "multi_label" else ("label", "labels")
    if getattr(feedback, other) is not None or getattr(feedback, field) is None:
        raise UnacceptableRequestError(f"this model takes feedback as {field}", field)
    if not set(feedback.known) <= set(manifest.labels):
        raise UnacceptableRequestError(
            f"{field} names a label that this model does not have: GET /info lists them. If an "
            "earlier version answered, name it as version",
            field,
        )
    return feedback


def _of_another_version(feedback: FeedbackRequest) -> FeedbackRequest:
    """The feedback, bounded where no label of its version is known."""
    if (feedback.label is None) == (feedback.labels is None):
        raise UnacceptableRequestError("feedback has either label or labels", "label")
    if any(len(label) > MOST_LABEL_CHARACTERS for label in feedback.known):
        raise UnacceptableRequestError(
            f"a label is longer than {MOST_LABEL_CHARACTERS} characters", "label"
        )
    return feedback
