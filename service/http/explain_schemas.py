"""The types of requests and answers of `POST /explain`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from service.http.schemas import ClassifyRequest, Usage, whole_number


class ExplainRequest(ClassifyRequest):
    """Body of `POST /explain`: that of `/classify`, the label to explain, and how much is tried.

    `top_k`, `return_logits` and `use_activation` change nothing here.
    """

    label: Annotated[
        str | None,
        Field(
            description="the label to explain; by default the answered one, and the most "
            "probable one where none is answered"
        ),
    ] = None
    max_words: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(whole_number),
        Field(description="weigh so many words of each text at most"),
    ] = None


class ExplainedPart(BaseModel):
    """A word or a sentence of a text."""

    field: Annotated[Literal["input", "text_pair"], Field(description="the text that it is in")]
    start: Annotated[int, Field(description="its first character, in Unicode code points")]
    end: Annotated[int, Field(description="the place after its last character")]
    contribution: Annotated[
        float,
        Field(
            description="how much it changes the log-odds of the label; above 0 it speaks for the "
            "label"
        ),
    ]


class ExplainedWord(ExplainedPart):
    """A word."""

    word: Annotated[str, Field(description="its text")]


class ExplainCounterfactual(BaseModel):
    """Words without which the label changes, and the answer to the text without them."""

    words: Annotated[list[int], Field(description="their places in the list of all words")]
    label: Annotated[str, Field(description="the answer with a space in place of each word")]
    labels: Annotated[
        list[str] | None, Field(description="several labels a row: those that are answered")
    ] = None
    score: Annotated[float, Field(description="the probability of that label")]


class ExplainedText(BaseModel):
    """Why a text has a label, or has not."""

    index: Annotated[int, Field(description="position of the text in `input`")]
    label: Annotated[str, Field(description="the label that is explained")]
    given: Annotated[bool, Field(description="whether it is answered")]
    score: Annotated[float, Field(description="its probability")]
    log_odds: Annotated[float, Field(description="its calibrated log-odds")]
    words: Annotated[
        list[ExplainedWord],
        Field(
            description="the words that the model reads; of a long text, those of the sentences "
            "that matter"
        ),
    ]
    sentences: Annotated[
        list[ExplainedPart] | None,
        Field(description="the sentences of a text that has more words than are weighed"),
    ] = None
    counterfactual: Annotated[
        ExplainCounterfactual | None,
        Field(description="few words without which the label changes; null where none were found"),
    ]
    truncated: Annotated[bool | None, Field(description="a part of the text was not read")] = None


class ExplainUsage(Usage):
    """The tokens of the texts, and the windows that the model read for their explanations."""

    windows: int


class ExplainResponse(BaseModel):
    """Body of the answer to `POST /explain`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ExplainedText]
    usage: ExplainUsage
