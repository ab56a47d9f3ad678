"""Unknown tokens and pieces of words are counted for every kind of vocabulary."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from service.inference.pieces import PieceCounter, Pieces
from service.inference.tokenizing import EncodedText


def wordpiece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "card": 1, "lo": 2, "##st": 3, "!": 4}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level() -> Tokenizer:
    vocabulary = {
        piece: number
        for number, piece in enumerate(["\u0120", "c", "a", "\u0120c", "\u0120ca", "s", "t", "!"])
    }
    merges = [("\u0120", "c"), ("\u0120c", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("\u2581card", -1.0), ("\u2581lo", -1.0), ("st", -1.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("!", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def characters() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (wordpiece(), "card lost !", Pieces(0, 1)),
        (wordpiece(), "card \u65e5", Pieces(1, 0)),
        # Two pieces follow the beginning of a word, and punctuation continues none.
        (byte_level(), "cast!", Pieces(0, 2)),
        (unigram(), "card lost!", Pieces(0, 1)),
        (unigram(), "card \u65e5", Pieces(1, 0)),
        (characters(), "abx", Pieces(1, None)),
    ],
)
def test_pieces_are_counted(tokenizer: Tokenizer, text: str, expected: Pieces) -> None:
    encoded = EncodedText((tokenizer.encode_batch_fast([text])[0],), truncated=False)
    assert PieceCounter.of(tokenizer).count(encoded) == expected


def test_all_windows_are_counted() -> None:
    tokenizer = wordpiece()
    window = tokenizer.encode("lost")
    counter = PieceCounter.of(tokenizer)
    assert counter.count(EncodedText((window, window), truncated=False)) == Pieces(0, 2)
    assert counter.count(EncodedText((), truncated=False)) == Pieces(0, 0)
