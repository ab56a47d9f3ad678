"""The texts of a request → its answers: tokenized, computed in batches with others, decided.

`Answering` knows the event loop, the caller and the deadline; the classifier and the engine know
none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import numpy as np

from service.http.encoding import EncodedRequest, RequestEncoder
from service.http.errors import RequestError, deadline_passed
from service.http.limits import Limits
from service.http.request import Request
from service.http.waiting import Waiter
from service.inference.classifier import Classifier, Prediction, RowAnswer
from service.inference.decisions import FloatArray, aggregate_windows
from service.inference.engine import Engine
from service.inference.jobs import Failed, Job, Outcome
from service.inference.tokenizing import AS_PACKAGED, EncodedText, TokenizationOptions
from service.package.manifest import Aggregation, Text


class Question(NamedTuple):
    """The texts of a request, and how they are to be read.

    `field` is the name of the texts in the body, for refusals. Without `truncate`, a text that is
    too long is refused. With `background`, the model reads them while nothing else waits.
    """

    texts: list[Text]
    field: str
    truncate: bool = True
    options: TokenizationOptions = AS_PACKAGED
    background: bool = False


class Answers(NamedTuple):
    """One prediction for each text, in order.

    `rows` are those of all windows.
    """

    predictions: list[Prediction]
    rows: list[RowAnswer]
    encoded: list[EncodedText]
    aggregation: Aggregation | None

    def logits(self) -> FloatArray:
        """Logits of texts, of shape (texts, labels); windows are aggregated like probabilities."""
        logits = np.array([row.logits for row in self.rows])
        windows = [len(text.windows) for text in self.encoded]
        return aggregate_windows(logits, windows, "multi_label", self.aggregation)


class Answering:
    """Answers requests by one classifier and one engine, in an event loop.

    Args:
        limits: how many windows a request may have.
    """

    def __init__(self, classifier: Classifier, engine: Engine, limits: Limits) -> None:
        self._classifier = classifier
        self._engine = engine
        self._limits = limits
        self._waiter = Waiter(engine)
        self._encoder = RequestEncoder(classifier, engine, self._waiter)

    async def answer(self, request: Request, question: Question) -> Answers:
        """The answers; the request gets its counts and timing.

        Raises:
            RequestError: refused, too late, or failed.
            ClientGoneError: the caller left.
        """
        if request.seconds_left <= 0:
            raise deadline_passed()
        began = monotonic()
        encoded = await self._encoder.encode(request, question.texts, question.options)
        request.timing["tokenize"] = monotonic() - began
        self._check(question, encoded.texts)
        rows = await self.infer(request, encoded, background=question.background)
        predictions = self._classifier.row_predictions(encoded.texts, rows)
        request.texts = len(predictions)
        request.tokens = sum(prediction.tokens for prediction in predictions)
        aggregation = self._classifier.manifest.window_aggregation
        return Answers(predictions, rows, encoded.texts, aggregation)

    def _check(self, question: Question, encoded: list[EncodedText]) -> None:
        """Refuse texts that have no tokens, or more than the request or the operator allows."""
        for index, text in enumerate(encoded):
            if not len(text.windows[0]):
                place = f"{question.field}[{index}]"
                raise RequestError(
                    422, f"{place} has no tokens, such as a text of control characters", place
                )
            if text.truncated and not question.truncate:
                raise self._too_long(question, index)
        windows = sum(len(text.windows) for text in encoded)
        if windows > max(self._limits.max_windows, len(encoded)):
            raise RequestError(
                422,
                f"{question.field} needs {windows} windows of "
                f"{self._classifier.manifest.max_length} tokens, the limit is "
                f"{self._limits.max_windows}: send less text in one request",
                question.field,
            )

    def _too_long(self, question: Question, index: int) -> RequestError:
        limit = question.options.max_length or self._classifier.manifest.max_length
        place = f"{question.field}[{index}]"
        return RequestError(
            422,
            f"{place} has more than {limit} tokens: shorten it, or leave truncate out",
            place,
        )

    async def infer(
        self, request: Request, encoded: EncodedRequest, *, background: bool = False
    ) -> list[RowAnswer]:
        """The answers of all windows; the request gets its timing.

        Raises:
            RequestError: refused, too late, or failed.
            ClientGoneError: the caller left.
        """

        def begin(on_done: Callable[[Outcome[list[RowAnswer]]], object]) -> Job[list[RowAnswer]]:
            return self._engine.submit(
                encoded.texts,
                on_done,
                seconds=request.seconds_to_compute,
                since=encoded.since,
                background=background,
            )

        job, outcome = await self._waiter.wait(request, begin)
        if isinstance(outcome, Failed):
            raise RequestError(500, "inference failed: see the server's log")
        self._engine.confirm(job)
        request.timing["queue"] = outcome.queued
        request.timing["inference"] = outcome.running
        return outcome.result
