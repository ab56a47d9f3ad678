"""The page of a comparison: champion against challenger, in the style of the report.

    write_comparison_page(path, comparison)

The file holds texts of the data. It loads nothing, and is complete without its script. Each section
has a function that computes what it shows, and a template in `templates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.inference.classifier import Prediction
from service.package.files import write_text
from training.common.digits import difference_decimals
from training.comparison.measures import Measure, measures_of
from training.comparison.paired import Flip, LabelChange, Paired
from training.comparison.result import Comparison, Side
from training.evaluation.reasons import SIGNIFICANCE
from training.evaluation.report.formats import NOTHING, signed
from training.evaluation.report.plots import difference_strip
from training.evaluation.report.render import Section, render_page
from training.evaluation.report.texts import ShownText, shown_texts

LISTED_FLIPS, OPEN_FLIPS = 100, 20
STYLES = {"promote": "good", "refuse": "bad", "inconclusive": "open"}
# By the kind of a flip: what it means, and the class that colors the challenger's answer.
FLIP_KINDS = {
    "lost": ("only the champion is right", "miss"),
    "gained": ("only the challenger is right", "hit"),
    "still wrong": ("both are wrong", "true"),
}


def write_comparison_page(path: Path, comparison: Comparison) -> None:
    """Write the page, whole or not at all."""
    challenger, champion = comparison.challenger.manifest, comparison.champion
    against = champion.manifest.version if champion else "no champion"
    sections = [_verdict(comparison), _numbers(comparison)]
    if comparison.paired is not None and champion is not None:
        sections.append(_label_changes(comparison.paired))
        sections.append(_flips(comparison, comparison.paired, champion))
    content = render_page(
        "comparison.html",
        "training.comparison",
        f"{challenger.name}: {challenger.version} against {against}",
        sections,
        comparison=comparison,
    )
    write_text(path, content)


def _verdict(comparison: Comparison) -> Section:
    data = {
        "outcome": comparison.outcome,
        "style": STYLES[comparison.outcome],
        "bounds": _bounds_in_words(comparison),
        "reasons": list(comparison.reasons.values()) or [comparison.sentence.partition(": ")[2]],
        "removed_labels": comparison.removed_labels,
        "added_labels": comparison.added_labels,
        "warnings": comparison.warnings,
    }
    return Section("verdict", "Verdict", "verdict.html", data)


def _bounds_in_words(comparison: Comparison) -> list[str]:
    bounds = comparison.bounds
    sentences = [
        f"macro-F1 may drop by {bounds.max_macro_f1_drop:g}",
        f"half its interval may be {bounds.max_half_width:g}",
    ]
    if bounds.min_macro_f1 > 0:
        sentences.append(f"macro-F1 is at least {bounds.min_macro_f1:g}")
    if bounds.max_ece < 1:
        sentences.append(f"the calibration error is at most {bounds.max_ece:g}")
    if comparison.allow_label_change:
        sentences.append("labels may change")
    return sentences


@dataclass(frozen=True)
class MeasureLine:
    """A measure of both sides in words, and the numbers that the cells are sorted by."""

    name: str
    before: float | None
    before_text: str
    after: float | None
    after_text: str
    change: float | None
    change_text: str
    interval: str | None


def _numbers(comparison: Comparison) -> Section:
    measures = measures_of(comparison)
    plot = None
    if comparison.paired is not None:
        plot = difference_strip(
            [(x.name, x.difference) for x in measures if x.difference is not None],
            -comparison.bounds.max_macro_f1_drop,
        )
    data = {
        "paired": comparison.paired,
        "measures": [_measure_line(measure) for measure in measures],
        "plot": plot,
    }
    return Section("numbers", "Numbers", "numbers.html", data)


def _measure_line(measure: Measure) -> MeasureLine:
    def text(value: float | None, sign: str = "") -> str:
        return NOTHING if value is None else f"{value:{sign}{measure.format}}"

    change, interval = measure.change, None
    change_text = text(change, "+").replace("-", "−")  # noqa: RUF001
    if measure.difference is not None:
        digits = difference_decimals(measure.difference.half_width)
        change = measure.difference.point
        change_text = signed(change, digits)
        interval = " to ".join(signed(end, digits) for end in measure.difference.ends)
    return MeasureLine(
        name=measure.name,
        before=measure.before,
        before_text=text(measure.before),
        after=measure.after,
        after_text=text(measure.after),
        change=change,
        change_text=change_text,
        interval=interval,
    )


@dataclass(frozen=True)
class Mark:
    """A significant change of a label."""

    word: str
    style: str
    p_value: float


@dataclass(frozen=True)
class LabelLine:
    """The change of a label; `gain` is None where it neither occurs nor is answered."""

    change: LabelChange
    gain: float | None
    mark: Mark | None


def _label_changes(paired: Paired) -> Section:
    return Section(
        "labels", "Labels", "label_changes.html", [_label_line(x) for x in paired.per_label]
    )


def _label_line(change: LabelChange) -> LabelLine:
    mark = None
    if change.worse < SIGNIFICANCE:
        mark = Mark("worse", "bad", change.worse)
    if change.better < SIGNIFICANCE:
        mark = Mark("better", "good", change.better)
    is_known = change.before is not None or change.after is not None
    return LabelLine(change, change.gain if is_known else None, mark)


@dataclass(frozen=True)
class AnswerFact:
    """Labels of a row in one role, with the score where they are an answer."""

    role: str
    style: str
    labels: tuple[str, ...]
    score: float | None


@dataclass(frozen=True)
class FlipItem:
    """A row answered differently; `number` counts the rows of the file from 1."""

    number: int
    about: str
    facts: list[AnswerFact]
    texts: list[ShownText]


def _flips(comparison: Comparison, paired: Paired, champion: Side) -> Section:
    flips = paired.flips[:LISTED_FLIPS]
    data = {
        "all_flips": len(paired.flips),
        "rows": [_flip_item(comparison, champion, flip) for flip in flips],
        "open_rows": OPEN_FLIPS,
    }
    return Section("flips", "Flips", "flips.html", data)


def _flip_item(comparison: Comparison, champion: Side, flip: Flip) -> FlipItem:
    rows = comparison.rows
    old, new = champion.answers[flip.row], comparison.challenger.answers[flip.row]
    about, style = FLIP_KINDS[flip.kind]
    return FlipItem(
        number=int(rows.places[flip.row]) + 1,
        about=about,
        facts=[
            AnswerFact("labeled", "true", rows.split.labels[flip.row], None),
            AnswerFact("champion", "", _labels_of(old), old.score),
            AnswerFact("challenger", style, _labels_of(new), new.score),
        ],
        texts=shown_texts(rows.split.texts[flip.row]),
    )


def _labels_of(answer: Prediction) -> tuple[str, ...]:
    return (answer.label,) if answer.labels is None else answer.labels
