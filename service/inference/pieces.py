"""How much of a text a tokenizer does not know, or knows only in pieces of words.

    counter = PieceCounter.of(tokenizer)
    counter.count(encoded).continued

Both are read off the token ids: the offsets of a text's tokens are not kept while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from service.inference.tokenizing import EncodedText

# As SentencePiece names it: a Unigram model does not say it.
UNIGRAM_UNKNOWN = "<unk>"
# What WordPiece puts before a piece that continues a word, unless the model names another prefix.
CONTINUATION = "##"
# What SentencePiece and byte-level BPE put before a piece that begins a word.
BEGINNINGS = ("\u2581", "\u0120")
# A vocabulary marks the beginnings of words if so large a share of its tokens has the mark.
MARKED_SHARE = 0.01


class Pieces(NamedTuple):
    """Tokens that the vocabulary does not know, and tokens that continue a word.

    `continued` is None where a vocabulary does not mark words, such as one of characters.
    """

    unknown: int
    continued: int | None


@dataclass(frozen=True)
class PieceCounter:
    """Counts the pieces of encoded texts.

    Attributes:
        unknown_id: the token for what the vocabulary does not know; None where there is none.
        continues: whether each token continues a word, of shape (tokens of the vocabulary,); None
            where the vocabulary does not mark words.
    """

    unknown_id: int | None
    continues: NDArray[np.bool_] | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PieceCounter:
        """The counter of a tokenizer's vocabulary."""
        token = getattr(tokenizer.model, "unk_token", None) or UNIGRAM_UNKNOWN
        unknown_id: int | None = tokenizer.token_to_id(token)
        return cls(unknown_id, _continues(tokenizer))

    def count(self, encoded: EncodedText) -> Pieces:
        """The pieces of a text, special tokens left out."""
        ids = [token for part in encoded.windows for token in part.ids]
        unknown = ids.count(self.unknown_id)
        if self.continues is None:
            return Pieces(unknown, None)
        return Pieces(unknown, int(np.count_nonzero(self.continues[ids])) if ids else 0)


def _continues(tokenizer: Tokenizer) -> NDArray[np.bool_] | None:
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    own: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    prefix = getattr(tokenizer.model, "continuing_subword_prefix", None) or CONTINUATION
    found = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=bool)
    pieces = {token: place for token, place in own.items() if token not in special}
    if any(token.startswith(prefix) for token in pieces):
        found[[place for token, place in pieces.items() if token.startswith(prefix)]] = True
        return found
    beginning = sum(token.startswith(BEGINNINGS) for token in pieces)
    if beginning < MARKED_SHARE * max(len(pieces), 1):
        return None
    for token, place in pieces.items():
        # Punctuation continues no word. The mark of byte-level BPE is a letter itself.
        found[place] = token[:1].isalnum() and not token.startswith(BEGINNINGS)
    return found
