"""The words that decide an answer: what changes when a word is not there.

A model in ONNX has no gradients, so words are erased and the model is asked again (Li, Monroe and
Jurafsky, "Understanding Neural Networks through Representation Erasure", arXiv:1612.08220, 2016).

One text is not enough. Two words that say the same make up for each other, and neither is missed
where only one is erased. So a word is erased from up to three texts: the whole one, the one of this
word alone, and, for the half of the words that support the label most, the text without the other
words of that half. The contribution of a word is the mean difference of the calibrated log-odds of
the label. A positive contribution speaks for the label, a negative one against it. These are few
and fixed ones of the differences whose mean over all sets of words is the Shapley value (Lundberg
and Lee, "A Unified Approach to Interpreting Model Predictions", arXiv:1705.07874, 2017).

How faithful such words are is measured by removing them, most important first, and following the
probability (`comprehensiveness` in DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized
NLP Models", ACL 2020; `benchmarks/explain.py`). A word is removed and not masked. So whoever sends
the text without the words of a counterfactual gets the other answer, and no tokenizer needs a mask
token.

The algorithm is a generator that yields texts and is sent what the model answers. So the server
asks its queue, and the report asks a `Classifier`. The same answers give the same explanation.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.explanation.log_odds import Doubles
from service.explanation.words import Passage, Span
from service.inference.decisions import Decision
from service.package.manifest import Text

# How often the model is asked about a word: with all others, alone, and every other one once more.
TEXTS_PER_WORD = 2.5
# Sizes of the groups of words that are removed together.
GROUPS = (2, 3, 5, 8, 12, 20, 32, 50, 80, 128, 200)
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

    `label` is the place of the label in the package. `takes_empty` says whether the model can be
    asked about a text without words, which then consists of special tokens.
    """

    passage: Passage
    whole: Judged
    name: str
    label: int
    bounds: Bounds
    takes_empty: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the label is answered."""
        return self.name in self.whole.decision.answer

    @property
    def sign(self) -> int:
        """1 where the label is answered: what speaks for it supports the answer; else -1."""
        return 1 if self.is_given else -1

    def odds(self, judged: Judged) -> float:
        """The log-odds of the label."""
        return float(judged.log_odds[self.label])

    def can_be_asked(self, erased: Iterable[Span]) -> bool:
        """Whether the model can be asked about the text without these words."""
        return self.takes_empty or self.passage.leaves_words(erased)

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
    for_words = int(question.bounds.texts * WORD_SHARE)
    room = min(question.bounds.words, max(1, int(for_words / TEXTS_PER_WORD)))
    if len(words) > room:
        most = max(1, int(question.bounds.texts * SENTENCE_SHARE))
        parts = [part for part in question.passage.sentences(most) if question.can_be_asked(part)]
        sentences = yield from _weigh_sentences(question, parts, budget)
        room = min(room, int((for_words - len(parts)) / TEXTS_PER_WORD))
        words = _words_that_matter(parts, sentences, room) if parts else words[:room]
    weighed, deciding = yield from _weigh(question, words, budget)
    search = _Search(question, weighed, deciding, budget)
    counterfactual = yield from search.run()
    return Explanation(
        label=question.name,
        log_odds=question.odds(question.whole),
        words=weighed,
        sentences=sentences,
        order=tuple(search.ranked),
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


def _weigh_sentences(
    question: Question, parts: Sequence[Sequence[Span]], budget: _Budget
) -> Generator[list[Text], Sequence[Judged], tuple[Weighed, ...]]:
    """How the log-odds change without each sentence."""
    answers = yield from budget.ask([question.passage.read_without(part) for part in parts])
    whole = question.odds(question.whole)
    return tuple(
        Weighed(Span(part[0].text, part[0].start, part[-1].end), whole - question.odds(judged))
        for part, judged in zip(parts, answers, strict=False)
    )


def _weigh(
    question: Question, words: Sequence[Span], budget: _Budget
) -> Generator[list[Text], Sequence[Judged], tuple[tuple[Weighed, ...], list[int]]]:
    """The contribution of each word, as far as the budget goes; and where one alone decides.

    The second are the places of the words without which the label changes, the surest first.
    """
    passage, whole = question.passage, question.odds(question.whole)
    words = [word for word in words if question.can_be_asked([word])]
    answers = yield from budget.ask([passage.read_without([word]) for word in words])
    words = words[: len(answers)]
    effects = [[whole - question.odds(judged)] for judged in answers]
    yield from _weigh_alone(question, words, effects, budget)
    yield from _weigh_with_fewer(question, words, effects, budget)
    deciding = [place for place, judged in enumerate(answers) if question.changes(judged)]
    deciding.sort(key=lambda place: question.sign * question.odds(answers[place]))
    return tuple(
        Weighed(word, sum(own) / len(own)) for word, own in zip(words, effects, strict=True)
    ), deciding


def _weigh_alone(
    question: Question, words: Sequence[Span], effects: list[list[float]], budget: _Budget
) -> Generator[list[Text], Sequence[Judged], None]:
    """Add what each word does alone: the log-odds of this word, less those of no word.

    If the model cannot be asked about no word, the mean over all words is subtracted. If the budget
    does not suffice for all of them, nothing is added.
    """
    passage = question.passage
    every = set(passage.words)
    texts = [passage.read_without(every - {word}) for word in words]
    if question.takes_empty:
        texts.append(passage.read_without(every))
    # A text of a pair may lose its only word.
    possible = question.takes_empty or len(passage.texts) == 1
    if not words or not possible or budget.left < len(texts):
        return
    odds = [question.odds(judged) for judged in (yield from budget.ask(texts))]
    nothing = odds.pop() if question.takes_empty else sum(odds) / len(odds)
    for own, alone in zip(effects, odds, strict=True):
        own.append(alone - nothing)


def _weigh_with_fewer(
    question: Question, words: Sequence[Span], effects: list[list[float]], budget: _Budget
) -> Generator[list[Text], Sequence[Judged], None]:
    """Add what each of the more important words does where the others of them are not there."""
    ranked = _ranked(question, [sum(own) for own in effects])
    half = ranked[: -(-len(ranked) // 2)]
    gone = [words[place] for place in half]
    if len(half) < 2 or budget.left <= len(half) or not question.can_be_asked(gone):
        return
    texts = [
        question.passage.read_without([each for each in gone if each != word]) for word in gone
    ]
    answers = yield from budget.ask([question.passage.read_without(gone), *texts])
    without, *one_each = map(question.odds, answers)
    for place, odds in zip(half, one_each, strict=True):
        effects[place].append(odds - without)


def _ranked(question: Question, contributions: Sequence[float]) -> list[int]:
    """Places by how much a word supports what is answered now, the largest support first."""
    places = range(len(contributions))
    return sorted(places, key=lambda place: -question.sign * contributions[place])


def _words_that_matter(
    parts: Sequence[Sequence[Span]], sentences: Sequence[Weighed], room: int
) -> tuple[Span, ...]:
    """As many words as there is room for: of the sentences with the largest contributions."""
    ranked = sorted(range(len(sentences)), key=lambda place: -abs(sentences[place].contribution))
    words = [word for place in ranked for word in parts[place]]
    return tuple(sorted(words[: max(1, room)]))


class _Search:
    """Looks for few words whose removal changes the label.

    First the words that decide alone are tried, then more and more of those that support the label,
    and then fewer of them.
    """

    def __init__(
        self,
        question: Question,
        weighed: Sequence[Weighed],
        deciding: Sequence[int],
        budget: _Budget,
    ) -> None:
        self._question = question
        self._spans = [each.span for each in weighed]
        contributions = [each.contribution for each in weighed]
        self.ranked = _ranked(question, contributions)
        self._supporting = [
            place for place in self.ranked if question.sign * contributions[place] > 0
        ]
        self._deciding = deciding
        self._budget = budget
        # Groups without which the label is known not to change: nobody has to ask again.
        self._known: set[frozenset[int]] = set()
        if question.passage.is_all_read:
            self._known |= {frozenset([place]) for place in self.ranked if place not in deciding}

    def run(self) -> Generator[list[Text], Sequence[Judged], Counterfactual | None]:
        """The words, or None."""
        # Asked once more with what the model did not read: the caller sends that, too.
        for group, judged in (yield from self._ask([[place] for place in self._deciding[:1]])):
            if self._question.changes(judged):
                return Counterfactual(tuple(group), judged.decision)
        most = len(self._supporting)
        if most == len(self._question.passage.words):
            # All of them leave no text. All but one may do.
            most -= 1
        largest = yield from self._ask([self._supporting[:most]])
        if not any(self._question.changes(judged) for _, judged in largest):
            return None
        smaller = [self._supporting[:size] for size in GROUPS if size < most]
        for group, judged in [*(yield from self._ask(smaller)), *largest]:
            if self._question.changes(judged):
                return (yield from self._reduce(group, judged))
        return None

    def _reduce(
        self, group: list[int], judged: Judged
    ) -> Generator[list[Text], Sequence[Judged], Counterfactual]:
        """Put back words, one at a time, while the label stays changed."""
        while True:
            smaller = [[each for each in group if each != place] for place in group]
            answers = yield from self._ask(smaller)
            enough = [each for each in answers if self._question.changes(each[1])]
            if not enough:
                return Counterfactual(tuple(sorted(group)), judged.decision)
            group, judged = min(enough, key=self._support)

    def _support(self, answer: tuple[list[int], Judged]) -> float:
        """How much an answer still speaks for what is answered now."""
        return self._question.sign * self._question.odds(answer[1])

    def _ask(
        self, groups: list[list[int]]
    ) -> Generator[list[Text], Sequence[Judged], list[tuple[list[int], Judged]]]:
        """The groups that leave a word in each text, with the answer without them."""
        passage = self._question.passage
        groups = [group for group in groups if group and frozenset(group) not in self._known]
        spans = [[self._spans[place] for place in group] for group in groups]
        able = [index for index, each in enumerate(spans) if passage.leaves_words(each)]
        texts = [passage.without(spans[index]) for index in able]
        answers = yield from self._budget.ask(texts)
        found = [(groups[index], judged) for index, judged in zip(able, answers, strict=False)]
        self._known |= {frozenset(g) for g, judged in found if not self._question.changes(judged)}
        return found
