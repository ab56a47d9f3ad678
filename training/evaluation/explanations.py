"""Which words decide: explanations of the most confident errors and of a sample of the rows.

Explanations ask the model many times. Their number is bounded, and so are the tokens.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.explanation.explain import Bounds, Explanation
from service.explanation.local import explain_text
from service.inference.classifier import Classifier
from service.package.manifest import Text
from training.common.progress import progress
from training.evaluation.report.rows import Measured, confident_errors

ERRORS = 20
SAMPLED_ROWS = 100
BOUNDS = Bounds(words=48, texts=96)
# Tokens that the model reads for all explanations of a report, about: half a minute of one core.
MOST_TOKENS = 150_000
WORDS_OF_A_LABEL = 8
# A word must decide so many of a label's rows, and this share of them, for a finding.
FEWEST_ROWS = 5
LARGE_SHARE = 0.25

GREETINGS = frozenset(
    [
        "hi",
        "hello",
        "hey",
        "dear",
        "greetings",
        "regards",
        "sincerely",
        "cheers",
        "yours",
        "hallo",
        "hola",
        "bonjour",
        "ciao",
    ]
)
HAS_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class DecidingWord:
    """A word of lower case, in how many rows it decides, and its mean contribution there."""

    word: str
    rows: int
    contribution: float


@dataclass(frozen=True)
class LabelWords:
    """The words that most often decide for a label, of `rows` explained rows.

    `findings` are sentences about words that should not matter.
    """

    label: str
    rows: int
    words: tuple[DecidingWord, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class RowExplanations:
    """`errors` are by row; `labels` are in the order of the package, without those unexplained."""

    errors: Mapping[int, Explanation]
    labels: tuple[LabelWords, ...]
    sampled: int


def explain_rows(classifier: Classifier, measured: Measured) -> RowExplanations:
    """Explain the answers to the most confident errors and to evenly spaced rows."""
    count = len(measured.split)
    errors = confident_errors(measured)[:ERRORS]
    step = max(1, count // SAMPLED_ROWS)
    sample = list(range(0, count, step))[:SAMPLED_ROWS]
    left = MOST_TOKENS
    explained: dict[int, Explanation] = {}
    rows = list(dict.fromkeys([*errors, *sample]))
    with progress(len(rows), "explain", "text", leave=False) as bar:
        for row in rows:
            tokens = measured.answers[row].tokens
            if left < tokens:
                break
            explanation = explain_text(
                classifier, measured.split.texts[row], bounds=_bounds(tokens)
            )
            left -= tokens * (explanation.texts_asked + 1)
            explained[row] = explanation
            bar.update(1)
    sampled = [row for row in sample if row in explained]
    return RowExplanations(
        {row: explained[row] for row in errors if row in explained},
        tuple(_words_by_label(measured, {row: explained[row] for row in sampled})),
        len(sampled),
    )


def _bounds(tokens: int) -> Bounds:
    """Fewer texts where each of them is long."""
    return BOUNDS._replace(texts=max(8, min(BOUNDS.texts, MOST_TOKENS // 10 // max(1, tokens))))


def deciding(explanation: Explanation) -> list[int]:
    """Places of the words that decide: without them the label changes, or else the first one."""
    if explanation.counterfactual is not None:
        return list(explanation.counterfactual.words)
    supports = [place for place in explanation.order if explanation.words[place].contribution > 0]
    return supports[:1]


def word_at(text: Text, explanation: Explanation, place: int) -> str:
    """A word of a text or pair, as it is written."""
    span = explanation.words[place].span
    parts = (text,) if isinstance(text, str) else text
    return parts[span.text][span.start : span.end]


def _words_by_label(
    measured: Measured, explained: Mapping[int, Explanation]
) -> Iterable[LabelWords]:
    by_label: dict[str, list[int]] = defaultdict(list)
    for row, explanation in explained.items():
        if explanation.label in measured.answers[row].answer:
            by_label[explanation.label].append(row)
    for label in measured.manifest.labels:
        rows = by_label.get(label, [])
        if rows:
            yield _label_words(label, measured.split.texts, {row: explained[row] for row in rows})


def _label_words(
    label: str, texts: Sequence[Text], explained: Mapping[int, Explanation]
) -> LabelWords:
    weights: dict[str, list[float]] = defaultdict(list)
    kinds: Counter[str] = Counter()
    for row, explanation in explained.items():
        words: dict[str, float] = {}
        for place in deciding(explanation):
            word = word_at(texts[row], explanation, place).lower()
            words[word] = words.get(word, 0.0) + explanation.words[place].contribution
        for word, weight in words.items():
            weights[word].append(weight)
        kinds.update({kind for kind in map(irrelevant_kind, words) if kind is not None})
    ranked = sorted(weights, key=lambda word: (-len(weights[word]), -sum(weights[word]), word))
    deciding_words = tuple(
        DecidingWord(word, len(weights[word]), sum(weights[word]) / len(weights[word]))
        for word in ranked[:WORDS_OF_A_LABEL]
    )
    findings = tuple(
        f"{kind} decides {rows} of {len(explained)} explained rows: check that it should"
        for kind, rows in sorted(kinds.items())
        if rows >= FEWEST_ROWS and rows >= LARGE_SHARE * len(explained)
    )
    return LabelWords(label, len(explained), deciding_words, findings)


def irrelevant_kind(word: str) -> str | None:
    """What a word of lower case is that should seldom decide; None for any other word."""
    if HAS_DIGIT.search(word):
        return "a number"
    return "a greeting or a signature" if word in GREETINGS else None
