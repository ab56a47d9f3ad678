"""Tests of a model's behavior, run on a package: the tables are those of `behavior_file`.

whetstone evaluate PACKAGE test.csv --behaviour behavior.yaml
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.inference.classifier import Classifier, Prediction
from service.package.manifest import Text
from training.common.errors import DataError
from training.evaluation.behavior_file import (
    Change,
    Direction,
    Invariance,
    MustHave,
    read_behavior,
)

# Long enough that two inner letters can be swapped and the word can still be read.
TYPO_WORD = re.compile(r"[^\W\d_]{5,}")
TYPO_WORDS = 2


@dataclass(frozen=True)
class CaseResult:
    """The result of one case; `text`, `expected` and `got` are for people."""

    kind: str
    name: str
    passed: bool
    text: str
    expected: str
    got: str


def run_behavior(path: Path, classifier: Classifier) -> dict[str, Any]:
    """Run every case of a file.

    Returns:
        How many cases passed and failed, also by kind and by test, and the failures.

    Raises:
        DataError: the file or a test cannot be used.
    """
    tests = read_behavior(path, classifier.manifest)
    for test in tests.invariance:
        if not list(_variants(test)):
            raise DataError(
                f"{path}, {test.name!r}: the change leaves each of its texts as it is, so nothing "
                "would be tested: give texts that it changes"
            )
    results = [
        *_must_have(tests.must_have, classifier),
        *_invariance(tests.invariance, classifier),
        *_direction(tests.direction, classifier),
    ]
    by_kind: dict[str, list[CaseResult]] = {}
    by_test: dict[tuple[str, str], list[CaseResult]] = {}
    for result in results:
        by_kind.setdefault(result.kind, []).append(result)
        by_test.setdefault((result.kind, result.name), []).append(result)
    return {
        **_counts(results),
        "kinds": {kind: _counts(cases) for kind, cases in by_kind.items()},
        "tests": [
            {"kind": kind, "name": name} | _counts(cases) for (kind, name), cases in by_test.items()
        ],
        "failures": [
            {name: getattr(result, name) for name in ("kind", "name", "text", "expected", "got")}
            for result in results
            if not result.passed
        ],
    }


def _counts(results: Sequence[CaseResult]) -> dict[str, int]:
    passed = sum(result.passed for result in results)
    return {"passed": passed, "failed": len(results) - passed}


def _must_have(tests: Sequence[MustHave], classifier: Classifier) -> Iterator[CaseResult]:
    cases = [(test.name, case) for test in tests for case in test.cases]
    texts: list[Text] = [
        case.text if case.text_pair is None else (case.text, case.text_pair) for _, case in cases
    ]
    for (name, case), answer in zip(cases, classifier.classify(texts), strict=True):
        expected = frozenset([case.label] if case.label is not None else case.labels or ())
        passed = expected == answer.answer
        yield CaseResult(
            "must_have", name, passed, case.text, _in_words(expected), _in_words(answer.answer)
        )


def _invariance(tests: Sequence[Invariance], classifier: Classifier) -> Iterator[CaseResult]:
    pairs = [(test.name, before, after) for test in tests for before, after in _variants(test)]
    for (name, before, after), old, new in _answer_pairs(pairs, classifier):
        same = old.answer == new.answer
        expected = f"{_in_words(old.answer)}, as for {before!r}"
        yield CaseResult("invariance", name, same, after, expected, _in_words(new.answer))


def _direction(tests: Sequence[Direction], classifier: Classifier) -> Iterator[CaseResult]:
    cases = [(test, case) for test in tests for case in test.cases]
    pairs = [(test.name, case.before, case.after) for test, case in cases]
    for (test, case), (_, old, new) in zip(cases, _answer_pairs(pairs, classifier), strict=True):
        column = classifier.manifest.labels.index(test.label)
        before, after = float(old.probs[column]), float(new.probs[column])
        # Probabilities are float32: 0.9 - 0.2 must not fall short of 0.7.
        moved = round(after - before if case.change == "up" else before - after, 6)
        passed = moved >= test.by and moved > 0
        least = f" by at least {test.by:g}" if test.by else ""
        expected = f"{test.label} {case.change}{least} from {before:.3f}, as of {case.before!r}"
        yield CaseResult("direction", test.name, passed, case.after, expected, f"{after:.3f}")


def _answer_pairs(
    pairs: Sequence[tuple[str, str, str]], classifier: Classifier
) -> Iterator[tuple[tuple[str, str, str], Prediction, Prediction]]:
    """Each pair with the answers to its two texts."""
    before = classifier.classify([pair[1] for pair in pairs])
    after = classifier.classify([pair[2] for pair in pairs])
    yield from zip(pairs, before, after, strict=True)


def _variants(test: Invariance) -> Iterator[tuple[str, str]]:
    """Pairs of a text and its changed form; a change without effect is no case."""
    if test.groups is not None:
        for first, *others in test.groups:
            yield from ((first, other) for other in others)
    for text in test.texts or []:
        changed = [CHANGES[test.change](text)] if test.change is not None else []
        if test.replace is not None:
            changed = [
                _replaced(text, old, new) for old in test.replace.old for new in test.replace.new
            ]
        yield from ((text, other) for other in changed if other != text)


def _replaced(text: str, old: str, new: str) -> str:
    """The text with `new` for each `old` that is a word of its own: Ann does not match Anna."""
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text)


def with_typos(text: str) -> str:
    """The text with two inner letters swapped in each of its two longest words, by a fixed seed."""
    letters = list(text)
    generator = random.Random(text)  # noqa: S311 - nothing secret
    spans = sorted(
        (match.span() for match in TYPO_WORD.finditer(text)), key=lambda span: span[0] - span[1]
    )
    for start, end in spans[:TYPO_WORDS]:
        places = [place for place in range(start + 1, end - 2) if text[place] != text[place + 1]]
        if places:
            place = generator.choice(places)
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


def _without_punctuation(text: str) -> str:
    """The text without its final punctuation, or with a full stop where it had none."""
    stripped = text.rstrip(".!?… ")
    return stripped if stripped != text else text + "."


CHANGES: dict[Change, Callable[[str], str]] = {
    "typos": with_typos,
    "lowercase": str.lower,
    "uppercase": str.upper,
    "punctuation": _without_punctuation,
    "whitespace": lambda text: f"  {text.replace(' ', '  ')}\n",
}


def _in_words(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "no label"
