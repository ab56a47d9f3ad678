"""The report's sections with texts: the surest mistakes and the least certain rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from service.model_package import Text
from training.report.page import (
    Html,
    Section,
    element,
    folded,
    join,
    label_name,
    paragraph,
    plural,
    score,
    user_text,
)
from training.report.rows import Measured, least_certain, mistakes

LISTED_ROWS = 50
OPEN_ROWS = 10
# Characters of a text that are shown at once, and of one that are in the file at all.
CLIPPED, LONGEST = 280, 5000


def wrong_rows(found: Measured) -> Section:
    """The surest mistakes."""
    rows = mistakes(found)
    content = folded([_row(found, row) for row in rows[:LISTED_ROWS]], OPEN_ROWS, "mistakes")
    if not rows:
        content = paragraph("Every row is answered with what it is labelled.")
    elif len(rows) > LISTED_ROWS:
        note = f"{LISTED_ROWS} of {plural(len(rows), 'mistake')}."
        content = join([paragraph(note, class_="note"), content])
    return Section(
        "mistakes",
        "Mistakes",
        "Surest mistakes",
        "Wrong answers that the model was surest of, and so the rows whose label is most often "
        "wrong itself: read these first.",
        content,
    )


def doubtful_rows(found: Measured) -> Section:
    """The rows whose answer was closest."""
    rows = least_certain(found)[:LISTED_ROWS]
    return Section(
        "doubts",
        "Doubts",
        "Least certain rows",
        "The nearest to another answer, right or wrong: labels that overlap, and what more rows to "
        "label would teach most about.",
        folded([_row(found, row, doubt=True) for row in rows], OPEN_ROWS, "rows"),
    )


def _row(found: Measured, row: int, *, doubt: bool = False) -> Html:
    """One row: what it is, what it was answered, and its text."""
    facts = _several_facts(found, row) if found.several else _single_facts(found, row, doubt)
    parts = [
        element("div", *facts, class_="verdict"),
        shown_texts(found.split.texts[row]),
        element("p", *_details(found, row, doubt), class_="details"),
    ]
    return element("li", *parts)


def _details(found: Measured, row: int, doubt: bool) -> Iterable[object]:
    yield f"row {row + 1:,}"
    if doubt:
        yield f" · margin {score(float(found.margins[row]))}"
    if found.answers[row].truncated:
        yield f" · only its first {plural(found.answers[row].tokens, 'token')} were read"


def _fact(name: str, labels: Iterable[Html], class_: str) -> Html:
    return element("div", element("span", name, class_="role"), *labels, class_=class_)


def _probable(found: Measured, row: int, column: int) -> Html:
    label = label_name(found.manifest.labels[column], "label")
    text = score(float(found.probs[row, column]))
    if found.several:
        text += f", threshold {score(float(found.thresholds[column]))}"
    return element("span", label, element("span", text, class_="p"), class_="probable")


def _single_facts(found: Measured, row: int, doubt: bool) -> list[Html]:
    true = int(found.truth[row].argmax())
    given = int(found.answered[row].argmax())
    right = true == given
    facts = [_fact("answered", [_probable(found, row, given)], "hit" if right else "miss")]
    if not right:
        facts.append(_fact("labelled", [_probable(found, row, true)], "true"))
    if doubt:
        others = found.probs[row].copy()
        others[given] = -1
        second = int(others.argmax())
        if second != true or right:
            facts.append(_fact("or", [_probable(found, row, second)], "other"))
        facts[0] = _fact(
            "rightly answered" if right else "wrongly answered",
            [_probable(found, row, given)],
            "hit" if right else "miss",
        )
    return facts


def _several_facts(found: Measured, row: int) -> list[Html]:
    truth, answered = found.truth[row], found.answered[row]
    kinds = (
        ("rightly given", truth & answered, "hit"),
        ("wrongly given", answered & ~truth, "miss"),
        ("missed", truth & ~answered, "true"),
    )
    facts = [
        _fact(name, [_probable(found, row, int(c)) for c in np.flatnonzero(mask)], class_)
        for name, mask, class_ in kinds
        if mask.any()
    ]
    nearest = int(np.abs(found.probs[row] - found.thresholds).argmin())
    if found.right[row]:
        facts.append(_fact("nearest", [_probable(found, row, nearest)], "other"))
    if not truth.any() and not answered.any():
        facts.insert(0, _fact("rightly given", [element("span", "no label")], "hit"))
    return facts


def shown_texts(text: Text) -> Html:
    """A row's text or pair, of which what is long opens on demand."""
    if isinstance(text, str):
        return element("div", _clipped(text), class_="texts")
    return element("div", *map(_clipped, text), class_="texts pair")


def _clipped(text: str) -> Html:
    if len(text) <= CLIPPED:
        return user_text(text, "p", "text")
    cut = text[:CLIPPED].rsplit(" ", 1)[0] if " " in text[:CLIPPED] else text[:CLIPPED]
    whole = text[:LONGEST]
    if len(text) > LONGEST:
        whole += f" … ({len(text) - LONGEST:,} characters more)"
    summary = element(
        "summary",
        user_text(f"{cut} …", class_="clip"),
        element("span", f"all {len(text):,} characters", class_="all"),
    )
    return element("details", summary, user_text(whole, "p", "text"), class_="long")
