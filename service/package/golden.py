"""Golden texts: a few texts with the answers that the package gave when it was made.

A copy of the package must give the same answers wherever it runs.
"""

from __future__ import annotations

from pathlib import Path

from service.package.files import Strict, write_text
from service.package.manifest import GOLDEN_FILE, Text

# When an answer counts as the same. The kernels for int8 differ slightly between processors.
GOLDEN_SCORE_TOLERANCE = 0.02
GOLDEN_MARGIN = 0.05


class GoldenMismatchError(Exception):
    """This copy of the package does not answer as it did where it was made."""


class GoldenAnswer(Strict):
    """One line of `golden.jsonl`: a text, or a pair, and the answer that the package gave."""

    text: str
    text_pair: str | None = None
    label: str
    labels: tuple[str, ...] | None = None
    probs: tuple[float, ...]

    @property
    def answer(self) -> frozenset[str]:
        """The label or labels, for comparing answers."""
        return frozenset([self.label] if self.labels is None else self.labels)

    @property
    def input(self) -> Text:
        """The text or the pair, as the classifier takes it."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def read_golden(folder: Path) -> list[GoldenAnswer]:
    """The golden texts and answers of a verified package."""
    with (folder / GOLDEN_FILE).open(encoding="utf-8") as lines:
        return [GoldenAnswer.model_validate_json(line) for line in lines]


def write_golden(folder: Path, answers: list[GoldenAnswer]) -> None:
    """Write `golden.jsonl`."""
    lines = "".join(answer.model_dump_json(exclude_none=True) + "\n" for answer in answers)
    write_text(folder / GOLDEN_FILE, lines)
