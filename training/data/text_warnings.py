"""Warnings about texts, as the tokenizer of the base model reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from training.common.progress import progress
from training.data.findings import Finding
from training.data.shredding import count_shreds
from training.data.sound_rows import SoundRows

UNKNOWN_SHARE = 0.01
# With the embedded base, English of every kind has at most 13 %, French 30 % and more
# (tests/training/data/test_shredding.py).
SHREDDED_SHARE = 0.2
MULTILINGUAL_BASE = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
COVERED_SHARE = 0.99
TOKENIZED_AT_ONCE = 10_000

# Tags; entities, also those that lost their ampersand on the way; characters that do not print.
MARKUP = {
    "tags": re.compile(r"</?[A-Za-z][^<>]{0,200}>"),
    "entities": re.compile(
        r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});|(?:^|\s)(?:#\d{2,5}|quot|amp|lt|gt);"
    ),
    "control characters": re.compile(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffd]"
    ),
}


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each text, special ones counted, and how many of them are unknown."""

    lengths: np.ndarray
    unknown: np.ndarray


@dataclass(frozen=True)
class WholeTextTokenizer:
    """A tokenizer that neither cuts off nor pads; `unknown_id` is its token for the unknown."""

    tokenizer: Tokenizer
    unknown_id: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, unknown_id: int | None) -> WholeTextTokenizer:
        """A copy of `tokenizer`, which stays as it is."""
        copy = Tokenizer.from_str(tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        return cls(copy, unknown_id)

    def count(self, texts: Sequence[Any], name: str) -> TokenCounts:
        """The tokens of texts or pairs, with a bar that shows `name`."""
        lengths = np.zeros(len(texts), dtype=np.int32)
        unknown = np.zeros(len(texts), dtype=np.int32)
        with progress(len(texts), f"tokenize {name}", "row", leave=False) as bar:
            for start in range(0, len(texts), TOKENIZED_AT_ONCE):
                chunk = [_as_text(text) for text in texts[start : start + TOKENIZED_AT_ONCE]]
                for row, encoding in enumerate(
                    self.tokenizer.encode_batch_fast(chunk), start=start
                ):
                    ids = encoding.ids
                    lengths[row] = len(ids)
                    unknown[row] = 0 if self.unknown_id is None else ids.count(self.unknown_id)
                bar.update(len(chunk))
        return TokenCounts(lengths, unknown)


def text_warnings(
    sound: SoundRows, tokenizer: WholeTextTokenizer, counts: TokenCounts, cut_after: int | None
) -> list[Finding]:
    """Every warning about the texts of a split.

    Args:
        cut_after: the tokens after which a text is cut off; None where all of it is read.
    """
    return [
        *([] if cut_after is None else _truncation(sound, counts.lengths, cut_after)),
        *_unknown_tokens(sound, counts),
        *_shredded_text(sound, tokenizer.tokenizer),
        *_markup(sound),
        *_label_in_text(sound),
    ]


def _as_text(text: Any) -> str | tuple[str, str]:
    return (str(text[0]), str(text[1])) if isinstance(text, tuple) else str(text)


def _joined(text: Any) -> str:
    """A text, or both texts of a pair."""
    return "\n".join(map(str, text)) if isinstance(text, tuple) else str(text)


def _truncation(sound: SoundRows, lengths: np.ndarray, cut_after: int) -> list[Finding]:
    cut = np.flatnonzero(lengths > cut_after).tolist()
    if not cut:
        return []
    covering = int(np.quantile(lengths, COVERED_SHARE, method="higher"))
    message = (
        f"{len(cut) / len(lengths):.1%} of the texts are longer than max_length {cut_after} and "
        f"would be cut off: {covering} tokens cover {COVERED_SHARE:.0%} of them, and "
        "`long_text: window` reads all"
    )
    return sound.warn("truncation", sound.places(cut), message)


def _unknown_tokens(sound: SoundRows, counts: TokenCounts) -> list[Finding]:
    share = counts.unknown.sum() / max(1, counts.lengths.sum())
    if share < UNKNOWN_SHARE:
        return []
    places = sound.places(np.flatnonzero(counts.unknown).tolist())
    message = (
        f"{share:.1%} of all tokens are unknown to the base model: choose one made for this "
        "language and these characters"
    )
    return sound.warn("unknown_tokens", places, message)


def _shredded_text(sound: SoundRows, tokenizer: Tokenizer) -> list[Finding]:
    texts = [_as_text(text) for text in sound.texts]
    shreds = count_shreds(tokenizer, texts)
    if shreds.share < SHREDDED_SHARE:
        return []
    is_shredded = shreds.continuations >= SHREDDED_SHARE * np.maximum(1, shreds.tokens)
    is_sample = len(shreds.places) < len(texts)
    sample = f" of {len(shreds.places)} rows looked at" if is_sample else ""
    message = (
        f"{shreds.share:.1%} of all tokens{sample} continue a word that the base model does not "
        "know as a whole: it was made for other languages or texts. Choose a base made for this "
        f"one, or a multilingual one, such as `{MULTILINGUAL_BASE}`"
    )
    places = sound.places(shreds.places[is_shredded].tolist())
    return sound.warn("shredded_text", places, message)


def _markup(sound: SoundRows) -> list[Finding]:
    by_kind: dict[str, list[int]] = {}
    for row, text, _ in sound:
        whole = _joined(text)
        for kind, pattern in MARKUP.items():
            if pattern.search(whole):
                by_kind.setdefault(kind, []).append(row)
    kinds = ", ".join(f"{kind} in {len(places)}" for kind, places in by_kind.items())
    message = (
        f"mark-up or characters that do not print ({kinds}): clean it if requests will not have it"
    )
    return sound.warn("markup", sorted(set().union(*by_kind.values())), message)


def _label_in_text(sound: SoundRows) -> list[Finding]:
    """Rows whose text has the name of their own label, as words of their own."""
    finders: dict[str, Callable[[str], Any]] = {}
    places = []
    for row, text, labels in sound:
        whole = _joined(text)
        for label in labels:
            if label not in finders:
                finders[label] = _words_of(label).search
            if finders[label](whole):
                places.append(row)
                break
    message = "the name of the label stands in the text: is that so where the model will be asked?"
    return sound.warn("label_in_text", places, message)


def _words_of(label: str) -> re.Pattern[str]:
    """The words of a label, one after another, whatever stands between them."""
    words = [re.escape(word) for word in re.split(r"[\W_]+", label.strip()) if word]
    pattern = r"[\W_]+".join(words)
    return re.compile(rf"(?<!\w){pattern}(?!\w)" if words else r"(?!)", re.IGNORECASE)
