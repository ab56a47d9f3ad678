"""Texts → token ids, as the package reads them or as a request wants them read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tokenizers import Encoding, Tokenizer

from service.inference.prefixes import Beginning, Prefixes
from service.model_package import Manifest, Text


class TokenizerError(Exception):
    """The tokenizer broke off; its own words may hold a part of a text."""


class TokenIds:
    """Token ids of a part of a text.

    The `Encoding` of a text that was too long would keep all of its tokens, a hundred bytes each.
    """

    __slots__ = ("ids", "type_ids")

    def __init__(self, ids: list[int], type_ids: list[int]) -> None:
        self.ids = ids
        self.type_ids = type_ids

    def __len__(self) -> int:
        return len(self.ids)


Window: TypeAlias = Encoding | TokenIds


class EncodedText(NamedTuple):
    """A text as the model reads it.

    `windows` holds token ids, not padded, at most `max_length` a window: more than one only where
    the package reads long texts by windows. `truncated` says that the rest was cut off.
    """

    windows: tuple[Window, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TokenizationOptions:
    """How a request wants its texts read, where that is not how the package reads them.

    `keep_end` says whether the beginning of a text that is too long is cut off, or its end; None
    leaves it to the package. `max_length` is in tokens, special ones included, and at most the
    package's: of each text that many are read, in one window. Without `add_special_tokens` a text
    has none.
    """

    keep_end: bool | None = None
    max_length: int | None = None
    add_special_tokens: bool = True


AS_PACKAGED = TokenizationOptions()


class TextEncoder:
    """Makes token ids of texts; threads may use it side by side, as it changes no tokenizer.

    Args:
        manifest: how long texts are read.
        tokenizer: it states its truncation, and pads nothing.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        self._manifest = manifest
        # Asked of every request; the tokenizer would make a new dict each time.
        self._keeps_end = bool(tokenizer.truncation and tokenizer.truncation["direction"] == "left")
        self._tokenizer = tokenizer
        self._prefixes = Prefixes(tokenizer)
        self._whole_tokenizer: Tokenizer | None = None
        self._copying = threading.Lock()

    def encode(
        self, texts: Sequence[Text], options: TokenizationOptions = AS_PACKAGED
    ) -> list[EncodedText]:
        """Each text, or pair, as token ids.

        Threads may call this side by side: a tokenizer is never changed once it is made.

        Args:
            texts: texts, or pairs where the package was made for pairs.
            options: what is to be otherwise than in the package. The first call that cuts texts
                otherwise copies the tokenizer, unless `prepare` has.

        Raises:
            TokenizerError: the tokenizer broke off.
        """
        special = options.add_special_tokens
        if self._cuts_otherwise(options):
            limit = options.max_length or self._manifest.max_length
            keep_end = self._keeps_end if options.keep_end is None else options.keep_end
            encodings = _read(self._whole(), texts, special=special)
            return [cut(encoding, limit, keep_end=keep_end) for encoding in encodings]
        if not special:
            return self._encode_whole(texts, special=False)
        beginnings = [self.beginning(text) for text in texts]
        encoded = self.encode_beginnings(beginnings)
        for index in self.unsettled(beginnings, encoded):
            encoded[index] = self._encode_more(texts[index])
        return encoded

    def reads_beginnings(self, options: TokenizationOptions) -> bool:
        """Whether the beginning of a text may decide how it is read."""
        return options.add_special_tokens and not self._cuts_otherwise(options)

    def beginning(self, text: Text, *, tokens: int | None = None) -> Beginning:
        """As much of a text as is likely to decide how it is read; often all of it.

        Args:
            text: a text, or a pair, which is always read whole.
            tokens: how many to allow for; `max_length` by default.
        """
        if isinstance(text, str) and self._manifest.long_text == "truncate":
            return self._prefixes.of(text, tokens or self._manifest.max_length)
        return Beginning(text, True)

    @staticmethod
    def unsettled(beginnings: Sequence[Beginning], encoded: Sequence[EncodedText]) -> list[int]:
        """Which of the texts must be read further: they were cut, and have room for more tokens."""
        return [
            index
            for index, (beginning, text) in enumerate(zip(beginnings, encoded, strict=True))
            if not (beginning.is_whole or text.truncated)
        ]

    def encode_beginnings(self, beginnings: Sequence[Beginning]) -> list[EncodedText]:
        """The same as token ids; of those that are `unsettled`, the answer is still to come."""
        return self._encode_whole([beginning.text for beginning in beginnings])

    def _encode_more(self, text: Text) -> EncodedText:
        """A text whose beginning was too short: twice as much each time, so twice the work."""
        tokens = 2 * self._manifest.max_length
        while True:
            beginning = self.beginning(text, tokens=tokens)
            (encoded,) = self.encode_beginnings([beginning])
            if not self.unsettled([beginning], [encoded]):
                return encoded
            tokens *= 2

    def _encode_whole(self, texts: Sequence[Text], *, special: bool = True) -> list[EncodedText]:
        encodings = _read(self._tokenizer, texts, special=special)
        return [self._windows(encoding) for encoding in encodings]

    @property
    def special_tokens(self) -> int:
        """How many tokens each text, or pair, has besides its own."""
        return int(self._tokenizer.num_special_tokens_to_add(self._manifest.has_pairs))

    def is_prepared(self, options: TokenizationOptions) -> bool:
        """Whether `encode` with these options does its own work only."""
        return self._whole_tokenizer is not None or not self._cuts_otherwise(options)

    def prepare(self, options: TokenizationOptions) -> None:
        """Do what the first call with such options would have to: 0.1 s for a large vocabulary."""
        if self._cuts_otherwise(options):
            self._whole()

    def _cuts_otherwise(self, options: TokenizationOptions) -> bool:
        if options is AS_PACKAGED:
            return False
        if options.max_length is not None:
            return True
        # By windows nothing is cut off, on whichever side.
        by_windows = self._manifest.long_text == "window"
        return not by_windows and options.keep_end not in (None, self._keeps_end)

    def _windows(self, encoding: Encoding) -> EncodedText:
        """What is read of a text, and nothing of it that is not."""
        rest = encoding.overflowing
        if not rest:
            return EncodedText((encoding,), truncated=False)
        if self._manifest.long_text == "window":
            windows = tuple(TokenIds(part.ids, part.type_ids) for part in (encoding, *rest))
            return EncodedText(windows, truncated=False)
        return EncodedText((TokenIds(encoding.ids, encoding.type_ids),), truncated=True)

    def _whole(self) -> Tokenizer:
        """A copy of the tokenizer that cuts nothing off: a limit cannot be given with a call."""
        with self._copying:
            if self._whole_tokenizer is None:
                copy = Tokenizer.from_str(self._tokenizer.to_str())
                copy.no_truncation()
                self._whole_tokenizer = copy
        return self._whole_tokenizer


