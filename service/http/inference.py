"""A decoded body → a question → its answer, counted; with one classifier and one engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel

from service.capture.capture import Capture
from service.http.answering import Answering, Answers, Question
from service.http.answers import classify_content, rank
from service.http.errors import RequestError, UnacceptableRequestError
from service.http.feedback import parse_feedback
from service.http.fields import HARMLESS, PREDICT_HARMLESS, ignored_fields
from service.http.limits import Limits
from service.http.parsing import parse_predict_request, parse_request
from service.http.request import Request
from service.http.schemas import ClassifyRequest, PredictRequest
from service.inference.classifier import Classifier
from service.inference.decisions import FloatArray, probabilities
from service.inference.engine import Engine
from service.inference.tokenizing import AS_PACKAGED, TokenizationOptions
from service.metrics.recorder import Metrics
from service.package.manifest import Task, Text

Parsed = TypeVar("Parsed")

# The function that makes probabilities of a model's logits, by its task.
OWN_FUNCTIONS: dict[Task, str] = {"single_label": "softmax", "multi_label": "sigmoid"}


class Inference:
    """Answers decoded bodies; it exists once a model is loaded.

    Args:
        limits: the limits on a request.
        metrics: counts every answer.
        capture: keeps answers and feedback, by switch.
    """

    def __init__(
        self,
        classifier: Classifier,
        engine: Engine,
        limits: Limits,
        metrics: Metrics | None,
        capture: Capture | None = None,
    ) -> None:
        self.manifest = classifier.manifest
        self._classifier = classifier
        self._answering = Answering(classifier, engine, limits)
        self._limits = limits
        self._metrics = metrics
        self._capture = capture

    def parse_classify(self, content: Any) -> ClassifyRequest:
        """The decoded body of `/classify`.

        Raises:
            UnacceptableRequestError: it cannot be classified.
        """
        return self._parse(parse_request, ClassifyRequest, HARMLESS, content)

    def parse_predict(self, content: Any) -> tuple[PredictRequest, list[Text]]:
        """The decoded body of `/predict`, and its texts.

        Raises:
            UnacceptableRequestError: it cannot be classified.
        """
        return self._parse(parse_predict_request, PredictRequest, PREDICT_HARMLESS, content)

    def parse_hub(self, content: Any) -> tuple[PredictRequest, list[Text]]:
        """The decoded body of `POST /`, and its texts.

        Raises:
            UnacceptableRequestError: it cannot be classified.
        """
        return self.parse_predict(_as_batch(content, has_pairs=self.manifest.has_pairs))

    async def classify(self, request: Request, parsed: ClassifyRequest) -> dict[str, Any]:
        """The content of a `ClassifyResponse`."""
        request.take_id(parsed.request_id, parsed.rid)
        options = tokenization_options(parsed, self._classifier)
        question = Question(parsed.texts, "input", truncate=parsed.truncate, options=options)
        answers = await self._answer(request, question)
        return classify_content(request, parsed, answers, self.manifest)

    async def label_scores(
        self, request: Request, parsed: PredictRequest, texts: list[Text]
    ) -> list[list[dict[str, Any]]]:
        """For each text, its labels and their scores."""
        keep_end = parsed.truncation_direction.lower() == "left"
        question = Question(
            texts,
            "inputs",
            truncate=parsed.truncate is not False,
            options=TokenizationOptions(keep_end=True) if keep_end else AS_PACKAGED,
        )
        answers = await self._answer(request, question)
        scores = _scores(answers, parsed.function, self.manifest.task)
        return [rank(self.manifest.labels, row)[: parsed.top_k] for row in scores]

    def keep_feedback(self, content: Any) -> None:
        """Keep the decoded body of `/feedback`.

        Raises:
            RequestError: nothing is captured here.
            UnacceptableRequestError: it is no feedback on an answer of this model.
        """
        if self._capture is None:
            raise RequestError(404, "feedback is not taken here: WHETSTONE_CAPTURE is not set")
        feedback = parse_feedback(content, self.manifest, self._limits)
        note = feedback.note
        if note is not None and not self._capture.rules.text:
            raise UnacceptableRequestError(
                "notes are not kept here: leave note out, or set WHETSTONE_CAPTURE_TEXT=1", "note"
            )
        self._capture.keep_feedback(
            feedback.id, feedback.index, feedback.known, note, feedback.version
        )

    def _parse(
        self,
        parse: Callable[..., Parsed],
        model: type[BaseModel],
        harmless: frozenset[str],
        content: Any,
    ) -> Parsed:
        """Parse a decoded body, and count its fields that `model` does not have."""
        ignored = ignored_fields(content, model, harmless)
        parsed = parse(content, self._limits, has_pairs=self.manifest.has_pairs)
        if ignored and self._metrics is not None:
            self._metrics.ignored(ignored)
        return parsed

    async def _answer(self, request: Request, question: Question) -> Answers:
        """The answers, counted."""
        answers = await self._answering.answer(request, question)
        if self._metrics is not None:
            self._metrics.answered(answers.predictions, request.timing)
        if self._capture is not None:
            self._capture.keep(
                request.id, request.headers, question.texts, answers.encoded, answers.predictions
            )
        return answers


def _scores(answers: Answers, function: str | None, task: Task) -> Iterable[FloatArray]:
    """Scores of each text, by the function that the request asks for."""
    if function in (None, OWN_FUNCTIONS[task]):
        return [answer.probs for answer in answers.predictions]
    if function == "none":
        return answers.logits()
    other: Task = "single_label" if function == "softmax" else "multi_label"
    return probabilities(answers.logits(), other)


def _as_batch(content: Any, *, has_pairs: bool) -> Any:
    """The body of `POST /` as one of `/predict`; without pairs, a list holds several texts."""
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if isinstance(inputs, list) and not has_pairs:
        content["inputs"] = [[text] if isinstance(text, str) else text for text in inputs]
    return content


def tokenization_options(parsed: ClassifyRequest, classifier: Classifier) -> TokenizationOptions:
    """How the texts of a request are to be read.

    Raises:
        UnacceptableRequestError: it asks for more or fewer tokens than the model can read.
    """
    tokens, side = parsed.truncate_prompt_tokens, parsed.truncation_side
    if (tokens, side, parsed.add_special_tokens) == (None, None, None):
        return AS_PACKAGED
    longest = classifier.manifest.max_length
    special = parsed.add_special_tokens is not False
    least = 1 + classifier.encoder.special_tokens if special else 1
    if tokens == -1:
        tokens = longest
    if tokens is not None and not least <= tokens <= longest:
        raise UnacceptableRequestError(
            f"truncate_prompt_tokens must be from {least} to {longest} here, or -1: "
            f"the model reads no more than {longest} tokens, special ones included",
            "truncate_prompt_tokens",
        )
    if tokens == longest and classifier.manifest.long_text != "window":
        # The package reads as many anyway.
        tokens = None
    return TokenizationOptions(None if side is None else side == "left", tokens, special)
