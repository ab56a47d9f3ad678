"""The report's section with the words that decide, and the words of the confident errors."""

from __future__ import annotations

from dataclasses import dataclass

from service.package.manifest import Text
from training.evaluation.explanations import RowExplanations, deciding, word_at
from training.evaluation.report.render import Section
from training.evaluation.report.rows import Measured
from training.evaluation.report.texts import ShownText, shown_texts


@dataclass(frozen=True)
class ExplainedError:
    """A wrong answer: its texts, its labels, and the words that decide."""

    row: int
    answered: str
    labeled: str
    texts: list[ShownText]
    words: list[str]
    is_counterfactual: bool


def deciding_words(measured: Measured, explanations: RowExplanations | None) -> Section | None:
    """The words that most often decide for each label, and those of the most confident errors."""
    if explanations is None or not (explanations.labels or explanations.errors):
        return None
    errors = []
    for row, explanation in explanations.errors.items():
        text: Text = measured.split.texts[row]
        errors.append(
            ExplainedError(
                row=row + 1,
                answered=explanation.label,
                labeled=", ".join(measured.split.labels[row]),
                texts=shown_texts(text),
                words=[word_at(text, explanation, place) for place in deciding(explanation)],
                is_counterfactual=explanation.counterfactual is not None,
            )
        )
    data = {"labels": explanations.labels, "errors": errors, "sampled": explanations.sampled}
    return Section("words", "Words", "words.html", data)
