"""The words that decide, by label and by error, and what should not decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.explanation.explain import Counterfactual, Explanation, Weighed
from service.explanation.words import Span
from service.inference.classifier import Classifier
from service.inference.decisions import Decision
from tests.conftest import example_rows
from training.data.splits import Split
from training.evaluation import explanations
from training.evaluation.evaluate import evaluate
from training.evaluation.explanations import _label_words, explain_rows, irrelevant_kind
from training.evaluation.report.report import write_report
from training.evaluation.report.rows import Measured, measure


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(scope="module")
def measured(classifier: Classifier) -> Measured:
    rows = example_rows("test")[:24]
    # Every sixth label is wrong, so that there are errors.
    labels = [row["label"] for row in rows]
    names = classifier.manifest.labels
    wrong = [names[(names.index(each) + (place % 6 == 0)) % 3] for place, each in enumerate(labels)]
    split = Split([row["text"] for row in rows], [(label,) for label in wrong])
    metrics, answers = evaluate(classifier, split, "test")
    return measure(classifier.manifest, split, answers, metrics)


def explanation(text: str, deciding: str, *, flips: bool = True) -> Explanation:
    words = tuple(
        Weighed(Span(0, start, start + len(word)), 2.0 if word == deciding else 0.0)
        for start, word in _places(text)
    )
    place = [word for _, word in _places(text)].index(deciding)
    other = Decision("b", 0.9, np.zeros(2, dtype=np.float32), None, None)
    counterfactual = Counterfactual((place,), other) if flips else None
    order = (place, *(each for each in range(len(words)) if each != place))
    return Explanation("a", 1.0, words, (), order, counterfactual, 9)


def _places(text: str) -> list[tuple[int, str]]:
    start, places = 0, []
    for word in text.split(" "):
        places.append((start, word))
        start += len(word) + 1
    return places


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("tck-1234", "a number"),
        ("7", "a number"),
        ("hello", "a greeting or a signature"),
        ("regards", "a greeting or a signature"),
        ("parcel", None),
        ("hi-fi", None),
    ],
)
def test_what_should_seldom_decide_has_a_name(word: str, kind: str | None) -> None:
    assert irrelevant_kind(word) == kind


@pytest.mark.parametrize("flips", [True, False])
def test_a_label_that_hangs_on_a_ticket_number_is_a_finding(flips: bool) -> None:
    texts = [f"ticket A{number} is late" for number in range(6)] + ["It is LATE"] * 6
    explained = {
        row: explanation(text, text.split(" ")[1] if row < 6 else "LATE", flips=flips)
        for row, text in enumerate(texts)
    }
    found = _label_words("a", texts, explained)
    assert found.findings == ("a number decides 6 of 12 explained rows: check that it should",)
    # Words are counted without their case, the most frequent first.
    assert (found.words[0].word, found.words[0].rows, found.words[0].contribution) == ("late", 6, 2)


def test_few_rows_are_no_finding() -> None:
    texts = [f"ticket {number}" for number in range(4)]
    explained = {row: explanation(text, text.split(" ")[1]) for row, text in enumerate(texts)}
    assert not _label_words("a", texts, explained).findings


def test_errors_and_a_sample_are_explained(classifier: Classifier, measured: Measured) -> None:
    result = explain_rows(classifier, measured)
    errors = {row for row in range(24) if not measured.right[row]}
    assert errors and set(result.errors) == errors
    assert result.sampled == 24
    assert sum(label.rows for label in result.labels) == 24
    assert all(label.words for label in result.labels)


def test_the_tokens_of_explanations_are_bounded(
    classifier: Classifier, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "MOST_TOKENS", 600)
    result = explain_rows(classifier, measured)
    assert 0 < result.sampled + len(result.errors) < 12


def test_the_report_shows_the_words(
    classifier: Classifier, measured: Measured, tmp_path: Path
) -> None:
    content = {}
    for name, given in (("with", classifier), ("without", None)):
        path = tmp_path / f"{name}.html"
        write_report(
            path,
            measured.manifest,
            measured.split,
            measured.answers,
            measured.metrics,
            where="test.csv",
            classifier=given,
        )
        content[name] = path.read_text("utf-8")
    assert "Words that decide" in content["with"]
    assert "Words that decide" not in content["without"]
    (label, *_) = explain_rows(classifier, measured).labels
    assert f"{label.words[0].word}</span> ({label.words[0].rows}, " in content["with"]
