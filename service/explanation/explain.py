"""The words that decide an answer: what changes when a word is not there.

A model in ONNX has no gradients, so words are erased and the model is asked again (Li, Monroe and
Jurafsky, "Understanding Neural Networks through Representation Erasure", arXiv:1612.08220, 2016).
The contribution of a word is the calibrated log-odds of the label minus those without the word. A
positive contribution speaks for the label, a negative one against it.

How faithful such words are is measured by removing them, most important first, and following the
probability (`comprehensiveness` in DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized
NLP Models", ACL 2020).

A word is erased by the mask token where the tokenizer has one: the other words then keep their
places, and no two words become neighbors that nobody wrote together. Without a mask token the word
is removed. The words whose removal changes the label are always removed, not masked: whoever sends
the remaining text gets the other answer.

The algorithm is a generator that yields texts and is sent what the model answers. So the server
asks its queue, and the report asks a `Classifier`. The same answers give the same explanation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.explanation.log_odds import Doubles
from service.explanation.words import REMOVED, Passage, Span
from service.inference.decisions import Decision
from service.package.manifest import Text

# The words that are tried in one step towards another label, and the number of such steps.
CANDIDATES = 3
STEPS = 4
# Shares of the budget: for sentences, and for sentences and words together. The rest is for groups.
SENTENCE_SHARE = 0.25
WORD_SHARE = 0.75


class Judged(NamedTuple):
    """The answer to one text, and the calibrated log-odds of each label, of shape (labels,)."""

    log_odds: Doubles
    decision: Decision


class Weighed(NamedTuple):
    """A word or a sentence, and its contribution to the log-odds of the label."""

    span: Span
    contribution: float


class Counterfactual(NamedTuple):
    """Words without which the label changes: their places in `words`, and the other answer."""

    words: tuple[int, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text has a label, or has not.

    `words` are in the order of the text: all that the model read, or those of the sentences that
    matter. `sentences` are given where not all words were weighed. `order` has the places of all
    `words`, the most important first. `counterfactual` is None where none was found in the budget.
    `texts_asked` counts the texts that the model was asked about, in addition to the whole text.
    """

    label: str
    log_odds: float
    words: tuple[Weighed, ...]
    sentences: tuple[Weighed, ...]
    order: tuple[int, ...]
    counterfactual: Counterfactual | None
    texts_asked: int


class Bounds(NamedTuple):
    """How many words are weighed, and how many texts the model is asked about, at most."""

    words: int
    texts: int


