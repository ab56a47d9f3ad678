"""Request and response types of the HTTP interface; every limit on a request lives here.

`/classify` has the schema that vLLM and SGLang serve, with `text_pair` and `top_k` added to the
request, and `score`, `labels`, `abstained`, `truncated`, `windows` and `scores` to the response.
`/predict` has the schema of text-embeddings-inference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.model_package import Text

MAX_BODY_BYTES = 1 << 20
MAX_TEXTS = 256
MAX_CHARACTERS = 100_000
# Where long texts are read by windows: of all texts of a request together.
MAX_WINDOWS = 512


class ClassifyRequest(BaseModel):
    """Body of `POST /classify`. Unknown fields are ignored, as the servers it follows do."""

    model_config = ConfigDict(strict=True)

    model: Annotated[str | None, Field(description="accepted, not checked")] = None
    input: Annotated[
        str | list[str],
        Field(description=f"a text, or 1 to {MAX_TEXTS} texts", union_mode="left_to_right"),
    ]
    text_pair: Annotated[
        str | list[str] | None,
        Field(description="the second text of each input, for a model that reads pairs"),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=1, description="return `scores` for that many labels")
    ] = None

    @property
    def texts(self) -> list[Text]:
        """The texts or pairs, whether one or several came."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if self.text_pair is None:
            return list(texts)
        pairs = [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair
        return list(zip(texts, pairs, strict=True))


class Classification(BaseModel):
    """The answer to one text; `probs` is whole and in label order, `scores` highest first.

    `labels` are those past their thresholds, of a multi-label model; `abstained` says that the
    score is below the model's abstain threshold, where it has one; `windows` is how many windows
    a model read that reads long texts so, `truncated` whether another one left the end out.
    """

    index: int
    label: str
    score: float
    labels: list[str] | None = None
    abstained: bool | None = None
    truncated: bool | None = None
    windows: int | None = None
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


class PredictRequest(BaseModel):
    """Body of `POST /predict`; `inputs` is a text, a pair, or a list of one-text lists and pairs.

    The last is answered with a list of answers, the others with one.
    """

    model_config = ConfigDict(strict=True)

    inputs: str | list[str] | list[list[str]]
    truncate: bool = True
    truncation_direction: Literal["Right", "right"] = "Right"
    raw_scores: bool = False


class LabelScore(BaseModel):
    """One label of the answer to `/predict`."""

    label: str
    score: float


class UnacceptableRequestError(Exception):
    """Well-formed JSON that cannot be classified; `param` names the field and index."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def parse_request(content: Any, *, has_pairs: bool) -> ClassifyRequest:
    """A decoded JSON body as a request to a model that reads texts, or pairs.

    Raises:
        UnacceptableRequestError: a field is missing, of the wrong type or beyond a limit.
    """
    if not isinstance(content, dict):
        raise UnacceptableRequestError("the body must be a JSON object", None)
    if "input" not in content:
        raise UnacceptableRequestError("input is missing: send a text or a list of texts", "input")
    _check_texts(content["input"], "input")
    pair = content.get("text_pair")
    if has_pairs:
        _check_pairs(content["input"], pair)
    elif pair is not None:
        raise UnacceptableRequestError(
            "this model reads single texts: leave text_pair out", "text_pair"
        )
    try:
        return ClassifyRequest.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None


def parse_predict_request(content: Any, *, has_pairs: bool) -> tuple[PredictRequest, list[Text]]:
    """A decoded JSON body as a request, and the texts or pairs it asks about.

    Raises:
        UnacceptableRequestError: a field is missing, of the wrong type or beyond a limit.
    """
    if not isinstance(content, dict) or "inputs" not in content:
        raise UnacceptableRequestError("inputs is missing: send a text, a pair or a list", "inputs")
    try:
        parsed = PredictRequest.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None
    inputs: Any = parsed.inputs
    batch = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
    items = inputs if batch else [[inputs] if isinstance(inputs, str) else inputs]
    if len(items) > MAX_TEXTS:
        raise UnacceptableRequestError(
            f"inputs has {len(items)} texts, the limit is {MAX_TEXTS}: send several requests",
            "inputs",
        )
    wanted = 2 if has_pairs else 1
    texts: list[Text] = []
    for index, item in enumerate(items):
        place = f"inputs[{index}]" if batch else "inputs"
        if len(item) != wanted:
            raise UnacceptableRequestError(
                f"{place} holds {len(item)} texts, this model reads {wanted}: a pair is "
                '["a", "b"], several texts are [["a"], ["b"]]',
                place,
            )
        for text in item:
            _check_text(text, place)
        texts.append((item[0], item[1]) if has_pairs else item[0])
    return parsed, texts


def _first_problem(error: ValidationError) -> UnacceptableRequestError:
    first = error.errors(include_input=False, include_url=False)[0]
    field = str(first["loc"][0])
    return UnacceptableRequestError(f"{field}: {first['msg']}", field)


def _check_pairs(texts: Any, pairs: Any) -> None:
    """Refuse what is not one second text for each first one."""
    if pairs is None:
        raise UnacceptableRequestError(
            "text_pair is missing: this model reads pairs of input and text_pair", "text_pair"
        )
    _check_texts(pairs, "text_pair")
    if isinstance(texts, str) != isinstance(pairs, str) or (
        isinstance(texts, list) and len(texts) != len(pairs)
    ):
        raise UnacceptableRequestError(
            "text_pair must be a text where input is one, or a list as long as input", "text_pair"
        )


def _check_texts(value: Any, field: str) -> None:
    """Refuse what is not one text or a list of texts, naming the place."""
    if isinstance(value, str):
        _check_text(value, field)
        return
    if not isinstance(value, list):
        raise UnacceptableRequestError(f"{field} must be a text or a list of texts", field)
    if not value:
        raise UnacceptableRequestError(f"{field} is an empty list: send at least one text", field)
    if len(value) > MAX_TEXTS:
        raise UnacceptableRequestError(
            f"{field} has {len(value)} texts, the limit is {MAX_TEXTS}: send several requests",
            field,
        )
    for index, text in enumerate(value):
        _check_text(text, f"{field}[{index}]")


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
