"""A request's texts → its answers: tokenized, run in batches with everybody else's, decided.

`Answering` knows the event loop, the caller and the deadline; the engine and the classifier know
none of them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic, thread_time
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from service.asgi import ClientGoneError, Headers, Request, RequestError
from service.classifier import Classifier, Prediction, RowAnswer
from service.decisions import FloatArray, aggregate_windows
from service.inference.admission import EngineError, OverloadedError
from service.inference.costs import TextCosts
from service.inference.engine import Engine
from service.inference.jobs import Failed, Job, Outcome, TokenizingTask
from service.inference.prefixes import Beginning
from service.inference.tokenizing import AS_PACKAGED, EncodedText, TokenizationOptions
from service.model_package import Aggregation, Text
from service.schemas import Limits

Result = TypeVar("Result")

# Texts that are likely to take less are tokenized where they came, on the event loop: to hand them
# to a thread would cost more. The others go to threads, in parts of about so many seconds.
INLINE_SECONDS = 0.001
PART_SECONDS = 0.005
# What takes less says little of how long characters take, and to measure it costs more than it.
MEASURED_SECONDS = 0.0001
# Look whether the caller is still there only of a request that takes so long, in seconds.
WATCH_AFTER = 0.1
UNREADABLE = "the text could not be tokenized: see the server's log"


class Answers(NamedTuple):
    """One answer a text, in order; `rows` of all windows, and how many each text has."""

    predictions: list[Prediction]
    rows: list[RowAnswer]
    windows: list[int]
    how: Aggregation | None

    def logits(self) -> FloatArray:
        """Of shape (texts, labels): those of a text's windows together, as its probabilities."""
        logits = np.array([row.logits for row in self.rows])
        return aggregate_windows(logits, self.windows, "multi_label", self.how)


class Asked(NamedTuple):
    """What a request asks: `field` is what its texts are called in a refusal."""

    texts: list[Text]
    field: str
    truncate: bool = True
    options: TokenizationOptions = AS_PACKAGED