@dataclass(frozen=True, slots=True)
class Question:
    """What is explained.

    `label` is the place of the label in the package. `mask` replaces a word that is weighed.
    """

    passage: Passage
    whole: Judged
    name: str
    label: int
    bounds: Bounds
    mask: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether the label is answered."""
        return self.name in self.whole.decision.answer

    def support(self, judged: Judged) -> float:
        """How much an answer speaks for what is answered now: the label, or its absence."""
        log_odds = float(judged.log_odds[self.label])
        return log_odds if self.is_given else -log_odds

    def changes(self, judged: Judged) -> bool:
        """Whether an answer differs in this label."""
        return (self.name in judged.decision.answer) != self.is_given


Steps = Generator[list[Text], Sequence[Judged], Explanation]
Asking = Generator[list[Text], Sequence[Judged], list[Judged]]


def explain(question: Question) -> Steps:
    """Yields texts, is sent the answer to each of them, and returns the explanation."""
    budget = _Budget(question.bounds.texts)
    words = question.passage.words
    sentences: tuple[Weighed, ...] = ()
    room = min(question.bounds.words, int(question.bounds.texts * WORD_SHARE))
    if len(words) > room:
        most = max(1, int(question.bounds.texts * SENTENCE_SHARE))
        parts = question.passage.sentences(most)
        sentences = yield from _weigh(question, parts, budget)
        room = min(room, int(question.bounds.texts * WORD_SHARE) - len(parts))
        words = _words_that_matter(parts, sentences, room)
    weighed = yield from _weigh(question, [(word,) for word in words], budget)
    search = _Search(question, weighed, budget)
    counterfactual = yield from search.run()
    return Explanation(
        label=question.name,
        log_odds=float(question.whole.log_odds[question.label]),
        words=weighed,
        sentences=sentences,
        order=search.order(),
        counterfactual=counterfactual,
        texts_asked=question.bounds.texts - budget.left,
    )


class _Budget:
    """The number of texts that the model may still be asked about."""

    def __init__(self, texts: int) -> None:
        self.left = texts

    def ask(self, texts: list[Text]) -> Asking:
        """The answers to the first of the texts, as many as are left; none is asked twice."""
        texts = texts[: self.left]
        self.left -= len(texts)
        return list((yield texts)) if texts else []


def _weigh(
    question: Question, parts: Sequence[Sequence[Span]], budget: _Budget
) -> Generator[list[Text], Sequence[Judged], tuple[Weighed, ...]]:
    """The contribution of each part: a word, or the words of a sentence.

    Without a mask token, a part that is all of a text cannot be erased, and is left out.
    """
    replacement = REMOVED if question.mask is None else question.mask
    if question.mask is None:
        parts = [part for part in parts if question.passage.leaves_words(part)]
    texts = [question.passage.without(part, replacement) for part in parts]
    answers = yield from budget.ask(texts)
    before = float(question.whole.log_odds[question.label])
    return tuple(
        Weighed(
            Span(part[0].text, part[0].start, part[-1].end),
            before - float(judged.log_odds[question.label]),
        )
        for part, judged in zip(parts, answers, strict=False)
    )


def _words_that_matter(
    parts: Sequence[Sequence[Span]], sentences: Sequence[Weighed], room: int
) -> tuple[Span, ...]:
    """As many words as there is room for: of the sentences with the largest contributions."""
    ranked = sorted(range(len(sentences)), key=lambda place: -abs(sentences[place].contribution))
    words = [word for place in ranked for word in parts[place]]
    return tuple(sorted(words[: max(1, room)]))


class _Search:
    """Looks for few words whose removal changes the label: greedily, then fewer of them."""

    def __init__(self, question: Question, weighed: Sequence[Weighed], budget: _Budget) -> None:
        self._question = question
        self._spans = [each.span for each in weighed]
        sign = 1 if question.is_given else -1
        self._ranked = sorted(
            range(len(weighed)), key=lambda place: -sign * weighed[place].contribution
        )
        helps = {place for place in self._ranked if sign * weighed[place].contribution > 0}
        self._open = [place for place in self._ranked if place in helps]
        self._chosen: list[int] = []
        self._budget = budget

    def order(self) -> tuple[int, ...]:
        """All words, the most important first: those removed greedily, then by contribution."""
        first = set(self._chosen)
        return (*self._chosen, *(place for place in self._ranked if place not in first))

    def run(self) -> Generator[list[Text], Sequence[Judged], Counterfactual | None]:
        """The words, or None."""
        for _ in range(STEPS):
            tried = [[*self._chosen, place] for place in self._open[:CANDIDATES]]
            answers = yield from self._ask(tried)
            if not answers:
                return None
            best, judged = min(answers, key=lambda each: self._question.support(each[1]))
            self._chosen = best
            self._open.remove(best[-1])
            if self._question.changes(judged):
                return (yield from self._reduce(best, judged))
        # More and more of the other words at once: 1, 2, 4, and so on up to all, or all but one.
        count = len(self._open)
        powers = (1 << power for power in range(count.bit_length()))
        sizes = sorted({*powers, count - 1, count} - {0, -1})
        answers = yield from self._ask([self._chosen + self._open[:size] for size in sizes])
        for group, judged in answers:
            if self._question.changes(judged):
                return (yield from self._reduce(group, judged))
        return None

    def _reduce(
        self, group: list[int], judged: Judged
    ) -> Generator[list[Text], Sequence[Judged], Counterfactual]:
        """Put back words, one at a time, while the label stays changed."""
        while len(group) > 1:
            smaller = [[each for each in group if each != place] for place in group]
            answers = yield from self._ask(smaller)
            enough = [each for each in answers if self._question.changes(each[1])]
            if not enough:
                break
            group, judged = min(enough, key=lambda each: self._question.support(each[1]))
        return Counterfactual(tuple(sorted(group)), judged.decision)

    def _ask(
        self, groups: list[list[int]]
    ) -> Generator[list[Text], Sequence[Judged], list[tuple[list[int], Judged]]]:
        """The groups that leave a word in each text, with the answer without them."""
        passage = self._question.passage
        spans = [[self._spans[place] for place in group] for group in groups]
        able = [index for index, each in enumerate(spans) if passage.leaves_words(each)]
        texts = [passage.without(spans[index]) for index in able]
        answers = yield from self._budget.ask(texts)
        return [(groups[index], judged) for index, judged in zip(able, answers, strict=False)]
