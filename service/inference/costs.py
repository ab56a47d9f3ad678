"""What a text is likely to cost before it is tokenized, estimated from earlier texts.

Pure ASCII texts and other texts are measured separately: a CJK ideograph takes several times as
long as a letter, and is a token by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from service.inference.rates import Rate
from service.package.manifest import Text

# Seconds and tokens per character before anything is measured, by whether the text is ASCII.
FIRST_SECONDS = {True: 5e-7, False: 2e-6}
FIRST_TOKENS = {True: 0.25, False: 1.0}
# A rate forgets old measurements in so many characters (see `Rate`).
MEMORY_CHARACTERS = 20_000.0
# The first values weigh as much as so many characters: the first calls are the slowest, and a call
# costs more than the few characters of a short text.
INITIAL_CHARACTERS = 5_000.0
# The fixed cost of a call for each text, in seconds.
SECONDS_PER_TEXT = 1e-5
# A lower bound for seconds per character: a text of another kind may follow.
MIN_SECONDS = 2e-7


class Cost(NamedTuple):
    """The cost of a text: seconds of tokenizing on one thread, and tokens for inference."""

    seconds: float
    tokens: float


class TextCosts:
    """Measured costs of a tokenizer; every method may be called from any thread."""

    def __init__(self) -> None:
        self._seconds = _rates(FIRST_SECONDS)
        self._tokens = _rates(FIRST_TOKENS)
        self._lock = threading.Lock()

    def of(self, text: Text) -> Cost:
        """The likely cost of a text, or pair."""
        seconds, tokens = SECONDS_PER_TEXT, 0.0
        for part in (text,) if isinstance(text, str) else text:
            is_ascii = part.isascii()
            seconds += len(part) * max(self._seconds[is_ascii].value, MIN_SECONDS)
            tokens += len(part) * self._tokens[is_ascii].value
        return Cost(seconds, tokens)

    def learn(self, texts: Sequence[Text], seconds: float, tokens: Sequence[int | None]) -> None:
        """Include a measurement.

        Args:
            texts: what was tokenized.
            seconds: how long all texts took together.
            tokens: how many tokens each text has; None for a text that was cut off.
        """
        characters = dict.fromkeys((True, False), 0)
        with self._lock:
            for text, count in zip(texts, tokens, strict=True):
                whole = text if isinstance(text, str) else text[0] + text[1]
                is_ascii = whole.isascii()
                characters[is_ascii] += len(whole)
                if count is not None:
                    self._tokens[is_ascii].learn(count, len(whole))
            expected = {
                is_ascii: number * self._seconds[is_ascii].value
                for is_ascii, number in characters.items()
            }
            measured = max(0.0, seconds - SECONDS_PER_TEXT * len(texts))
            for is_ascii, number in characters.items():
                if number:
                    # Of a mixed batch, each kind gets its expected share of the time.
                    share = expected[is_ascii] / sum(expected.values())
                    self._seconds[is_ascii].learn(measured * share, number)


def _rates(first: dict[bool, float]) -> dict[bool, Rate]:
    return {
        is_ascii: Rate(value, MEMORY_CHARACTERS, INITIAL_CHARACTERS)
        for is_ascii, value in first.items()
    }