class Answering:
    """Answers requests by one classifier through one engine, in an event loop.

    Args:
        limits: how many windows a request may have.
    """

    def __init__(self, classifier: Classifier, engine: Engine, limits: Limits) -> None:
        self._classifier = classifier
        self._engine = engine
        self._limits = limits
        self._costs = TextCosts()
        self._outcomes: _Outcomes | None = None

    async def answer(self, request: Request, asked: Asked) -> Answers:
        """The answers; the request gets its counts and timing.

        Raises:
            RequestError: refused, too late, or failed.
            ClientGoneError: the caller has left.
        """
        if request.seconds_left <= 0:
            raise _late()
        try:
            self._engine.check(request.seconds_left)
        except EngineError as error:
            raise _refusal(error) from None
        began = monotonic()
        encoded, since = await self._encode(request, asked)
        request.timing["tokenize"] = monotonic() - began
        self._check_windows(asked, encoded)
        rows = await self._infer(request, encoded, since)
        predictions = self._classifier.row_predictions(encoded, rows)
        request.texts = len(predictions)
        request.tokens = sum(prediction.tokens for prediction in predictions)
        how = self._classifier.manifest.window_aggregation
        return Answers(predictions, rows, [len(text.windows) for text in encoded], how)

    def _check_windows(self, asked: Asked, encoded: list[EncodedText]) -> None:
        """Refuse texts of which nothing is left, or more than request or operator allow."""
        length = self._classifier.manifest.max_length
        for index, text in enumerate(encoded):
            if not len(text.windows[0]):
                place = f"{asked.field}[{index}]"
                raise RequestError(
                    422, f"{place} has no tokens, such as a text of control characters", place
                )
        if not asked.truncate:
            limit = asked.options.max_length or length
            for index, text in enumerate(encoded):
                if text.truncated:
                    place = f"{asked.field}[{index}]"
                    raise RequestError(
                        422,
                        f"{place} has more than {limit} tokens: shorten it, or leave truncate out",
                        place,
                    )
        windows = sum(len(text.windows) for text in encoded)
        if windows > max(self._limits.max_windows, len(encoded)):
            raise RequestError(
                422,
                f"{asked.field} needs {windows} windows of {length} tokens, the limit is "
                f"{self._limits.max_windows}: send less text in one request",
                asked.field,
            )

    async def _encode(
        self, request: Request, asked: Asked
    ) -> tuple[list[EncodedText], float | None]:
        """Token ids; since when the request waits for them, where it had to wait in turn."""
        encoder, texts, options = self._classifier.encoder, asked.texts, asked.options
        by_beginnings = encoder.reads_beginnings(options)
        if by_beginnings:
            beginnings = [encoder.beginning(text) for text in texts]
        else:
            beginnings = [Beginning(text, True) for text in texts]
        read = [beginning.text for beginning in beginnings]
        seconds = sum(self._costs.of(text).seconds for text in read)
        if seconds > INLINE_SECONDS or not encoder.is_prepared(options):
            return await self._encode_in_turn(request, asked, texts, read)
        encode = partial(encoder.encode, texts, options)
        if by_beginnings:
            encode = partial(encoder.encode_beginnings, beginnings)
        try:
            encoded = self._measured(read, encode, options, seconds)
        except Exception as error:  # noqa: BLE001 - as where the engine's threads tokenize
            self._engine.failed("tokenizing", error)
            raise RequestError(500, UNREADABLE) from None
        if not by_beginnings:
            return encoded, None
        unsettled = encoder.unsettled(beginnings, encoded)
        if not unsettled:
            return encoded, None
        rest = [texts[index] for index in unsettled]
        more, since = await self._encode_in_turn(request, asked, rest, rest)
        for index, text in zip(unsettled, more, strict=True):
            encoded[index] = text
        return encoded, since

    async def _encode_in_turn(
        self, request: Request, asked: Asked, texts: list[Text], read: list[Text]
    ) -> tuple[list[EncodedText], float]:
        """Token ids, by the engine's threads; `read` is what is likely to be read of the texts."""
        tasks = []
        promised = 0.0
        manifest, options = self._classifier.manifest, asked.options
        most = options.max_length or manifest.max_length
        cuts_off = manifest.long_text == "truncate" or options.max_length is not None
        start, seconds = 0, 0.0
        for end, text in enumerate(read, start=1):
            cost = self._costs.of(text)
            seconds += cost.seconds
            promised += min(cost.tokens, most) if cuts_off else cost.tokens
            if seconds < PART_SECONDS and end < len(read):
                continue
            encode = partial(self._classifier.encode, texts[start:end], options)
            work = partial(self._measured, read[start:end], encode, options, seconds)
            tasks.append(TokenizingTask(work, seconds))
            start, seconds = end, 0.0

        def begin(
            on_done: Callable[[Outcome[list[EncodedText]]], object],
        ) -> Job[list[EncodedText]]:
            return self._engine.tokenize(
                tasks, on_done, promised_tokens=int(promised), seconds=request.seconds_left
            )

        # This may take long: of a caller who leaves the rest is dropped at once.
        job, outcome = await self._wait(request, begin, watch_after=0.0)
        if isinstance(outcome, Failed):
            raise RequestError(500, UNREADABLE)
        return outcome.result, job.submitted

    def _measured(
        self,
        read: list[Text],
        encode: Callable[[], list[EncodedText]],
        options: TokenizationOptions,
        seconds: float,
    ) -> list[EncodedText]:
        """Tokenize what is likely to take so long, and learn what it did; by several threads."""
        # Not a part of what a text takes: it is done once.
        self._classifier.encoder.prepare(options)
        if seconds < MEASURED_SECONDS:
            return encode()
        began = thread_time()
        encoded = encode()
        took = thread_time() - began
        tokens = [None if text.truncated else sum(map(len, text.windows)) for text in encoded]
        self._costs.learn(read, took, tokens)
        return encoded

    async def _infer(
        self, request: Request, encoded: list[EncodedText], since: float | None
    ) -> list[RowAnswer]:
        """The answers of all windows, or the reason why there are none."""

        def begin(on_done: Callable[[Outcome[list[RowAnswer]]], object]) -> Job[list[RowAnswer]]:
            return self._engine.submit(encoded, on_done, seconds=request.seconds_left, since=since)

        job, outcome = await self._wait(request, begin)
        if isinstance(outcome, Failed):
            raise RequestError(500, "inference failed: see the server's log")
        self._engine.answered(job)
        request.timing["queue"] = outcome.queued
        request.timing["inference"] = outcome.running
        return outcome.result

    async def _wait(
        self,
        request: Request,
        begin: Callable[[Callable[[Outcome[Result]], object]], Job[Result]],
        watch_after: float = WATCH_AFTER,
    ) -> tuple[Job[Result], Outcome[Result]]:
        """Begin work in the engine and wait for its outcome, the deadline, or the caller's end."""
        if request.seconds_left <= 0:
            raise _late()
        loop = asyncio.get_running_loop()
        if self._outcomes is None or self._outcomes.loop is not loop:
            self._outcomes = _Outcomes(loop)
        waiting: _Waiting[Result] = _Waiting(request, self._outcomes)
        try:
            job = begin(waiting.tell)
        except EngineError as error:
            raise _refusal(error) from None
        try:
            return job, await waiting.outcome(watch_after)
        except BaseException:
            self._engine.cancel(job)
            raise


