"""What a text is likely to cost before it is tokenized, by what texts before it took.

Texts of ASCII alone and others are measured apart: a CJK ideograph takes several times as long as
a letter, and is a token by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from service.inference.admission import Rate
from service.model_package import Text

# Before anything was measured, by whether a text is ASCII: seconds and tokens of a character.
SECONDS = {True: 5e-7, False: 2e-6}
TOKENS = {True: 0.25, False: 1.0}
FOLLOWED_CHARACTERS = 20_000.0
# Of a text of a few characters the call takes longer than they do, and the first call longest.
BELIEVED_CHARACTERS = 5_000.0
# A call and a text take so many seconds besides, however short the text is.
SECONDS_PER_TEXT = 1e-5
# What is measured is never believed to be less: a text of another kind may follow.
LEAST_SECONDS = 2e-7


class Cost(NamedTuple):
    """Of one thread: seconds to tokenize, and the tokens that inference gets."""

    seconds: float
    tokens: float


class TextCosts:
    """Measured costs of a tokenizer; every method may be called from any thread."""

    def __init__(self) -> None:
        self._seconds = _rates(SECONDS)
        self._tokens = _rates(TOKENS)
        self._lock = threading.Lock()

    def of(self, text: Text) -> Cost:
        """What a text, or pair, is likely to cost."""
        seconds, tokens = SECONDS_PER_TEXT, 0.0
        for part in (text,) if isinstance(text, str) else text:
            kind = part.isascii()
            seconds += len(part) * max(self._seconds[kind].value, LEAST_SECONDS)
            tokens += len(part) * self._tokens[kind].value
        return Cost(seconds, tokens)

    def learn(self, texts: Sequence[Text], seconds: float, tokens: Sequence[int | None]) -> None:
        """What these took together, and how many tokens each has; None of one that was cut off."""
        characters = dict.fromkeys((True, False), 0)
        with self._lock:
            for text, count in zip(texts, tokens, strict=True):
                whole = text if isinstance(text, str) else text[0] + text[1]
                kind = whole.isascii()
                characters[kind] += len(whole)
                if count is not None:
                    self._tokens[kind].learn(count, len(whole))
            likely = {
                kind: number * self._seconds[kind].value for kind, number in characters.items()
            }
            measured = max(0.0, seconds - SECONDS_PER_TEXT * len(texts))
            for kind, number in characters.items():
                if number:
                    # Of texts of both kinds together, each takes the share that it was likely to.
                    share = likely[kind] / sum(likely.values())
                    self._seconds[kind].learn(measured * share, number)


def _rates(first: dict[bool, float]) -> dict[bool, Rate]:
    return {
        kind: Rate(value, FOLLOWED_CHARACTERS, BELIEVED_CHARACTERS) for kind, value in first.items()
    }
