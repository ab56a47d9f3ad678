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
        self,
        passage: Passage,
        label: str = "yes",
        bounds: Bounds = WIDE,
        takes_empty: bool = True,
    ) -> Explanation:
        whole = self.judge(passage.without(()))
        place = ["no", "yes"].index(label)
        steps = explain(Question(passage, whole, label, place, bounds, takes_empty))
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


@pytest.mark.parametrize("takes_empty", [True, False])
def test_a_contribution_is_what_a_word_changes(takes_empty: bool) -> None:
    passage = passage_of("the good, not bad tea")
    explanation = Scores().explain(passage, takes_empty=takes_empty)
    shown = dict(zip(words_of(explanation, passage), explanation.words, strict=True))
    expected = {"the": 0, "good": 2, ",": 0, "not": -0.5, "bad": -1.5, "tea": 0}
    if not takes_empty:
        # Alone, a word is compared with the mean of all of them. It is 0 here.
        assert sum(expected.values()) == 0
    assert {word: each.contribution for word, each in shown.items()} == pytest.approx(expected)


def test_the_model_is_asked_without_each_word_with_it_alone_and_without_the_others() -> None:
    model = Scores()
    model.explain(passage_of("good fine bad"))
    without = ["  fine bad", "good   bad", "good fine  "]
    alone = ["good    ", "  fine  ", "    bad", "     "]
    fewer = ["    bad", "good   bad", "  fine bad"]
    assert [text.split() for text in map(str, model.asked[:10])] == [
        text.split() for text in [*without, *alone, *fewer]
    ]


class Either(Scores):
    """A model to which one of two words suffices."""

    def judge(self, text: Text) -> Judged:
        words = set(str(text).split())
        return super().judge("good" if words & {"good", "fine"} else "not")


def test_two_words_that_make_up_for_each_other_both_count() -> None:
    passage = passage_of("good fine tea")
    explanation = Either().explain(passage)
    by_word = dict(zip(words_of(explanation, passage), explanation.words, strict=True))
    # Erased alone, neither of them changes anything.
    assert by_word["good"].contribution == by_word["fine"].contribution > 1
    assert by_word["tea"].contribution == 0
    assert explanation.counterfactual is not None
    assert explanation.counterfactual.words == (0, 1)


def test_a_word_that_decides_alone_is_found_whatever_its_contribution() -> None:
    class Needs(Scores):
        """Without tea the answer is no. Alone, tea says no, and louder than nothing does."""

        def judge(self, text: Text) -> Judged:
            words = str(text).split()
            if words == ["tea"]:
                return super().judge("bad " * 50)
            return super().judge("good " * 3 if "tea" in words else "not " * 9)

    explanation = Needs().explain(passage_of("a b c d tea e"))
    assert explanation.words[4].contribution < 0
    assert explanation.counterfactual is not None
    assert explanation.counterfactual.words == (4,)


def test_a_removal_that_lets_the_model_read_on_is_tried() -> None:
    class Short(Scores):
        """A model that reads two words."""

        def judge(self, text: Text) -> Judged:
            return super().judge(" ".join(str(text).split()[:2]))

    read = (Span(0, 0, 4), Span(0, 5, 9))
    found = Short().explain(Passage(("good fine bad",), read)).counterfactual
    assert found is not None
    assert found.words == (0,)


def test_all_words_but_one_are_removed_where_that_is_needed() -> None:
    class Two(Scores):
        """A model that says yes to two words or more."""

        def judge(self, text: Text) -> Judged:
            return super().judge("good" if len(str(text).split()) > 1 else "not")

    found = Two().explain(passage_of("a b c")).counterfactual
    assert found is not None
    assert len(found.words) == 2


def test_of_many_words_two_are_found_without_asking_about_all_groups() -> None:
    weights = {f"w{place}": 0.01 for place in range(28)} | {"good": 3.0, "fine": 3.0, "bad": -3.1}
    words = " ".join(weights)
    found = Scores(weights).explain(passage_of(words))
    assert found.counterfactual is not None
    assert found.counterfactual.words == (28, 29)
    assert found.texts_asked < 3 * len(weights)


def test_words_that_change_more_stay_when_a_set_is_reduced() -> None:
    weights = {"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0, "e": 0.5, "x": -2.1}
    found = Scores(weights).explain(passage_of("e a b c d x")).counterfactual
    assert found is not None
    assert found.words == (1, 2, 3, 4)


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
    assert for_no.order == for_yes.order == (0, 1, 2)


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
    pair = Scores().explain(passage_of("good tea", "good"))
    assert pair.counterfactual is None
    assert [span.text for span, _ in pair.words] == [0, 0, 1]
    # A model that cannot be asked about an empty text is not asked about the second word alone.
    few = Scores().explain(passage_of("good tea", "good"), takes_empty=False)
    assert [span.text for span, _ in few.words] == [0, 0]
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


def test_what_the_model_did_not_read_stays_out_where_words_are_weighed() -> None:
    passage = Passage(("tail good tea bad",), (Span(0, 5, 9), Span(0, 10, 13)))
    assert str(passage.read_without([Span(0, 5, 9)])).split() == ["tea"]
    assert str(passage.without([Span(0, 5, 9)])).split() == ["tail", "tea", "bad"]
    assert Passage(("unread",), ()).read_without(()) == ""
    model = Scores()
    model.explain(passage)
    # The counterfactual is for the caller, who sends all of the text.
    assert "bad" not in " ".join(map(str, model.asked[:-1]))
    assert "bad" in model.asked[-1]


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
