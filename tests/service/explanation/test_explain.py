"""The search for the words that decide, with a model whose every number is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.explanation.explain import Bounds, Explanation, Judged, Question, explain
from service.explanation.log_odds import log_odds
from service.explanation.words import Passage, Span
from service.inference.decisions import Decision, text_probabilities
from service.package.manifest import InferenceConfig, Text

WEIGHTS = {"good": 2.0, "fine": 1.0, "bad": -1.5, "not": -0.5}
WIDE = Bounds(words=64, texts=256)


def passage_of(*texts: str) -> Passage:
    words = [
        Span(number, match.start(), match.end())
        for number, text in enumerate(texts)
        for match in re.finditer(r"\w+|[^\w\s]", text)
    ]
    return Passage(texts, tuple(words))


class Scores:
    """A model that adds up the weights of words; above 0 the answer is yes. It counts texts."""

    def __init__(self, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.weights = weights
        self.asked: list[Text] = []

    def judge(self, text: Text) -> Judged:
        words = re.findall(r"\w+", text if isinstance(text, str) else " ".join(text))
        score = sum(self.weights.get(word, 0.0) for word in words)
        probs = np.asarray([1 / (1 + np.exp(score)), 1 / (1 + np.exp(-score))], dtype=np.float32)
        label = "yes" if score > 0 else "no"
        best = float(probs.max())
        return Judged(np.asarray([-score, score]), Decision(label, best, probs, None, None))

    def explain(
        self, passage: Passage, label: str = "yes", bounds: Bounds = WIDE, mask: str | None = None
    ) -> Explanation:
        whole = self.judge(passage.without(()))
        steps = explain(Question(passage, whole, label, ["no", "yes"].index(label), bounds, mask))
        answers: Any = None
        try:
            while True:
                texts = steps.send(answers)
                self.asked += texts
                answers = [self.judge(text) for text in texts]
        except StopIteration as done:
            explanation: Explanation = done.value
            return explanation


def words_of(explanation: Explanation, passage: Passage) -> list[str]:
    return [passage.texts[span.text][span.start : span.end] for span, _ in explanation.words]


def test_a_contribution_is_what_the_absence_of_a_word_changes() -> None:
    passage = passage_of("the good, not bad tea")
    explanation = Scores().explain(passage, mask="[MASK]")
    shown = dict(zip(words_of(explanation, passage), explanation.words, strict=True))
    assert {word: each.contribution for word, each in shown.items()} == pytest.approx(
        {"the": 0, "good": 2, ",": 0, "not": -0.5, "bad": -1.5, "tea": 0}
    )


def test_a_word_is_masked_where_there_is_a_mask_and_removed_for_another_label() -> None:
    masked, removed = Scores(), Scores()
    masked.explain(passage_of("good tea"), mask="[MASK]")
    removed.explain(passage_of("good tea"))
    assert masked.asked == ["[MASK] tea", "good [MASK]", "  tea"]
    assert removed.asked == ["  tea", "good  ", "  tea"]


def test_what_speaks_for_a_label_speaks_against_the_other() -> None:
    passage = passage_of("good but bad")
    for_yes, for_no = Scores().explain(passage, "yes"), Scores().explain(passage, "no")
    assert [each.contribution for each in for_no.words] == pytest.approx(
        [-each.contribution for each in for_yes.words]
    )
    assert for_no.log_odds == -for_yes.log_odds
    # The label that is not answered becomes the answer without the same word.
    assert for_no.counterfactual is not None and for_yes.counterfactual is not None
    assert for_no.counterfactual.words == for_yes.counterfactual.words == (0,)
    assert for_no.counterfactual.decision.label == "no"


texts_of_words = st.lists(st.sampled_from([*WEIGHTS, "tea", "fine"]), min_size=1, max_size=9).map(
    " ".join
)


@given(texts_of_words)
def test_no_smaller_set_changes_a_sum_of_words(text: str) -> None:
    passage, model = passage_of(text), Scores()
    whole = model.judge(text)
    explanation = model.explain(passage, whole.decision.label)

    def changes(places: Sequence[int]) -> bool:
        spans = [passage.words[place] for place in places]
        if not passage.leaves_words(spans):
            return False
        return model.judge(passage.without(spans)).decision.label != whole.decision.label

    sizes = range(1, len(passage.words))
    least = [
        size for size in sizes if any(map(changes, combinations(range(size_of(passage)), size)))
    ]
    if explanation.counterfactual is None:
        assert not least
    else:
        assert changes(explanation.counterfactual.words)
        assert len(explanation.counterfactual.words) == least[0]


def size_of(passage: Passage) -> int:
    return len(passage.words)


def test_a_set_is_reduced_to_words_that_are_all_needed() -> None:
    # Ten equal words, found together in a last step; seven would do.
    words = " ".join(f"w{place}" for place in range(12))
    weights = {f"w{place}": 1.0 for place in range(12)} | {"x": -5.5}
    passage = passage_of(f"{words} x tea")
    found = Scores(weights).explain(passage).counterfactual
    assert found is not None
    assert len(found.words) == 7


def test_no_word_of_a_pair_is_the_last_that_is_removed() -> None:
    assert Scores().explain(passage_of("good", "tea")).counterfactual is None
    pair = Scores().explain(passage_of("good tea", "good"), mask="[MASK]")
    assert pair.counterfactual is None
    assert [span.text for span, _ in pair.words] == [0, 0, 1]
    found = Scores().explain(passage_of("good tea", "good tea")).counterfactual
    assert found is not None
    assert found.words == (0, 2)


@pytest.mark.parametrize("texts", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("words", [1, 3, 64])
def test_budgets_are_kept(texts: int, words: int) -> None:
    model = Scores({f"w{place}": 1.0 for place in range(200)})
    text = " ".join(f"w{place}." if place % 5 == 4 else f"w{place}" for place in range(200))
    explanation = model.explain(passage_of(text), bounds=Bounds(words, texts))
    assert len(model.asked) == explanation.texts_asked <= texts
    assert len(explanation.words) <= words
    assert explanation.counterfactual is None


def test_of_a_long_text_the_words_of_the_sentences_that_matter_are_weighed() -> None:
    filler = "tea is a drink of many. " * 30
    passage = passage_of(f"{filler}it was good and good. {filler}")
    explanation = Scores().explain(passage, bounds=Bounds(words=8, texts=100))
    best = max(explanation.sentences, key=lambda each: each.contribution)
    assert "it was good and good" in passage.texts[0][best.span.start : best.span.end]
    assert words_of(explanation, passage).count("good") == 2
    assert len(explanation.words) == 8
    assert explanation.counterfactual is not None
    assert len(explanation.counterfactual.words) == 2


def test_the_order_has_each_word_once_and_begins_with_the_most_important() -> None:
    passage = passage_of("fine good tea bad")
    explanation = Scores().explain(passage)
    assert sorted(explanation.order) == [0, 1, 2, 3]
    assert [words_of(explanation, passage)[place] for place in explanation.order[:2]] == [
        "good",
        "fine",
    ]


def test_sentences_end_where_a_reader_sees_it() -> None:
    passage = passage_of("One. Two 3.5 four! 五。六", "seven\neight")
    sentences = [passage.texts[p[0].text][p[0].start : p[-1].end] for p in passage.sentences(99)]
    assert sentences == ["One.", "Two 3.5 four!", "五。", "六", "seven", "eight"]
    assert len(passage.sentences(2)) == 2


CONFIGS = [
    {"labels": ("a", "b", "c"), "temperature": 1.7},
    {"labels": ("a", "b", "c"), "long_text": "window", "window_stride": 1},
    {"labels": ("a", "b"), "task": "multi_label", "thresholds": {"a": 0.3, "b": 0.9}},
]


@pytest.mark.parametrize("aggregation", [None, "mean", "max"])
@pytest.mark.parametrize("config", CONFIGS)
def test_log_odds_are_those_of_the_probabilities(
    config: dict[str, Any], aggregation: str | None
) -> None:
    by_windows = {"long_text": "window", "window_stride": 1, "window_aggregation": aggregation}
    without = {
        key: value for key, value in config.items() if not key.startswith(("long", "window"))
    }
    made = InferenceConfig(max_length=8, **(without | by_windows if aggregation else without))
    logits = np.random.default_rng(0).normal(0, 2, (6, len(made.labels))).astype(np.float32)
    windows = [1, 3, 2] if aggregation else [1] * 6
    probs = text_probabilities(logits, windows, made).astype(np.float64)
    assert log_odds(logits, windows, made) == pytest.approx(
        np.log(probs) - np.log1p(-probs), abs=1e-4
    )


def test_log_odds_of_a_certain_answer_are_finite() -> None:
    config = InferenceConfig(labels=("a", "b"), max_length=8)
    odds = log_odds(np.asarray([[60, -60]], dtype=np.float32), [1], config)
    assert odds == pytest.approx(np.asarray([[120, -120]]))
