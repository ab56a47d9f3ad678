"""Tests of a model's behaviour, run on a package: the tables are those of `behaviour_file`.

whetstone evaluate PACKAGE test.csv --behaviour behaviour.yaml
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.classifier import Classifier, Prediction
from service.model_package import Text
from training.behaviour_file import Change, Direction, Invariance, MustHave, read_behaviour
from training.errors import DataError

# Letters enough that inner ones can be swapped and the word still be read.
TYPO_WORD = re.compile(r"[^\W\d_]{5,}")
TYPO_WORDS = 2


@dataclass(frozen=True)
class Outcome:
    """One case: `text`, `expected` and `got` are for people."""

    kind: str
    name: str
    passed: bool
    text: str
    expected: str
    got: str


def run_behaviour(path: Path, classifier: Classifier) -> dict[str, Any]:
    """Ask every case of a file; how many passed, by kind and by test, and the failures.

    Raises:
        DataError: the file or a test cannot be used.
    """
    tests = read_behaviour(path, classifier.manifest)
    for test in tests.invariance:
        if not list(_variants(test)):
            raise DataError(
                f"{path}, {test.name!r}: the change leaves each of its texts as it is, so nothing "
                "would be tested: give texts that it changes"
            )
    outcomes = [
        *_must_have(tests.must_have, classifier),
        *_invariance(tests.invariance, classifier),
        *_direction(tests.direction, classifier),
    ]

    def counted(chosen: Sequence[Outcome]) -> dict[str, int]:
        passed = sum(outcome.passed for outcome in chosen)
        return {"passed": passed, "failed": len(chosen) - passed}

    names = list(dict.fromkeys((outcome.kind, outcome.name) for outcome in outcomes))
    return {
        **counted(outcomes),
        "kinds": {
            kind: counted([outcome for outcome in outcomes if outcome.kind == kind])
            for kind in dict.fromkeys(outcome.kind for outcome in outcomes)
        },
        "tests": [
            {"kind": kind, "name": name}
            | counted([outcome for outcome in outcomes if (outcome.kind, outcome.name) == key])
            for key in names
            for kind, name in [key]
        ],
        "failures": [
            {name: getattr(outcome, name) for name in ("kind", "name", "text", "expected", "got")}
            for outcome in outcomes
            if not outcome.passed
        ],
    }


def print_behaviour(result: dict[str, Any]) -> None:
    """The tests as a table on screen, then each failure."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="behaviour tests", title_justify="left")
    for name in ("kind", "test", "passed", "failed"):
        table.add_column(
            name, justify="right" if name in ("passed", "failed") else "left", overflow="fold"
        )
    for test in result["tests"]:
        counts = (str(test["passed"]), str(test["failed"]))
        table.add_row(test["kind"], test["name"], *counts)
    # Texts may hold brackets and colons of their own.
    console = Console(markup=False, emoji=False)
    console.print(table)
    for failure in result["failures"]:
        console.print(
            f"{failure['name']}: {failure['text']!r} expected {failure['expected']}, got "
            f"{failure['got']}",
            highlight=False,
        )
    console.print(f"{result['passed']} passed, {result['failed']} failed", highlight=False)


def _must_have(tests: Sequence[MustHave], classifier: Classifier) -> Iterator[Outcome]:
    cases = [(test.name, case) for test in tests for case in test.cases]
    texts: list[Text] = [
        case.text if case.text_pair is None else (case.text, case.text_pair) for _, case in cases
    ]
    for (name, case), answer in zip(cases, classifier.classify(texts), strict=True):
        expected = frozenset([case.label] if case.label is not None else case.labels or ())
        passed = expected == answer.answer
        yield Outcome("must_have", name, passed, case.text, _said(expected), _said(answer.answer))


def _invariance(tests: Sequence[Invariance], classifier: Classifier) -> Iterator[Outcome]:
    pairs = [(test.name, before, after) for test in tests for before, after in _variants(test)]
    for (name, before, after), old, new in _both(pairs, classifier):
        same = old.answer == new.answer
        expected = f"{_said(old.answer)}, as for {before!r}"
        yield Outcome("invariance", name, same, after, expected, _said(new.answer))


def _direction(tests: Sequence[Direction], classifier: Classifier) -> Iterator[Outcome]:
    cases = [(test, case) for test in tests for case in test.cases]
    pairs = [(test.name, case.before, case.after) for test, case in cases]
    for (test, case), (_, old, new) in zip(cases, _both(pairs, classifier), strict=True):
        column = classifier.manifest.labels.index(test.label)
        before, after = float(old.probs[column]), float(new.probs[column])
        # Probabilities are float32: 0.9 - 0.2 must not fall short of 0.7.
        moved = round(after - before if case.change == "up" else before - after, 6)
        passed = moved >= test.by and moved > 0
        least = f" by at least {test.by:g}" if test.by else ""
        expected = f"{test.label} {case.change}{least} from {before:.3f}, as of {case.before!r}"
        yield Outcome("direction", test.name, passed, case.after, expected, f"{after:.3f}")


def _both(
    pairs: Sequence[tuple[str, str, str]], classifier: Classifier
) -> Iterator[tuple[tuple[str, str, str], Prediction, Prediction]]:
    """Each pair with the answers to its two texts."""
    before = classifier.classify([pair[1] for pair in pairs])
    after = classifier.classify([pair[2] for pair in pairs])
    yield from zip(pairs, before, after, strict=True)


def _variants(test: Invariance) -> Iterator[tuple[str, str]]:
    """Texts and what they become; a change that changes nothing is no case."""
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
    """The text with `new` for each `old` that stands as words of its own: no Ann of an Anna."""
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text)


def with_typos(text: str) -> str:
    """Two neighbouring inner letters swapped in the two longest words; the same every time."""
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
    """The end of the text with other punctuation than it had."""
    stripped = text.rstrip(".!?… ")
    return stripped if stripped != text else text + "."


CHANGES: dict[Change, Callable[[str], str]] = {
    "typos": with_typos,
    "lowercase": str.lower,
    "uppercase": str.upper,
    "punctuation": _without_punctuation,
    "whitespace": lambda text: f"  {text.replace(' ', '  ')}\n",
}


def _said(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "no label"