def _read(tokenizer: Tokenizer, texts: Sequence[Text], *, special: bool) -> list[Encoding]:
    try:
        encodings: list[Encoding] = tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=special
        )
    except BaseException as raised:
        # A panic of Rust, such as at a pattern that is tried too often, is no Exception: nothing
        # would catch it, and it would end the thread.
        if type(raised).__name__ != "PanicException":
            raise
        raise TokenizerError("the tokenizer broke off") from None
    return encodings


def cut(encoding: Encoding, limit: int, *, keep_end: bool) -> EncodedText:
    """At most `limit` tokens of a text or pair, special ones included, as `tokenizers` cuts them.

    Args:
        encoding: the text or pair whole.
        limit: at least its special tokens.
        keep_end: cut off the beginning, not the end.
    """
    if len(encoding) <= limit:
        return EncodedText((encoding,), truncated=False)
    # For each token 0 or 1, its text's place in the pair, or None: a special one.
    places = encoding.sequence_ids
    lengths = places.count(0), places.count(1)
    kept = longest_first(*lengths, limit - places.count(None))
    spans = []
    for place in (0, 1):
        first = places.index(place) if lengths[place] else 0
        first += lengths[place] - kept[place] if keep_end else 0
        spans.append(range(first, first + kept[place]))
    chosen = [index for index, place in enumerate(places) if place is None or index in spans[place]]
    ids, type_ids = encoding.ids, encoding.type_ids
    window = TokenIds([ids[index] for index in chosen], [type_ids[index] for index in chosen])
    return EncodedText((window,), truncated=True)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept where `room` are: the longer one gives way.

    By the strategy that every package states; a single text is a pair with nothing.
    """
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)
