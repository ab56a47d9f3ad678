"""The golden texts of a package, and the package's answers to them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from service.inference.classifier import Classifier
from service.package.golden import GoldenAnswer
from service.package.manifest import Text
from training.data.golden_texts import chosen_golden_texts

if TYPE_CHECKING:
    from training.finetuning.record import TrainedRun

GOLDEN_TEXTS = 32


def choose_golden_texts(run: TrainedRun) -> list[Text]:
    """GOLDEN_TEXTS validation texts, spread over the labels; or those of `golden_file`; or none.

    Raises:
        DataError: `golden_file` cannot be used.
    """
    chosen = chosen_golden_texts(run.recipe.export.golden_file, run.recipe.data)
    if chosen is not None:
        return chosen
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for row, labels in enumerate(run.data.validation.labels):
        turns.append((seen[labels], row))
        seen[labels] += 1
    return [run.data.validation.texts[row] for _, row in sorted(turns)[:GOLDEN_TEXTS]]


def golden_answers(texts: list[Text], classifier: Classifier) -> list[GoldenAnswer]:
    """The texts with this package's answers."""
    return [
        GoldenAnswer(
            text=text if isinstance(text, str) else text[0],
            text_pair=None if isinstance(text, str) else text[1],
            label=answer.label,
            labels=answer.labels,
            probs=tuple(answer.probs.tolist()),
        )
        for text, answer in zip(texts, classifier.classify(texts), strict=True)
    ]
