"""Texts → token ids, as the package reads them or as a request asks for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

from tokenizers import Encoding, Tokenizer

from service.inference.errors import TokenizerError
from service.inference.pieces import PieceCounter
from service.inference.prefixes import Beginning, Prefixes
from service.package.manifest import Manifest, Text


class TokenIds:
    """Token ids of a part of a text.

    The `Encoding` of a text that was cut off would keep all of its tokens, a hundred bytes each.
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

    `windows` holds token ids without padding, at most `max_length` in a window. There is more than
    one window only where the package reads long texts by windows. `truncated` says that the rest
    of the text was cut off.
    """

    windows: tuple[Window, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TokenizationOptions:
    """How a request wants its texts read, where this differs from the package.

    `keep_end` says that a text that is too long loses its beginning, not its end; None leaves the
    choice to the package. `max_length` is in tokens, special tokens included, and at most the
    package's; with it, each text is read in one window. `add_special_tokens` is false for texts
    without special tokens.
    """

    keep_end: bool | None = None
    max_length: int | None = None
    add_special_tokens: bool = True


AS_PACKAGED = TokenizationOptions()


class TextEncoder:
    """Makes token ids of texts. It never changes a tokenizer, so several threads may use it.

    Args:
        manifest: says how long texts are read.
        tokenizer: states its truncation, and does not pad.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        self._manifest = manifest
        # Read once: every request needs it, and the tokenizer would make a new dict each time.
        self._keeps_end = bool(tokenizer.truncation and tokenizer.truncation["direction"] == "left")
        self._tokenizer = tokenizer
        self._prefixes = Prefixes(tokenizer)
        self._untruncated: Tokenizer | None = None
        self._copying = threading.Lock()

    def encode(
        self, texts: Sequence[Text], options: TokenizationOptions = AS_PACKAGED
    ) -> list[EncodedText]:
        """Each text, or pair, as token ids.

        Args:
            texts: texts, or pairs where the package reads pairs.
            options: the differences from the package. The first call that truncates otherwise
                copies the tokenizer, unless `prepare` has done so.

        Raises:
            TokenizerError: the tokenizer crashed.
        """
        special = options.add_special_tokens
        if self._truncates_otherwise(options):
            limit = options.max_length or self._manifest.max_length
            keep_end = self._keeps_end if options.keep_end is None else options.keep_end
            encodings = _encode(self._without_truncation(), texts, special=special)
            return [truncate(encoding, limit, keep_end=keep_end) for encoding in encodings]
        if not special:
            return self._encode_whole(texts, special=False)
        beginnings = [self.beginning(text) for text in texts]
        encoded = self.encode_beginnings(beginnings)
        for index in self.unfinished(beginnings, encoded):
            encoded[index] = self._encode_more(texts[index])
        return encoded

    def reads_beginnings(self, options: TokenizationOptions) -> bool:
        """Whether the beginning of a text can suffice with these options."""
        return options.add_special_tokens and not self._truncates_otherwise(options)

    def beginning(self, text: Text, *, tokens: int | None = None) -> Beginning:
        """The part of a text that is likely to suffice; often all of it.

        Args:
            text: a text, or a pair, which is always read whole.
            tokens: how many tokens are needed; `max_length` by default.
        """
        if isinstance(text, str) and self._manifest.long_text == "truncate":
            return self._prefixes.of(text, tokens or self._manifest.max_length)
        return Beginning(text, True)

    @staticmethod
    def unfinished(beginnings: Sequence[Beginning], encoded: Sequence[EncodedText]) -> list[int]:
        """The indices of the texts whose beginning did not suffice: they have room for tokens."""
        return [
            index
            for index, (beginning, text) in enumerate(zip(beginnings, encoded, strict=True))
            if not (beginning.is_whole or text.truncated)
        ]

    def encode_beginnings(self, beginnings: Sequence[Beginning]) -> list[EncodedText]:
        """Beginnings as token ids; for those that are `unfinished` this is not the answer yet."""
        return self._encode_whole([beginning.text for beginning in beginnings])

    def _encode_more(self, text: Text) -> EncodedText:
        """A text whose beginning did not suffice; reads twice as much each time."""
        tokens = 2 * self._manifest.max_length
        while True:
            beginning = self.beginning(text, tokens=tokens)
            (encoded,) = self.encode_beginnings([beginning])
            if not self.unfinished([beginning], [encoded]):
                return encoded
            tokens *= 2

    def _encode_whole(self, texts: Sequence[Text], *, special: bool = True) -> list[EncodedText]:
        encodings = _encode(self._tokenizer, texts, special=special)
        return [self._windows(encoding) for encoding in encodings]

    @property
    def special_tokens(self) -> int:
        """How many special tokens each text, or pair, has."""
        return int(self._tokenizer.num_special_tokens_to_add(self._manifest.has_pairs))

    @cached_property
    def pieces(self) -> PieceCounter:
        """Counts unknown tokens, and pieces of words, of what this makes."""
        return PieceCounter.of(self._tokenizer)

    def encode_with_offsets(
        self, text: Text, options: TokenizationOptions
    ) -> tuple[Encoding, list[int]]:
        """All tokens of a text or pair with their places, and the indices of those that are read.

        The first call copies the tokenizer, as `prepare` does.

        Raises:
            TokenizerError: the tokenizer crashed.
        """
        special = options.add_special_tokens
        (encoding,) = _encode(self._without_truncation(), [text], special=special, offsets=True)
        if self._manifest.long_text == "window" and options.max_length is None:
            return encoding, list(range(len(encoding)))
        limit = options.max_length or self._manifest.max_length
        keep_end = self._keeps_end if options.keep_end is None else options.keep_end
        return encoding, kept_tokens(encoding, limit, keep_end=keep_end)

    def is_prepared(self, options: TokenizationOptions) -> bool:
        """Whether `encode` with these options need not copy the tokenizer first."""
        return self._untruncated is not None or not self._truncates_otherwise(options)

    def prepare(self, options: TokenizationOptions) -> None:
        """Copy the tokenizer where `encode` needs it: 0.1 s with a large vocabulary."""
        if self._truncates_otherwise(options):
            self._without_truncation()

    def _truncates_otherwise(self, options: TokenizationOptions) -> bool:
        """Whether these options truncate texts differently from the package."""
        if options is AS_PACKAGED:
            return False
        if options.max_length is not None:
            return True
        # Windows read a text to its end, so there is no side to cut.
        by_windows = self._manifest.long_text == "window"
        return not by_windows and options.keep_end not in (None, self._keeps_end)

    def _windows(self, encoding: Encoding) -> EncodedText:
        """The token ids that the model reads; no other tokens are kept in memory."""
        rest = encoding.overflowing
        if not rest:
            return EncodedText((encoding,), truncated=False)
        if self._manifest.long_text == "window":
            windows = tuple(TokenIds(part.ids, part.type_ids) for part in (encoding, *rest))
            return EncodedText(windows, truncated=False)
        return EncodedText((TokenIds(encoding.ids, encoding.type_ids),), truncated=True)

    def _without_truncation(self) -> Tokenizer:
        """A copy of the tokenizer that does not truncate: a call cannot set another limit."""
        with self._copying:
            if self._untruncated is None:
                copy = Tokenizer.from_str(self._tokenizer.to_str())
                copy.no_truncation()
                self._untruncated = copy
        return self._untruncated


