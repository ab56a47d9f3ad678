"""A decoded body of `/explain` → the words of each text that decide.

The model reads all texts in the background of the queue. Everything else, such as tokenizing
hundreds of variants of a text, happens in one thread of low priority, so that the event loop stays
free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import Any

import numpy as np
from pydantic import ValidationError

from service.explanation.explain import Bounds, Explanation, Judged, Steps
from service.explanation.local import judge, start
from service.explanation.words import Passage, Span
from service.http import answering
from service.http.answering import Answering, Answers
from service.http.answers import model_name
from service.http.encoding import UNREADABLE, EncodedRequest
from service.http.errors import RequestError, UnacceptableRequestError
from service.http.explain_schemas import ExplainRequest
from service.http.fields import HARMLESS, ignored_fields
from service.http.inference import tokenization_options
from service.http.parsing import check_body, first_problem
from service.http.request import Request
from service.inference.classifier import Classifier, RowAnswer
from service.inference.engine import Engine
from service.inference.errors import TokenizerError
from service.inference.threads import lower_thread_priority
from service.inference.tokenizing import EncodedText, TokenizationOptions
from service.metrics.recorder import Metrics
from service.package.manifest import Text
from service.settings import Settings

# With fewer variants of a text, nothing can be said about its words.
FEWEST_TEXTS = 4
FIELDS = ("input", "text_pair")


class Explaining:
    """Explains by one classifier and one engine, in an event loop.

    Args:
        settings: the limits of `/classify`, and those of `/explain` in addition.
        metrics: counts every explanation.
    """

    def __init__(
        self, classifier: Classifier, engine: Engine, settings: Settings, metrics: Metrics | None
    ) -> None:
        self._classifier = classifier
        self._manifest = classifier.manifest
        self._answering = Answering(classifier, engine, settings)
        self._settings = settings
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "explaining", initializer=lower_thread_priority)

    def parse(self, content: Any) -> ExplainRequest:
        """The decoded body.

        Raises:
            UnacceptableRequestError: `/classify` would refuse it, or it has too many texts, an
                unknown label or too many words.
        """
        ignored = ignored_fields(content, ExplainRequest, HARMLESS)
        check_body(content, self._settings, has_pairs=self._manifest.has_pairs)
        try:
            parsed = ExplainRequest.model_validate(content)
        except ValidationError as error:
            raise first_problem(error) from None
        self._refuse(parsed)
        if ignored and self._metrics is not None:
            self._metrics.ignored(ignored)
        return parsed

    def _refuse(self, parsed: ExplainRequest) -> None:
        most = self._settings.explain_max_texts
        if len(parsed.texts) > most:
            raise UnacceptableRequestError(
                f"input has {len(parsed.texts)} texts, the limit of explanations is {most}: "
                "send several requests",
                "input",
            )
        if parsed.label is not None and parsed.label not in self._manifest.labels:
            raise UnacceptableRequestError(
                "label names a label that this model does not have: GET /info lists them", "label"
            )
        most = self._settings.explain_max_words
        if parsed.max_words is not None and parsed.max_words > most:
            raise UnacceptableRequestError(f"max_words must be from 1 to {most} here", "max_words")

    async def explain(self, request: Request, parsed: ExplainRequest) -> dict[str, Any]:
        """The content of an `ExplainResponse`.

        Raises:
            RequestError: refused, too late, or failed.
            ClientGoneError: the caller left.
        """
        request.take_id(parsed.request_id, parsed.rid)
        options = tokenization_options(parsed, self._classifier)
        texts = parsed.texts
        answers = await self._answering.answer(
            request,
            answering.Question(
                texts, "input", truncate=parsed.truncate, options=options, background=True
            ),
        )
        bounds = self._bounds(parsed, answers.encoded)
        data = []
        windows = len(answers.rows)
        for index, whole in enumerate(self._judged(answers.encoded, answers.rows)):
            search = _Search(self._classifier, texts[index], options, whole, parsed, bounds)
            explanation = await self._run(request, search)
            windows += search.windows
            if self._metrics is not None:
                found = explanation.counterfactual is not None
                self._metrics.explained(found=found, windows=search.windows)
            data.append(_content(index, explanation, search.passage, whole, answers))
        usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
        return {
            "id": f"explain-{request.id}",
            "object": "list",
            "created": int(time()),
            "model": model_name(self._manifest),
            "data": data,
            "usage": usage | {"windows": windows},
        }

    def _bounds(self, parsed: ExplainRequest, encoded: Sequence[EncodedText]) -> Bounds:
        """How much is tried for each text of a request; all texts share the budget of windows."""
        most = self._settings.explain_max_windows
        needed = max(len(text.windows) for text in encoded) * len(encoded)
        if most // needed < FEWEST_TEXTS:
            raise UnacceptableRequestError(
                f"input needs {needed} windows at a time, and {most} in all are read for an "
                "explanation: send less text in one request",
                "input",
            )
        words = parsed.max_words or self._settings.explain_max_words
        return Bounds(words=words, texts=most // needed)

    async def _run(self, request: Request, search: _Search) -> Explanation:
        loop = asyncio.get_running_loop()
        judged: list[Judged] | None = None
        while True:
            try:
                encoded = await loop.run_in_executor(self._thread, search.advance, judged)
            except TokenizerError:
                raise RequestError(500, UNREADABLE) from None
            if isinstance(encoded, Explanation):
                return encoded
            rows = await self._answering.infer(request, EncodedRequest(encoded), background=True)
            judged = self._judged(encoded, rows)

    def _judged(self, encoded: Sequence[EncodedText], rows: Sequence[RowAnswer]) -> list[Judged]:
        return judge(self._manifest, encoded, np.array([row.logits for row in rows]))


class _Search:
    """The explanation of one text; `advance` is called in a thread of its own.

    `windows` counts what the model read.
    """

    def __init__(
        self,
        classifier: Classifier,
        text: Text,
        options: TokenizationOptions,
        whole: Judged,
        parsed: ExplainRequest,
        bounds: Bounds,
    ) -> None:
        self.windows = 0
        self.passage = Passage((), ())
        self._classifier = classifier
        self._text = text
        self._options = options
        self._whole = whole
        self._label = parsed.label
        self._bounds = bounds

    def advance(self, judged: list[Judged] | None) -> list[EncodedText] | Explanation:
        """The next texts to read, given the answers to those before; or the explanation."""
        try:
            texts = next(self._begin()) if judged is None else self._steps.send(judged)
        except StopIteration as done:
            explanation: Explanation = done.value
            return explanation
        encoded = self._classifier.encode(texts, self._options)
        self.windows += sum(len(text.windows) for text in encoded)
        return encoded

    def _begin(self) -> Steps:
        self.passage, self._steps = start(
            self._classifier, self._text, self._whole, self._label, self._bounds, self._options
        )
        return self._steps


def _content(
    index: int, explanation: Explanation, passage: Passage, whole: Judged, answers: Answers
) -> dict[str, Any]:
    """The content of an `ExplainedText`."""
    words = [
        {**_part(span, weight), "word": passage.texts[span.text][span.start : span.end]}
        for span, weight in explanation.words
    ]
    odds = explanation.log_odds
    item: dict[str, Any] = {
        "index": index,
        "label": explanation.label,
        "given": explanation.label in whole.decision.answer,
        "score": float(1 / (1 + np.exp(-odds))),
        "log_odds": odds,
        "words": words,
    }
    if explanation.sentences:
        item["sentences"] = [_part(*each) for each in explanation.sentences]
    item["counterfactual"] = None
    if explanation.counterfactual is not None:
        places, decision = explanation.counterfactual
        other: dict[str, Any] = {"words": list(places), "label": decision.label}
        if decision.labels is not None:
            other["labels"] = decision.labels
        item["counterfactual"] = other | {"score": decision.score}
    if answers.encoded[index].truncated:
        item["truncated"] = True
    return item


def _part(span: Span, contribution: float) -> dict[str, Any]:
    """The content of an `ExplainedPart`."""
    return {
        "field": FIELDS[span.text],
        "start": span.start,
        "end": span.end,
        "contribution": contribution,
    }
