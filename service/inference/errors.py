"""What can go wrong in inference.

EngineError              the engine does not take a request
├── OverloadedError      the queue is full, or the deadline could not be met
└── ClosedError          the engine is shutting down
NotFiniteError           the model computed NaN or infinity
TokenizerError           the tokenizer crashed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Reason = Literal["queue_full", "deadline", "too_long"]


class EngineError(Exception):
    """The engine does not take this request."""


class OverloadedError(EngineError):
    """Try again after `retry_after` seconds.

    `reason` is `queue_full`, `deadline` (the deadline could not be met) or `too_long` (not even
    an idle engine could meet it).
    """

    def __init__(self, retry_after: float, reason: Reason) -> None:
        super().__init__(f"refused: {reason}")
        self.retry_after = retry_after
        self.reason: Reason = reason


class ClosedError(EngineError):
    """The engine takes no more work."""


class NotFiniteError(Exception):
    """The model computed NaN or infinity, so there is no answer.

    `texts` are the indices of the texts concerned, where they are known.
    """

    def __init__(self, texts: Sequence[int] = ()) -> None:
        first = f", first for text {texts[0] + 1}" if texts else ""
        super().__init__(
            f"the model computed logits that are not finite{first}: do not use this package; "
            "train and export it again"
        )
        self.texts = tuple(texts)


class TokenizerError(Exception):
    """The tokenizer crashed; its own message may hold a part of a text."""
