"""Explanations by a `Classifier` in this process: for the report, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence

from service.explanation.explain import (
    Bounds,
    Explanation,
    Judged,
    Question,
    Steps,
    explain,
)
from service.explanation.log_odds import log_odds
from service.explanation.words import Passage, read_passage
from service.inference.classifier import Classifier, predictions
from service.inference.decisions import FloatArray
from service.inference.tokenizing import AS_PACKAGED, EncodedText, TokenizationOptions
from service.package.manifest import InferenceConfig, Text

DEFAULT_BOUNDS = Bounds(words=64, texts=256)


def judge(
    config: InferenceConfig, encoded: Sequence[EncodedText], logits: FloatArray
) -> list[Judged]:
    """The answer to each text, from the logits of its windows, of shape (windows, labels)."""
    odds = log_odds(logits, [len(text.windows) for text in encoded], config)
    return list(map(Judged, odds, predictions(config, encoded, logits)))


def start(
    classifier: Classifier,
    text: Text,
    whole: Judged,
    label: str | None,
    bounds: Bounds,
    options: TokenizationOptions,
) -> tuple[Passage, Steps]:
    """The words of a text, and the steps that explain its label; arguments as in `explain_text`.

    Args:
        whole: the answer to the text.

    Raises:
        TokenizerError: the tokenizer crashed.
        ValueError: the package has no such label.
    """
    name = whole.decision.label if label is None else label
    encoder = classifier.encoder
    passage = read_passage(encoder, text, options)
    place = classifier.manifest.labels.index(name)
    takes_empty = options.add_special_tokens and encoder.special_tokens > 0
    return passage, explain(Question(passage, whole, name, place, bounds, takes_empty))


def explain_text(
    classifier: Classifier,
    text: Text,
    *,
    label: str | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    options: TokenizationOptions = AS_PACKAGED,
) -> Explanation:
    """Why a text has its label, or another one.

    Args:
        classifier: the package, loaded.
        text: a text, or a pair where the package reads pairs.
        label: the label to explain; the answered one by default, and the most probable one where
            none is answered.
        bounds: how much is tried.
        options: how the text is read.

    Raises:
        NotFiniteError: the model computed no number.
        ValueError: the package has no such label.
    """
    config = classifier.manifest

    def ask(texts: Sequence[Text]) -> list[Judged]:
        encoded = classifier.encode(texts, options)
        return judge(config, encoded, classifier.window_logits(encoded))

    (whole,) = ask([text])
    _, steps = start(classifier, text, whole, label, bounds, options)
    try:
        texts = next(steps)
        while True:
            texts = steps.send(ask(texts))
    except StopIteration as done:
        explanation: Explanation = done.value
        return explanation