def _encode(
    tokenizer: Tokenizer, texts: Sequence[Text], *, special: bool, offsets: bool = False
) -> list[Encoding]:
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    try:
        encodings: list[Encoding] = encode(list(texts), add_special_tokens=special)
    except BaseException as error:
        # A panic of Rust, such as a pattern that backtracks too often, is no Exception. Nothing
        # would catch it, and it would end the thread.
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError("the tokenizer crashed") from None
    return encodings


def truncate(encoding: Encoding, limit: int, *, keep_end: bool) -> EncodedText:
    """At most `limit` tokens of a text or pair, truncated as `tokenizers` does it.

    Args:
        encoding: the whole text or pair.
        limit: tokens, special ones included; at least the special ones.
        keep_end: cut off the beginning instead of the end.
    """
    if len(encoding) <= limit:
        return EncodedText((encoding,), truncated=False)
    chosen = kept_tokens(encoding, limit, keep_end=keep_end)
    ids, type_ids = encoding.ids, encoding.type_ids
    window = TokenIds([ids[index] for index in chosen], [type_ids[index] for index in chosen])
    return EncodedText((window,), truncated=True)


def kept_tokens(encoding: Encoding, limit: int, *, keep_end: bool) -> list[int]:
    """The indices of the tokens that `truncate` keeps."""
    if len(encoding) <= limit:
        return list(range(len(encoding)))
    # For each token: 0 or 1, the text of the pair that it belongs to, or None for a special token.
    sequences = encoding.sequence_ids
    lengths = sequences.count(0), sequences.count(1)
    kept = longest_first(*lengths, limit - sequences.count(None))
    spans = []
    for sequence in (0, 1):
        first = sequences.index(sequence) if lengths[sequence] else 0
        first += lengths[sequence] - kept[sequence] if keep_end else 0
        spans.append(range(first, first + kept[sequence]))
    return [
        index
        for index, sequence in enumerate(sequences)
        if sequence is None or index in spans[sequence]
    ]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps when there is room for `room`.

    The longer text is cut first, as the strategy in every package demands. For a single text the
    other length is 0.
    """
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)
