"""The report's sections with texts: the most confident errors and the least certain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.package.manifest import Text
from training.evaluation.report.formats import plural, score
from training.evaluation.report.render import Section
from training.evaluation.report.rows import Measured, confident_errors, least_certain

LISTED_ROWS = 50
OPEN_ROWS = 10
# Characters of a text that are shown at once, and that are in the file at all.
CLIPPED, LONGEST = 280, 5000


@dataclass(frozen=True)
class ShownText:
    """A text, cut after LONGEST characters; `clipped` is its beginning where it is long."""

    text: str
    clipped: str | None
    length: int


@dataclass(frozen=True)
class ShownLabel:
    """A label and its probability in words; None stands for no label."""

    label: str | None
    probability: str


@dataclass(frozen=True)
class Fact:
    """Labels of a row in one role; `style` is the class that colors them."""

    role: str
    style: str
    labels: list[ShownLabel]


@dataclass(frozen=True)
class RowItem:
    """A row of the data, as a list shows it."""

    facts: list[Fact]
    texts: list[ShownText]
    details: str


def most_confident_errors(measured: Measured) -> Section:
    """Wrong answers, the highest score first."""
    rows = confident_errors(measured)
    data = {
        "all_rows": len(rows),
        "rows": [_item(measured, row) for row in rows[:LISTED_ROWS]],
        "open_rows": OPEN_ROWS,
    }
    return Section("confident-errors", "Confident errors", "confident_errors.html", data)


def least_certain_rows(measured: Measured) -> Section:
    """The rows whose answer was the closest to another one."""
    rows = least_certain(measured)[:LISTED_ROWS]
    data = {
        "rows": [_item(measured, row, with_margin=True) for row in rows],
        "open_rows": OPEN_ROWS,
    }
    return Section("least-certain", "Least certain", "least_certain.html", data)


def shown_texts(text: Text) -> list[ShownText]:
    """A row's text, or both texts of a pair."""
    return [_shown_text(part) for part in ([text] if isinstance(text, str) else text)]


def _shown_text(text: str) -> ShownText:
    if len(text) <= CLIPPED:
        return ShownText(text, None, len(text))
    beginning = text[:CLIPPED]
    clipped = beginning.rsplit(" ", 1)[0] if " " in beginning else beginning
    rest = len(text) - LONGEST
    whole = f"{text[:LONGEST]} … ({rest:,} characters more)" if rest > 0 else text
    return ShownText(whole, f"{clipped} …", len(text))


def _item(measured: Measured, row: int, *, with_margin: bool = False) -> RowItem:
    if measured.several:
        facts = _facts_of_several(measured, row)
    else:
        facts = _facts_of_one(measured, row, with_alternative=with_margin)
    details = f"row {row + 1:,}"
    if with_margin:
        details += f" · margin {score(float(measured.margins[row]))}"
    answer = measured.answers[row]
    if answer.truncated:
        details += f" · only its first {plural(answer.tokens, 'token')} were read"
    return RowItem(facts, shown_texts(measured.split.texts[row]), details)


def _shown_label(measured: Measured, row: int, column: int) -> ShownLabel:
    probability = score(float(measured.probs[row, column]))
    if measured.several:
        probability += f", threshold {score(float(measured.thresholds[column]))}"
    return ShownLabel(measured.manifest.labels[column], probability)


def _facts_of_one(measured: Measured, row: int, *, with_alternative: bool) -> list[Fact]:
    """The answer, the label where that is another one, and perhaps the second best answer."""

    def fact(role: str, style: str, column: int) -> Fact:
        return Fact(role, style, [_shown_label(measured, row, column)])

    true, answered = int(measured.truth[row].argmax()), int(measured.answered[row].argmax())
    is_right = true == answered
    role = "answered"
    if with_alternative:
        role = "rightly answered" if is_right else "wrongly answered"
    facts = [fact(role, "hit" if is_right else "miss", answered)]
    if not is_right:
        facts.append(fact("labeled", "true", true))
    if with_alternative:
        others = measured.probs[row].copy()
        others[answered] = -1
        second = int(others.argmax())
        if second != true or is_right:
            facts.append(fact("or", "other", second))
    return facts


def _facts_of_several(measured: Measured, row: int) -> list[Fact]:
    """The labels rightly given, wrongly given and missed; of a right row the nearest label."""
    truth, answered = measured.truth[row], measured.answered[row]
    kinds = (
        ("rightly given", "hit", truth & answered),
        ("wrongly given", "miss", answered & ~truth),
        ("missed", "true", truth & ~answered),
    )
    facts = [
        Fact(role, style, _shown_labels(measured, row, np.flatnonzero(mask).tolist()))
        for role, style, mask in kinds
        if mask.any()
    ]
    if measured.right[row]:
        nearest = int(np.abs(measured.probs[row] - measured.thresholds).argmin())
        facts.append(Fact("nearest", "other", _shown_labels(measured, row, [nearest])))
    if not truth.any() and not answered.any():
        facts.insert(0, Fact("rightly given", "hit", [ShownLabel(None, "")]))
    return facts


def _shown_labels(measured: Measured, row: int, columns: Sequence[int]) -> list[ShownLabel]:
    return [_shown_label(measured, row, column) for column in columns]
