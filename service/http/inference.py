"""A decoded body → what is asked → its answer, counted; by one classifier through one engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel

from service.answering import Answering, Answers, Asked
from service.asgi import Request, RequestError
from service.classifier import Classifier
from service.decisions import FloatArray, probabilities
from service.http.answers import classify_content, rank
from service.inference.engine import Engine
from service.inference.tokenizing import AS_PACKAGED, TokenizationOptions
from service.metrics import Metrics
from service.model_package import Task, Text
from service.schemas import (
    HARMLESS,
    PREDICT_HARMLESS,
    ClassifyRequest,
    PredictRequest,
    UnacceptableRequestError,
    ignored_fields,
    parse_predict_request,
    parse_request,
)
from service.settings import Settings

Parsed = TypeVar("Parsed")

# What makes probabilities of a model's logits, by its task.
OWN_FUNCTIONS: dict[Task, str] = {"single_label": "softmax", "multi_label": "sigmoid"}


class Inference:
    """What there is once a model is loaded.

    Args:
        settings: limits of a request.
        metrics: what is told of every answer.
    """

    def __init__(
        self, classifier: Classifier, engine: Engine, settings: Settings, metrics: Metrics | None
    ) -> None:
        self.classifier = classifier
        self.engine = engine
        self._answering = Answering(classifier, engine, settings)
        self._settings = settings
        self._metrics = metrics

    def parse_classify(self, content: Any) -> ClassifyRequest:
        """A decoded body of `/classify`.

        Raises:
            RequestError: it is not acceptable.
        """
        return self._parse(parse_request, ClassifyRequest, HARMLESS, content)

    def parse_predict(self, content: Any) -> tuple[PredictRequest, list[Text]]:
        """The same of `/predict`, and its texts."""
        return self._parse(parse_predict_request, PredictRequest, PREDICT_HARMLESS, content)

    def parse_hub(self, content: Any) -> tuple[PredictRequest, list[Text]]:
        """The same of `POST /`."""
        has_pairs = self.classifier.manifest.has_pairs
        return self.parse_predict(_as_several(content, has_pairs=has_pairs))

    async def classify(self, request: Request, parsed: ClassifyRequest) -> dict[str, Any]:
        """The content of a `ClassifyResponse`."""
        classifier = self.classifier
        request.name(parsed.request_id, parsed.rid)
        options = tokenization_options(parsed, classifier)
        asked = Asked(parsed.texts, "input", truncate=parsed.truncate, options=options)
        answers = await self._answer(request, asked)
        return classify_content(request, parsed, answers, classifier)

    async def label_scores(
        self, request: Request, parsed: PredictRequest, texts: list[Text]
    ) -> list[list[dict[str, Any]]]:
        """For each text its labels and their scores."""
        manifest = self.classifier.manifest
        left = parsed.truncation_direction.lower() == "left"
        asked = Asked(
            texts,
            "inputs",
            truncate=parsed.truncate is not False,
            options=TokenizationOptions(keep_end=True) if left else AS_PACKAGED,
        )
        answers = await self._answer(request, asked)
        function = parsed.function
        if function in (None, OWN_FUNCTIONS[manifest.task]):
            scores: Iterable[FloatArray] = (answer.probs for answer in answers.predictions)
        elif function == "none":
            scores = answers.logits()
        else:
            other: Task = "single_label" if function == "softmax" else "multi_label"
            scores = probabilities(answers.logits(), other)
        return [rank(manifest.labels, row)[: parsed.top_k] for row in scores]

    def _parse(
        self,
        parse: Callable[..., Parsed],
        model: type[BaseModel],
        harmless: frozenset[str],
        content: Any,
    ) -> Parsed:
        """A decoded body as one of `service.schemas` parses it, whose fields `model` has.

        Raises:
            RequestError: it is not acceptable.
        """
        try:
            ignored = ignored_fields(content, model, harmless)
            parsed = parse(content, self._settings, has_pairs=self.classifier.manifest.has_pairs)
        except UnacceptableRequestError as error:
            raise RequestError(422, error.message, error.param) from error
        if ignored and self._metrics is not None:
            self._metrics.ignored(ignored)
        return parsed

    async def _answer(self, request: Request, asked: Asked) -> Answers:
        """Answers, counted."""
        answers = await self._answering.answer(request, asked)
        if self._metrics is not None:
            self._metrics.answered(answers.predictions, request.timing)
        return answers


def _as_several(content: Any, *, has_pairs: bool) -> Any:
    """The decoded body of `POST /`: where no pairs are read, a list of texts is several of them."""
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if isinstance(inputs, list) and not has_pairs:
        content["inputs"] = [[text] if isinstance(text, str) else text for text in inputs]
    return content


def tokenization_options(parsed: ClassifyRequest, classifier: Classifier) -> TokenizationOptions:
    """How the texts of a request are to be read.

    Raises:
        RequestError: more or fewer tokens are asked for than the model can read.
    """
    asked = parsed.truncate_prompt_tokens
    given = (asked, parsed.truncation_side, parsed.add_special_tokens)
    if given == (None, None, None):
        return AS_PACKAGED
    longest = classifier.manifest.max_length
    special = parsed.add_special_tokens is not False
    least = 1 + classifier.encoder.special_tokens if special else 1
    if asked == -1:
        asked = longest
    if asked is not None and not least <= asked <= longest:
        raise RequestError(
            422,
            f"truncate_prompt_tokens must be from {least} to {longest} here, or -1: "
            f"the model reads no more than {longest} tokens, special ones included",
            "truncate_prompt_tokens",
        )
    side = parsed.truncation_side
    if asked == longest and classifier.manifest.long_text != "window":
        # That is what it reads anyway.
        asked = None
    return TokenizationOptions(None if side is None else side == "left", asked, special)
