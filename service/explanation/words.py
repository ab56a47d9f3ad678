"""The words of a text that a model reads, where they stand, and the text without some of them.

Words are those of the package's tokenizer, all pieces of a word together. A word ends at white
space even where the tokenizer has no words of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.inference.tokenizing import AS_PACKAGED, TextEncoder, TokenizationOptions
from service.package.manifest import Text

NOT_SPACE = re.compile(r"\S+")
# A sentence ends with one of these, before white space or at the end.
SENTENCE_END = frozenset(".!?…")
# These end a sentence whatever follows.
WIDE_SENTENCE_END = frozenset("。！？")  # noqa: RUF001
# A sentence with more words is divided.
MOST_SENTENCE_WORDS = 32
# What a removed word leaves, so that its neighbors do not become one word.
REMOVED = " "


class Span(NamedTuple):
    """Characters of a text, from `start` to before `end`, counted in code points.

    `text` is 0, and 1 for the second text of a pair.
    """

    text: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A text or pair, and the words of it that the model reads, in order."""

    texts: tuple[str, ...]
    words: tuple[Span, ...]

    def without(self, spans: Iterable[Span]) -> Text:
        """The text or pair with a space in place of each of the spans."""
        return self._cut(spans, [(0, len(text)) for text in self.texts])

    def read_without(self, spans: Iterable[Span]) -> Text:
        """Like `without`, and also without what the model did not read, which would move up."""
        return self._cut(spans, self._read_ranges())

    def _read_ranges(self) -> list[tuple[int, int]]:
        """Of each text the range that the model read."""
        ranges = []
        for number in range(len(self.texts)):
            own = [word for word in self.words if word.text == number]
            ranges.append((own[0].start, own[-1].end) if own else (0, 0))
        return ranges

    @property
    def is_all_read(self) -> bool:
        """Whether the model read everything but white space."""
        return all(
            self.texts[number].strip() == self.texts[number][start:end].strip()
            for number, (start, end) in enumerate(self._read_ranges())
        )

    def _cut(self, spans: Iterable[Span], ranges: Sequence[tuple[int, int]]) -> Text:
        gone = sorted(spans)
        parts = []
        for number, (text, (start, end)) in enumerate(zip(self.texts, ranges, strict=True)):
            kept = []
            for span in gone:
                if span.text == number:
                    kept += [text[start : span.start], REMOVED]
                    start = span.end
            parts.append("".join([*kept, text[start:end]]))
        return (parts[0], parts[1]) if len(parts) == 2 else parts[0]

    def leaves_words(self, spans: Iterable[Span]) -> bool:
        """Whether each text still has a word without the spans."""
        rest = set(self.words) - set(spans)
        return {word.text for word in rest} == {word.text for word in self.words}

    def sentences(self, most: int) -> list[tuple[Span, ...]]:
        """The words by sentence, in order; neighbors are joined where there are more than `most`.

        The last sentence of a text ends with it.
        """
        sentences: list[list[Span]] = []
        for word in self.words:
            last = sentences[-1] if sentences else []
            if not last or len(last) == MOST_SENTENCE_WORDS or self._ends(last[-1], word):
                sentences.append([word])
            else:
                last.append(word)
        each = -(-len(sentences) // max(1, most))
        groups = [sentences[first : first + each] for first in range(0, len(sentences), each)]
        return [tuple(word for sentence in group for word in sentence) for group in groups]

    def _ends(self, word: Span, following: Span) -> bool:
        """Whether a sentence ends between two neighboring words."""
        if word.text != following.text:
            return True
        text = self.texts[word.text]
        between = text[word.end : following.start]
        last = text[word.end - 1]
        return (
            last in WIDE_SENTENCE_END
            or "\n" in between
            or (last in SENTENCE_END and between[:1].isspace())
        )


def read_passage(
    encoder: TextEncoder, text: Text, options: TokenizationOptions = AS_PACKAGED
) -> Passage:
    """A text or pair with the words that the model reads of it.

    Args:
        encoder: the tokenizer of the package. Its first call copies the tokenizer.
        options: how the text is read.

    Raises:
        TokenizerError: the tokenizer crashed.
    """
    texts = (text,) if isinstance(text, str) else text
    encoding, kept = encoder.encode_with_offsets(text, options)
    sequences, words, offsets = encoding.sequence_ids, encoding.word_ids, encoding.offsets
    spans: list[Span] = []
    previous: tuple[int, int | None] | None = None
    for index in kept:
        sequence = sequences[index]
        if sequence is None:
            continue
        start, end = offsets[index]
        name = sequence, words[index]
        if name == previous:
            spans[-1] = spans[-1]._replace(end=max(end, spans[-1].end))
        else:
            spans.append(Span(sequence, start, end))
        previous = name
    return Passage(tuple(texts), tuple(_without_spaces(texts, spans)))


def _without_spaces(texts: Sequence[str], spans: Iterable[Span]) -> Iterable[Span]:
    """The spans divided at white space, which belongs to none of them."""
    end = {0: 0, 1: 0}
    for text, start, stop in spans:
        # Pieces of one character may share its place.
        for part in NOT_SPACE.finditer(texts[text], max(start, end[text]), max(stop, end[text])):
            yield Span(text, part.start(), part.end())
        end[text] = max(stop, end[text])
