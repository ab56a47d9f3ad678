"""Request and response types of the HTTP interface; every limit on a request lives here.

`/classify` has the schema that vLLM and SGLang serve, with `top_k` added to the request, and
`score` and `scores` to the response.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_BODY_BYTES = 1 << 20
MAX_TEXTS = 256
MAX_CHARACTERS = 100_000


class ClassifyRequest(BaseModel):
    """Body of `POST /classify`. Unknown fields are ignored, as the servers it follows do."""

    model_config = ConfigDict(strict=True)

    model: Annotated[str | None, Field(description="accepted, not checked")] = None
    input: Annotated[
        str | list[str],
        Field(description=f"a text, or 1 to {MAX_TEXTS} texts", union_mode="left_to_right"),
    ]
    top_k: Annotated[
        int | None, Field(ge=1, description="return `scores` for that many labels")
    ] = None

    @property
    def texts(self) -> list[str]:
        """The texts, whether one or several came."""
        return [self.input] if isinstance(self.input, str) else self.input


class Classification(BaseModel):
    """The answer to one text; `probs` is whole and in label order, `scores` highest first."""

    index: int
    label: str
    score: float
    probs: list[float]
    num_classes: int
    scores: dict[str, float] | None = None


class Usage(BaseModel):
    """Tokens read, truncation applied, padding not counted."""

    prompt_tokens: int
    total_tokens: int


class ClassifyResponse(BaseModel):
    """Body of the answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class ErrorDetail(BaseModel):
    """What went wrong; never a part of the request."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class UnacceptableRequestError(Exception):
    """Well-formed JSON that cannot be classified; `param` names the field and index."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def parse_request(content: Any) -> ClassifyRequest:
    """A decoded JSON body as a request.

    Raises:
        UnacceptableRequestError: a field is missing, of the wrong type or beyond a limit.
    """
    if not isinstance(content, dict):
        raise UnacceptableRequestError("the body must be a JSON object", None)
    if "input" not in content:
        raise UnacceptableRequestError("input is missing: send a text or a list of texts", "input")
    _check_input(content["input"])
    try:
        return ClassifyRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = str(first["loc"][0])
        raise UnacceptableRequestError(f"{field}: {first['msg']}", field) from None


def _check_input(value: Any) -> None:
    """Refuse what is not one text or a list of texts, naming the place."""
    if isinstance(value, str):
        _check_text(value, "input")
        return
    if not isinstance(value, list):
        raise UnacceptableRequestError("input must be a text or a list of texts", "input")
    if not value:
        raise UnacceptableRequestError("input is an empty list: send at least one text", "input")
    if len(value) > MAX_TEXTS:
        raise UnacceptableRequestError(
            f"input has {len(value)} texts, the limit is {MAX_TEXTS}: send several requests",
            "input",
        )
    for index, text in enumerate(value):
        _check_text(text, f"input[{index}]")


def _check_text(text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise UnacceptableRequestError(f"{place} is not a string", place)
    if not text.strip():
        raise UnacceptableRequestError(f"{place} is empty", place)
    if len(text) > MAX_CHARACTERS:
        raise UnacceptableRequestError(
            f"{place} has {len(text)} characters, the limit is {MAX_CHARACTERS}", place
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnacceptableRequestError(f"{place} holds a lone surrogate", place) from None
