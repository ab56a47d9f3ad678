"""Text that a tokenizer cuts into pieces of words, though it knows every piece.

A token continues a word where it begins between two letters of it. That is asked of the offsets,
not of a prefix such as `##`, and holds for WordPiece, byte-level BPE, Unigram and others.
"""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from service.package.manifest import Text

# The rows, and the characters of each, that are examined: enough to estimate a share.
LOOKED_AT_ROWS = 10_000
LOOKED_AT_CHARACTERS = 2_000
# First and last character of scripts that put no blanks between words: Thai and Lao, Tibetan,
# Burmese, Khmer, Japanese, Chinese. Each character counts as a word.
WITHOUT_BLANKS = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)),
    (0x20000, 0x3FFFF),
)
FIRST_CHARACTERS = [first for first, _ in WITHOUT_BLANKS]


@dataclass(frozen=True)
class Shreds:
    """The `places` of the texts examined, their tokens, and how many of these continue a word.

    Special tokens do not count.
    """

    places: np.ndarray
    tokens: np.ndarray
    continuations: np.ndarray

    @property
    def share(self) -> float:
        """The share of all tokens that continue a word."""
        return float(self.continuations.sum() / max(1, self.tokens.sum()))


def count_shreds(tokenizer: Tokenizer, texts: Sequence[Text]) -> Shreds:
    """Count the tokens of texts, or of a sample evenly over them, that continue a word.

    Args:
        tokenizer: without truncation and padding.
    """
    step = max(1, -(-len(texts) // LOOKED_AT_ROWS))
    places = np.arange(0, len(texts), step)
    tokens, continuations = np.zeros((2, len(places)), dtype=np.int64)
    for number, place in enumerate(places.tolist()):
        text = texts[place]
        parts = text if isinstance(text, tuple) else (text,)
        for part in parts:
            beginning = part[:LOOKED_AT_CHARACTERS]
            encoding = tokenizer.encode(beginning, add_special_tokens=False)
            tokens[number] += len(encoding)
            continuations[number] += _continuations(encoding, beginning)
    return Shreds(places, tokens, continuations)


def _continuations(encoding: Encoding, text: str) -> int:
    count, reached = 0, 0
    for start, end in encoding.offsets:
        if start < end:
            inside = start > 0 and _in_word(text[start - 1]) and _in_word(text[start])
            # A character may be several tokens, where tokens are bytes.
            count += inside or start < reached
            reached = end
    return count


def _in_word(character: str) -> bool:
    """Whether a character is part of a word with blanks around it."""
    if character.isascii():
        return character.isalnum()
    code = ord(character)
    place = bisect.bisect_right(FIRST_CHARACTERS, code) - 1
    if place >= 0 and code <= WITHOUT_BLANKS[place][1]:
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")