class _Outcomes:
    """Outcomes on their way to the event loop, which is woken once for all of a batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._told: deque[tuple[_Waiting[Any], Outcome[Any]]] = deque()
        self._is_woken = False

    def tell(self, waiting: _Waiting[Any], outcome: Outcome[Any]) -> None:
        """Hand an outcome over; from any thread."""
        self._told.append((waiting, outcome))
        if not self._is_woken:
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        # First: what is told from here on wakes the loop again.
        self._is_woken = False
        while self._told:
            waiting, outcome = self._told.popleft()
            waiting.finish(outcome)


class _Waiting(Generic[Result]):
    """One request that waits for one outcome, until its deadline, and while its caller does."""

    def __init__(self, request: Request, outcomes: _Outcomes) -> None:
        self._request = request
        self._outcomes = outcomes
        self._loop = outcomes.loop
        self._done: asyncio.Future[Outcome[Result]] = self._loop.create_future()
        self._watcher: asyncio.Task[None] | None = None

    def tell(self, outcome: Outcome[Result]) -> None:
        """Hand the outcome over; from any thread."""
        self._outcomes.tell(self, outcome)

    async def outcome(self, watch_after: float) -> Outcome[Result]:
        """The outcome; whether the caller is still there is watched after so many seconds.

        Raises:
            RequestError: the deadline passed.
            ClientGoneError: the caller left.
        """
        soon = min(self._request.seconds_left, watch_after)
        self._timer = self._loop.call_later(soon, self._look)
        try:
            return await self._done
        finally:
            self._timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()

    def _look(self) -> None:
        """Give up at the deadline; before it, watch the caller from now on."""
        left = self._request.seconds_left
        if left <= 0:
            self._fail(_late())
            return
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._watch())
        self._timer = self._loop.call_later(left, self._look)

    async def _watch(self) -> None:
        # Its body has come: nothing but the end of the connection can follow.
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._fail(ClientGoneError())

    def finish(self, outcome: Outcome[Result]) -> None:
        """Let the request go on, where it still waits."""
        if not self._done.done():
            self._done.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _refusal(error: EngineError) -> RequestError:
    """What the engine does not take, as the answer that says so."""
    if isinstance(error, OverloadedError):
        return _overloaded(error.retry_after, error.reason)
    return RequestError(503, "the server is shutting down: ask another one")


def _late() -> RequestError:
    return RequestError(504, "the deadline passed before the answer was ready")


def _overloaded(retry_after: float, reason: str) -> RequestError:
    """429, and when to come again: when the work of now is done, in whole seconds."""
    seconds = max(1, math.ceil(retry_after))
    message = (
        "this request takes longer than its deadline allows: send fewer texts at a time"
        if reason == "too_long"
        else f"the server has more work than it can do in time: try again in {seconds} s"
    )
    headers: Headers = ((b"retry-after", str(seconds).encode()),)
    return RequestError(429, message, headers=headers, reason=reason)
