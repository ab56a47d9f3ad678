"""Texts of one part → answers, on all cores; the next part is read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np

from service.inference.batches import length_sorted_batches
from service.inference.classifier import Classifier, Prediction
from service.inference.errors import NotFiniteError
from service.inference.tokenizing import EncodedText
from service.package.manifest import Text

# Windows of a batch at most, as in serving; texts that are tokenized at once.
BATCH_WINDOWS = 32
TOKENIZED_AT_ONCE = 512


class Answering:
    """A pool of threads, each of which tokenizes some texts or runs one batch.

    A batch holds windows of one part only, of similar length: the answers of a part do not depend
    on the parts before it.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._pool = ThreadPoolExecutor(classifier.threads)

    def submit(self, texts: Sequence[Text]) -> PendingAnswers:
        """Begin to answer; returns at once."""
        return PendingAnswers(self._classifier, self._pool, texts)

    def close(self) -> None:
        """Cancel the work that has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class PendingAnswers:
    """The answers to the texts of one part, as they come."""

    def __init__(
        self, classifier: Classifier, pool: ThreadPoolExecutor, texts: Sequence[Text]
    ) -> None:
        self._classifier = classifier
        self._pool = pool
        self._texts = texts
        self._done: Future[None] = Future()
        self._lock = threading.Lock()
        starts = range(0, len(texts), TOKENIZED_AT_ONCE)
        self._left = len(starts)
        self._encoded: list[list[EncodedText]] = [[] for _ in starts]
        self._logits = np.zeros((0, 0), dtype=np.float32)
        for index, start in enumerate(starts):
            chunk = texts[start : start + TOKENIZED_AT_ONCE]
            self._run(partial(self._encode, index, chunk))
        if not texts:
            self._done.set_result(None)

    def wait(self) -> list[Prediction | None]:
        """An answer to each text, in order; None where the model computes no finite scores.

        Raises:
            Exception: the error of tokenizing or inference.
        """
        self._done.result()
        if not self._texts:
            return []
        encoded = [text for chunk in self._encoded for text in chunk]
        counts = [len(text.windows) for text in encoded]
        first = np.cumsum([0, *counts[:-1]])
        sound = np.logical_and.reduceat(np.isfinite(self._logits).all(axis=1), first)
        rows = np.repeat(sound, counts)
        kept = [text for text, is_sound in zip(encoded, sound, strict=True) if is_sound]
        answers = iter(self._classifier.predictions(kept, self._logits[rows]) if kept else ())
        return [
            next(answers) if is_sound else self._alone(text)
            for text, is_sound in zip(self._texts, sound, strict=True)
        ]

    def _alone(self, text: Text) -> Prediction | None:
        """The answer to one text by itself: another text may have spoiled the batch."""
        with suppress(NotFiniteError):
            return self._classifier.classify([text])[0]
        return None

    def _run(self, work: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised in `wait`
                with self._lock:
                    if not self._done.done():
                        self._done.set_exception(error)

        self._pool.submit(guarded)

    def _encode(self, index: int, chunk: Sequence[Text]) -> None:
        self._encoded[index] = self._classifier.encode(chunk)
        if self._is_last():
            self._start_batches()

    def _start_batches(self) -> None:
        windows = [window for chunk in self._encoded for text in chunk for window in text.windows]
        shape = (len(windows), len(self._classifier.manifest.labels))
        # A window that no batch fills stays NaN, and its text gets no answer.
        self._logits = np.full(shape, np.nan, dtype=np.float32)
        batches = length_sorted_batches([len(window) for window in windows], BATCH_WINDOWS)
        self._left = len(batches)

        def run(batch: list[int]) -> None:
            self._logits[batch] = self._classifier.logits([windows[index] for index in batch])
            if self._is_last():
                self._done.set_result(None)

        for batch in batches:
            self._run(partial(run, batch))

    def _is_last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0 and not self._done.done()
