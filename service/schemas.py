"""Request and response types of the HTTP interface; every limit on a request lives here.

`/classify` has the schema that vLLM and SGLang serve, with `text_pair`, `top_k`, `return_logits`
and `truncate` added to the request, and `score`, `labels`, `abstained`, `truncated`, `windows`,
`scores` and `logits` to the response. `/predict` has that of text-embeddings-inference, with the
`parameters` that Hugging Face's clients send.
"""

from __future__ import annotations

import difflib
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.model_package import Text

# What is 500 elsewhere, a fault of the service or of the model, has this status at `/predict`.
PREDICT_FAULT = 424


class Limits(BaseModel):
    """What one request may ask for; the operator may change each by a setting of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(1 << 20, ge=1, description="bytes of a request's body")
    max_texts: int = Field(256, ge=1, description="texts of a request")
    max_characters: int = Field(100_000, ge=1, description="characters of a text")
    max_windows: int = Field(
        512, ge=1, description="windows of a request, where a model reads long texts by windows"
    )
    timeout_ms: int = Field(
        10_000, ge=1, description="milliseconds from a request's arrival to its deadline"
    )
    body_timeout_ms: int = Field(
        10_000, ge=1, description="milliseconds in which a request's body must have come"
    )


def _whole(value: object) -> object:
    """A JSON number such as 3.0 is a whole one; Python's reader makes a float of it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ClassifyRequest(BaseModel):
    """Body of `POST /classify`. Unknown fields are ignored, as the servers it follows do.

    One that looks like a misspelt field is refused, though, and so is one that is known to change
    the answer elsewhere.
    """

    model_config = ConfigDict(strict=True)

    model: Annotated[str | None, Field(description="accepted, not checked")] = None
    input: Annotated[
        str | list[str],
        Field(description="a text, or a list of texts", union_mode="left_to_right"),
    ]
    text_pair: Annotated[
        str | list[str] | None,
        Field(description="the second text of each input, for a model that reads pairs"),
    ] = None
    top_k: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(_whole),
        Field(description="return `scores` for that many labels"),
    ] = None
    return_logits: Annotated[bool, Field(description="return `logits`, in label order")] = False
    truncate: Annotated[
        bool, Field(description="read the beginning of a text that is too long; else refuse it")
    ] = True
    use_activation: Annotated[
        bool | None, Field(description="false: `probs` holds logits instead of probabilities")
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Field(ge=-1)] | None,
        BeforeValidator(_whole),
        Field(description="read that many tokens of each text, special ones too; -1: the most"),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, Field(description="where a text that is too long is cut")
    ] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="false: read the texts without the model's special tokens")
    ] = None
    request_id: Annotated[
        str | None, Field(description="names the request, where no X-Request-Id does")
    ] = None
    rid: Annotated[
        str | None,
        # A list of them names what is no request here.
        BeforeValidator(lambda given: given if isinstance(given, str) else None),
        Field(description="the same, as SGLang has it"),
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
    logits: list[float] | None = None


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


class PredictParameters(BaseModel):
    """What Hugging Face's clients ask for beside the text; nothing else is taken."""

    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(_whole),
        Field(description="answer that many labels"),
    ] = None
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        Field(description="what makes scores of logits; by default what the model was made with"),
    ] = None
    truncation: Annotated[
        Literal[True] | None, Field(description="long texts are cut off anyway")
    ] = None


class PredictRequest(BaseModel):
    """Body of `POST /predict`; `inputs` is a text, a pair, or a list of one-text lists and pairs.

    The last is answered with a list of answers, the others with one.
    """

    model_config = ConfigDict(strict=True)

    inputs: str | list[str] | list[list[str]]
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] = "Right"
    raw_scores: bool = False
    parameters: PredictParameters | None = None

    @property
    def top_k(self) -> int | None:
        """How many labels are asked for; all when None."""
        return self.parameters.top_k if self.parameters else None

    @property
    def function(self) -> str | None:
        """What is to make scores of logits; the model's own function when None.

        Of the two ways to ask for it, the one that names it counts.
        """
        named = self.parameters.function_to_apply if self.parameters else None
        return named or ("none" if self.raw_scores else None)


class PredictError(BaseModel):
    """Body of every answer of `/predict` that is not a success."""

    error: str
    error_type: Literal[
        "Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty", "Unauthorized"
    ]


class ModelCard(BaseModel):
    """One model of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["whetstone"] = "whetstone"
    version: str
    max_model_len: int


class ModelList(BaseModel):
    """Body of the answer to `GET /v1/models`: the one model that is served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


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


class EmptyTextError(UnacceptableRequestError):
    """A text, or the list of them, is empty."""


class Refused(NamedTuple):
    """A field that other servers read and this one does not: what it may be, and what to do."""

    harmless: tuple[Any, ...]
    advice: str


