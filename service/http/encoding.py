"""The texts of one request → token ids: at once in the event loop, or by the engine's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import thread_time
from typing import NamedTuple

from service.http.errors import RequestError, refusal_of
from service.http.request import Request
from service.http.waiting import Waiter
from service.inference.classifier import Classifier
from service.inference.costs import Cost, TextCosts
from service.inference.engine import Engine
from service.inference.errors import EngineError
from service.inference.jobs import Failed, Job, Outcome, TokenizingTask
from service.inference.prefixes import Beginning
from service.inference.tokenizing import EncodedText, TokenizationOptions
from service.package.manifest import Text

# Texts that are likely to take less time than this are tokenized in the event loop: to hand them to
# a thread would cost more. Other texts go to the threads, in parts of about PART_SECONDS.
INLINE_SECONDS = 0.001
PART_SECONDS = 0.005
# Shorter work is not measured: it says little about the time per character, and measuring it would
# cost more than the work.
MEASURED_SECONDS = 0.0001
UNREADABLE = "the text could not be tokenized: see the server's log"


class EncodedRequest(NamedTuple):
    """The token ids of a request's texts.

    `since` is when the texts arrived to be tokenized, where they waited for the engine's threads.
    """

    texts: list[EncodedText]
    since: float | None = None


class RequestEncoder:
    """Encodes requests for one classifier and one engine, in an event loop."""

    def __init__(self, classifier: Classifier, engine: Engine, waiter: Waiter) -> None:
        self._classifier = classifier
        self._encoder = classifier.encoder
        self._engine = engine
        self._waiter = waiter
        self._costs = TextCosts()

    async def encode(
        self, request: Request, texts: list[Text], options: TokenizationOptions
    ) -> EncodedRequest:
        """The token ids of `texts`.

        Raises:
            RequestError: refused, too late, or failed.
            ClientGoneError: the caller left.
        """
        encoder = self._encoder
        reads_beginnings = encoder.reads_beginnings(options)
        if reads_beginnings:
            beginnings = [encoder.beginning(text) for text in texts]
        else:
            beginnings = [Beginning(text, True) for text in texts]
        likely = [beginning.text for beginning in beginnings]
        costs = [self._costs.of(text) for text in likely]
        seconds = sum(cost.seconds for cost in costs)
        if seconds > INLINE_SECONDS or not encoder.is_prepared(options):
            return await self._encode_in_threads(request, texts, likely, options)
        # Most refusals of an overload are these: they shall cost less than the tokens would.
        try:
            self._engine.check(request.seconds_to_compute, self._likely_tokens(costs, options))
        except EngineError as error:
            raise refusal_of(error, request.behind) from None
        encode = partial(encoder.encode, texts, options)
        if reads_beginnings:
            encode = partial(encoder.encode_beginnings, beginnings)
        encoded = self._encode_inline(likely, encode, options, seconds)
        unfinished = encoder.unfinished(beginnings, encoded) if reads_beginnings else []
        if not unfinished:
            return EncodedRequest(encoded)
        rest = [texts[index] for index in unfinished]
        more, since = await self._encode_in_threads(request, rest, rest, options)
        for index, text in zip(unfinished, more, strict=True):
            encoded[index] = text
        return EncodedRequest(encoded, since)

    def _encode_inline(
        self,
        likely: list[Text],
        encode: Callable[[], list[EncodedText]],
        options: TokenizationOptions,
        seconds: float,
    ) -> list[EncodedText]:
        """Token ids, made in this thread; a failure is counted like one in the threads."""
        try:
            return self._measured(likely, encode, options, seconds)
        except Exception as error:  # noqa: BLE001 - like a failure in the engine's threads
            self._engine.record_failure("tokenizing", error)
            raise RequestError(500, UNREADABLE) from None

    async def _encode_in_threads(
        self,
        request: Request,
        texts: list[Text],
        likely: list[Text],
        options: TokenizationOptions,
    ) -> EncodedRequest:
        """Token ids, made by the engine's threads; `likely` is the part of each text they read."""
        tasks = self._tasks(texts, likely, options)
        promised = self._likely_tokens([self._costs.of(text) for text in likely], options)

        def begin(
            on_done: Callable[[Outcome[list[EncodedText]]], object],
        ) -> Job[list[EncodedText]]:
            return self._engine.tokenize(
                tasks, on_done, promised_tokens=promised, seconds=request.seconds_to_compute
            )

        # This may take long, so the caller is watched from the beginning.
        job, outcome = await self._waiter.wait(request, begin, watch_after=0.0)
        if isinstance(outcome, Failed):
            raise RequestError(500, UNREADABLE)
        return EncodedRequest(outcome.result, job.submitted)

    def _tasks(
        self, texts: Sequence[Text], likely: Sequence[Text], options: TokenizationOptions
    ) -> list[TokenizingTask]:
        """The texts in parts of about `PART_SECONDS`."""
        tasks = []
        start, seconds = 0, 0.0
        for end, text in enumerate(likely, start=1):
            seconds += self._costs.of(text).seconds
            if seconds < PART_SECONDS and end < len(likely):
                continue
            encode = partial(self._classifier.encode, texts[start:end], options)
            work = partial(self._measured, likely[start:end], encode, options, seconds)
            tasks.append(TokenizingTask(work, seconds))
            start, seconds = end, 0.0
        return tasks

    def _likely_tokens(self, costs: Sequence[Cost], options: TokenizationOptions) -> int:
        """How many tokens inference will probably get."""
        manifest = self._classifier.manifest
        tokens = [cost.tokens for cost in costs]
        if manifest.long_text == "truncate" or options.max_length is not None:
            longest = options.max_length or manifest.max_length
            tokens = [min(count, longest) for count in tokens]
        return int(sum(tokens))

    def _measured(
        self,
        likely: Sequence[Text],
        encode: Callable[[], list[EncodedText]],
        options: TokenizationOptions,
        seconds: float,
    ) -> list[EncodedText]:
        """Call `encode`, which is likely to take `seconds`, and learn how long it took.

        Several threads may do this at once.
        """
        # Not a part of a text's cost, because it happens once.
        self._encoder.prepare(options)
        if seconds < MEASURED_SECONDS:
            return encode()
        began = thread_time()
        encoded = encode()
        took = thread_time() - began
        tokens = [None if text.truncated else sum(map(len, text.windows)) for text in encoded]
        self._costs.learn(likely, took, tokens)
        return encoded
