"""The types of requests and answers over HTTP.

`/classify` has the schema of vLLM and SGLang. `text_pair`, `top_k`, `return_logits` and `truncate`
are added to the request; `score`, `labels`, `abstained`, `truncated`, `windows`, `scores` and
`logits` are added to the answer. `/predict` has the schema of text-embeddings-inference, with the
`parameters` that Hugging Face's clients send.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.package.manifest import Text

# `/predict` answers with this status where other routes answer 500: a fault of server or model.
PREDICT_FAULT = 424


def whole_number(value: object) -> object:
    """Make an integer of a JSON number such as 3.0, which Python reads as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ClassifyRequest(BaseModel):
    """Body of `POST /classify`.

    Unknown fields are ignored, as in vLLM and SGLang. Two kinds of them are refused: a field that
    looks like a misspelled one, and a field that changes the answer of those servers.
    """

    model_config = ConfigDict(strict=True)

    model: Annotated[str | None, Field(description="accepted, not checked")] = None
    input: Annotated[
        str | list[str],
        Field(description="a text, or a list of texts", union_mode="left_to_right"),
    ]
    text_pair: Annotated[
        str | list[str] | None,
        Field(description="the second text of each pair, for a model that reads pairs"),
    ] = None
    top_k: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(whole_number),
        Field(description="return `scores` for that many labels"),
    ] = None
    return_logits: Annotated[bool, Field(description="return `logits`, in label order")] = False
    truncate: Annotated[
        bool, Field(description="false: refuse a text that is too long, instead of truncating it")
    ] = True
    use_activation: Annotated[
        bool | None, Field(description="false: `probs` holds logits instead of probabilities")
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Field(ge=-1)] | None,
        BeforeValidator(whole_number),
        Field(description="tokens to read of each text, special tokens included; -1: the maximum"),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None,
        Field(description="the side on which a text that is too long is cut"),
    ] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="false: read the texts without the model's special tokens")
    ] = None
    request_id: Annotated[
        str | None, Field(description="the request's id, where no X-Request-Id gives one")
    ] = None
    rid: Annotated[
        str | None,
        # SGLang also takes a list of ids, one for each text; here a request has one id.
        BeforeValidator(lambda value: value if isinstance(value, str) else None),
        Field(description="the same under the name that SGLang uses"),
    ] = None

    @property
    def texts(self) -> list[Text]:
        """The texts or pairs, as a list."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if self.text_pair is None:
            return list(texts)
        pairs = [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair
        return list(zip(texts, pairs, strict=True))


class Classification(BaseModel):
    """The answer to one text.

    `probs` holds all probabilities in label order; `scores` holds some of them, highest first.
    `labels` are the labels that reach their thresholds, for a multi-label model. `abstained` says
    that the score is below the abstain threshold, for a model that has one. `windows` is the
    number of windows, for a model that reads long texts by windows. `truncated` says that the rest
    of the text was not read.
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
    """The tokens that the model read, without padding."""

    prompt_tokens: int
    total_tokens: int


class ClassifyResponse(BaseModel):
    """Body of the answer to `POST /classify`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class ErrorDetail(BaseModel):
    """What went wrong. It never repeats a part of the request."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    """Body of every refusal, except those of `/predict` and `POST /`."""

    error: ErrorDetail


class PredictParameters(BaseModel):
    """The parameters that Hugging Face's clients send; others are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(whole_number),
        Field(description="the number of labels in the answer"),
    ] = None
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        Field(description="makes scores of logits; the model's own function by default"),
    ] = None
    truncation: Annotated[
        Literal[True] | None, Field(description="long texts are always truncated")
    ] = None


class PredictRequest(BaseModel):
    """Body of `POST /predict`.

    `inputs` is a text, a pair, or a list of pairs or one-text lists. A list is answered with a list
    of answers, a text or a pair with one answer.
    """

    model_config = ConfigDict(strict=True)

    inputs: str | list[str] | list[list[str]]
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] = "Right"
    raw_scores: bool = False
    parameters: PredictParameters | None = None

    @property
    def top_k(self) -> int | None:
        """The number of labels in the answer; all when None."""
        return self.parameters.top_k if self.parameters else None

    @property
    def function(self) -> str | None:
        """The function that makes scores of logits; the model's own when None.

        `function_to_apply` counts before `raw_scores`.
        """
        named = self.parameters.function_to_apply if self.parameters else None
        return named or ("none" if self.raw_scores else None)


class PredictError(BaseModel):
    """Body of every refusal of `/predict` and `POST /`."""

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
    """Body of the answer to `GET /v1/models`, which lists the only model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LabelScore(BaseModel):
    """A label in the answer to `/predict`."""

    label: str
    score: float