# By field, of requests to /classify: here it would change the answer, and silence would deceive.
UNSUPPORTED = {
    "messages": Refused((None,), "send the text as input"),
    "activation": Refused((None, True), "send use_activation: false for logits"),
    "softmax": Refused((None, True), "send use_activation: false for logits"),
    "normalize": Refused((None, True), "send use_activation: false for logits"),
    "raw_scores": Refused((None, False), "send use_activation: false for logits"),
    "truncation_direction": Refused((None, "Right", "right"), "send truncation_side"),
    "padding": Refused((None, "do_not_pad"), "leave it out, a text is read without padding"),
    "mm_processor_kwargs": Refused((None, {}), "leave it out, this model reads text only"),
}
# What vLLM and SGLang take and what makes no difference here: not even counted as ignored.
HARMLESS = frozenset({"user", "priority", "cache_salt", *UNSUPPORTED})
# The same at /predict.
PREDICT_HARMLESS = frozenset({"model", "options"})
# Fields and parameters of the other tasks that Hugging Face's clients know.
OTHER_TASKS = frozenset(
    {
        "candidate_labels",
        "hypothesis_template",
        "multi_label",
        "question",
        "context",
        "source_sentence",
        "sentences",
        "query",
        "table",
        "texts",
        "messages",
        "max_new_tokens",
        "temperature",
        "aggregation_strategy",
        "normalize",
        "prompt_name",
        "src_lang",
        "tgt_lang",
    }
)
# Not among the fields that a misspelt one may be: those without influence on the answer.
WITHOUT_INFLUENCE = frozenset({"model", "request_id", "rid"})
# So many unknown fields are looked at for their spelling: a body may hold a hundred thousand.
SPELLED_FIELDS = 16
# "topk" is top_k and "truncationSide" truncation_side, but OpenAI's top_p and "mode" are not ours.
LIKENESS = 0.85


def ignored_fields(content: Any, model: type[BaseModel], harmless: frozenset[str]) -> int:
    """How many fields of a decoded body are ignored, unread.

    Raises:
        UnacceptableRequestError: one of them looks like a misspelt field of `model`. The message
            names ours: the other one is the caller's.
    """
    if not isinstance(content, dict) or content.keys() <= _accepted_names(model, harmless):
        return 0
    unknown = content.keys() - _accepted_names(model, harmless)
    fields = [name for name in model.model_fields if name not in WITHOUT_INFLUENCE]
    # In the order of the body, not of the set.
    for name in islice((name for name in content if name in unknown), SPELLED_FIELDS):
        spelled = name[:64].lower().replace("-", "_")
        nearest = difflib.get_close_matches(spelled, fields, n=1, cutoff=LIKENESS)
        if nearest:
            raise UnacceptableRequestError(
                f"a field of the body is unknown and looks like {nearest[0]}: "
                f"call it {nearest[0]}, or leave it out",
                nearest[0],
            )
    return len(unknown)


@cache
def _accepted_names(model: type[BaseModel], harmless: frozenset[str]) -> frozenset[str]:
    return harmless | model.model_fields.keys()


def parse_request(content: Any, limits: Limits, *, has_pairs: bool) -> ClassifyRequest:
    """A decoded JSON body as a request to a model that reads texts, or pairs.

    Raises:
        UnacceptableRequestError: a field is missing, of the wrong type, beyond a limit, or asks
            for what this server does not do.
    """
    if not isinstance(content, dict):
        raise UnacceptableRequestError("the body must be a JSON object", None)
    if not UNSUPPORTED.keys().isdisjoint(content):
        _refuse_unsupported(content)
    if "input" not in content:
        raise UnacceptableRequestError("input is missing: send a text or a list of texts", "input")
    _check_texts(content["input"], "input", limits)
    pair = content.get("text_pair")
    if has_pairs:
        _check_pairs(content["input"], pair, limits)
    elif pair is not None:
        raise UnacceptableRequestError(
            "this model reads single texts: leave text_pair out", "text_pair"
        )
    try:
        return ClassifyRequest.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None


def _refuse_unsupported(content: dict[str, Any]) -> None:
    """Refuse a field that would change the answer elsewhere."""
    for name, refused in UNSUPPORTED.items():
        if name in content and content[name] not in refused.harmless:
            raise UnacceptableRequestError(
                f"{name} is not supported as it is sent: {refused.advice}", name
            )


def parse_predict_request(
    content: Any, limits: Limits, *, has_pairs: bool
) -> tuple[PredictRequest, list[Text]]:
    """A decoded JSON body as a request, and the texts or pairs it asks about.

    Raises:
        UnacceptableRequestError: a field is missing, of the wrong type or beyond a limit.
    """
    if isinstance(content, dict):
        _refuse_other_tasks(content, "")
    if not isinstance(content, dict) or "inputs" not in content:
        raise UnacceptableRequestError("inputs is missing: send a text, a pair or a list", "inputs")
    if content["inputs"] == []:
        raise EmptyTextError("inputs is an empty list: send at least one text", "inputs")
    # Before pydantic, which writes an error for each of half a million items that are no text.
    inputs = content["inputs"]
    if isinstance(inputs, dict):
        _refuse_other_tasks(inputs, "inputs.")
    if not isinstance(inputs, str | list):
        raise UnacceptableRequestError("inputs must be a text, a pair or a list", "inputs")
    batch = isinstance(inputs, list) and isinstance(inputs[0], list)
    items = inputs if batch else [[inputs] if isinstance(inputs, str) else inputs]
    if len(items) > limits.max_texts:
        raise UnacceptableRequestError(
            f"inputs has {len(items)} texts, the limit is {limits.max_texts}: "
            "send several requests",
            "inputs",
        )
    wanted = 2 if has_pairs else 1
    texts: list[Text] = []
    for index, item in enumerate(items):
        place = f"inputs[{index}]" if batch else "inputs"
        if not isinstance(item, list):
            raise UnacceptableRequestError(f"{place} is not a list, as the first one is", place)
        if len(item) != wanted:
            raise UnacceptableRequestError(
                f"{place} holds {len(item)} texts, this model reads {wanted}: a pair is "
                '["a", "b"], several texts are [["a"], ["b"]]',
                place,
            )
        for text in item:
            _check_text(text, place, limits)
        texts.append((item[0], item[1]) if has_pairs else item[0])
    _check_parameters(content.get("parameters"))
    try:
        return PredictRequest.model_validate(content), texts
    except ValidationError as error:
        raise _first_problem(error) from None


def _refuse_other_tasks(content: dict[str, Any], place: str) -> None:
    """Refuse what asks for another task than text classification, by its name."""
    for name in sorted(OTHER_TASKS & content.keys()):
        if content[name] is not None:
            raise UnacceptableRequestError(
                f"{place}{name} belongs to another task: this server classifies texts, send them "
                "as inputs",
                f"{place}{name}",
            )


def _check_parameters(parameters: Any) -> None:
    """Refuse parameters that text classification has not; before pydantic, which would repeat them.

    One without a value is none.
    """
    if not isinstance(parameters, dict):
        return
    _refuse_other_tasks(parameters, "parameters.")
    for name in [name for name, value in parameters.items() if value is None]:
        del parameters[name]
    if parameters.keys() - PredictParameters.model_fields.keys():
        raise UnacceptableRequestError(
            "parameters holds one that this server does not have: it has top_k and "
            "function_to_apply",
            "parameters",
        )


def _first_problem(error: ValidationError) -> UnacceptableRequestError:
    first = error.errors(include_input=False, include_url=False)[0]
    # Behind the field's name stand indices, and names of the types that were tried.
    steps = first["loc"][: 2 if first["loc"][0] == "parameters" else 1]
    field = ".".join(map(str, steps))
    return UnacceptableRequestError(f"{field}: {first['msg']}", field)


def _check_pairs(texts: Any, pairs: Any, limits: Limits) -> None:
    """Refuse what is not one second text for each first one."""
    if pairs is None:
        raise UnacceptableRequestError(
            "text_pair is missing: this model reads pairs of input and text_pair", "text_pair"
        )
    _check_texts(pairs, "text_pair", limits)
    if isinstance(texts, str) != isinstance(pairs, str) or (
        isinstance(texts, list) and len(texts) != len(pairs)
    ):
        raise UnacceptableRequestError(
            "text_pair must be a text where input is one, or a list as long as input", "text_pair"
        )


def _check_texts(value: Any, field: str, limits: Limits) -> None:
    """Refuse what is not one text or a list of texts, naming the place."""
    if isinstance(value, str):
        _check_text(value, field, limits)
        return
    if not isinstance(value, list):
        raise UnacceptableRequestError(f"{field} must be a text or a list of texts", field)
    if not value:
        raise EmptyTextError(f"{field} is an empty list: send at least one text", field)
    if len(value) > limits.max_texts:
        raise UnacceptableRequestError(
            f"{field} has {len(value)} texts, the limit is {limits.max_texts}: "
            "send several requests",
            field,
        )
    for index, text in enumerate(value):
        _check_text(text, f"{field}[{index}]", limits)


def _check_text(text: Any, place: str, limits: Limits) -> None:
    if isinstance(text, int | list) and not isinstance(text, bool):
        raise UnacceptableRequestError(
            f"{place} is not a string: token ids are not read here, send the text", place
        )
    if not isinstance(text, str):
        raise UnacceptableRequestError(f"{place} is not a string", place)
    if not text.strip():
        raise EmptyTextError(f"{place} is empty", place)
    if len(text) > limits.max_characters:
        raise UnacceptableRequestError(
            f"{place} has {len(text)} characters, the limit is {limits.max_characters}", place
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnacceptableRequestError(f"{place} holds a lone surrogate", place) from None
