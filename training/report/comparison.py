"""The page of a comparison: champion against challenger, in the style of the report.

    write_comparison_page(path, comparison)

The file holds texts of the data. It loads nothing, and is complete without its script.
"""

from __future__ import annotations

from pathlib import Path

from service.classifier import Prediction
from service.model_package import write_text
from training.compare import Comparison, Flip, LabelChange, Paired, Side
from training.compare_output import Measure, measures
from training.digits import difference_decimals
from training.gates import SIGNIFICANCE
from training.report.mistakes import shown_texts
from training.report.page import (
    NOTHING,
    Column,
    Html,
    Section,
    count,
    counted,
    element,
    folded,
    join,
    label_name,
    labelled,
    number,
    page,
    paragraph,
    plural,
    score,
    scored,
    signed,
    table,
    user_text,
)
from training.report.plots import difference_strip, figure

LISTED_FLIPS, OPEN_FLIPS = 100, 20
STYLES = {"promote": "good", "refuse": "bad", "inconclusive": "open"}
KINDS = {
    "lost": ("only the champion is right", "miss"),
    "gained": ("only the challenger is right", "hit"),
    "still wrong": ("both are wrong", "true"),
}


def write_comparison_page(path: Path, found: Comparison) -> None:
    """Write the page, whole or not at all."""
    challenger = found.challenger.manifest
    against = found.champion.manifest.version if found.champion else "no champion"
    title = f"{challenger.name}: {challenger.version} against {against}"
    made = [_verdict(found), _numbers(found)]
    if found.paired is not None:
        made += [_labels(found.paired), _flips(found, found.paired)]
    write_text(path, page(title, _header(found), made, _footer()))


def _header(found: Comparison) -> Html:
    facts = {
        "Champion": _version(found.champion),
        "Challenger": _version(found.challenger),
        "Rows compared": count(len(found.split)),
        "Labels": count(len(found.challenger.manifest.labels)),
    }
    if found.left_out:
        facts["Rows with labels of one side"] = count(found.left_out)
    if found.dropped:
        facts["Rows that could not be used"] = count(found.dropped)
    listed = [
        element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items()
    ]
    return join(
        [
            paragraph("Champion against challenger", class_="kicker"),
            user_text(found.challenger.manifest.name, "h1"),
            paragraph("compared on ", user_text(found.where, "strong"), class_="where"),
            element("dl", *listed, class_="facts"),
        ]
    )


def _version(side: Side | None) -> Html:
    if side is None:
        return join(["none"])
    made = side.manifest.created_at[:10]
    about = f"{side.manifest.precision}, made {made}"
    return join([element("code", side.manifest.version), element("span", about, class_="about")])


def _footer() -> Html:
    return paragraph(
        "This file holds texts of the data: keep it where they may be kept. Intervals are 95 % "
        "intervals of the difference by the paired bootstrap over rows; p-values of labels are "
        "exact and Holm-corrected. Rows are counted as in the file, from 1 and without the heading."
    )


def _verdict(found: Comparison) -> Section:
    style = STYLES[found.outcome]
    reasons = list(found.reasons.values()) or [found.sentence.partition(": ")[2]]
    parts = [
        paragraph(element("span", found.outcome, class_=f"verdict-{style}"), class_="outcome"),
        element("ul", *(element("li", reason) for reason in reasons), class_="reasons"),
    ]
    for name, labels in (("Labels that go", found.gone), ("Labels that come", found.come)):
        if labels:
            listed = [element("li", label_name(label)) for label in labels]
            parts += [element("h3", name), element("ul", *listed, class_="reasons")]
    if found.warnings:
        listed = [element("li", warning) for warning in found.warnings]
        parts += [element("h3", "Warnings"), element("ul", *listed, class_="reasons")]
    bounds = found.bounds
    asked = [
        f"macro-F1 may drop by {bounds.max_macro_f1_drop:g}",
        f"half its interval may be {bounds.max_half_width:g}",
    ]
    if bounds.min_macro_f1 > 0:
        asked.append(f"macro-F1 is at least {bounds.min_macro_f1:g}")
    if bounds.max_ece < 1:
        asked.append(f"the calibration error is at most {bounds.max_ece:g}")
    if found.allow_label_change:
        asked.append("labels may change")
    return Section(
        "verdict",
        "Verdict",
        "Verdict",
        f"By these bounds: {', '.join(asked)}; no label may become significantly worse.",
        join(parts),
    )


def _numbers(found: Comparison) -> Section:
    columns = [
        Column("", numeric=False),
        Column("Champion"),
        Column("Challenger"),
        Column("Change"),
        Column("95 % interval"),
    ]
    rows = [_measure(one) for one in measures(found)]
    parts = [table(columns, rows, "Both in numbers")]
    how = "What each answers and costs."
    if paired := found.paired:
        how = (
            f"On the same rows: {plural(paired.lost, 'row')} only the champion gets right, "
            f"{count(paired.gained)} only the challenger; that they are so unequal by chance has "
            f"p = {paired.p_value:.2g} (McNemar's exact test)."
        )
        strips = [
            (one.name, one.difference) for one in measures(found) if one.difference is not None
        ]
        drawing = difference_strip(strips, -found.bounds.max_macro_f1_drop)
        caption = (
            "Challenger minus champion with 95 % intervals: right of zero the challenger is "
            "better. The dashed line is the drop of macro-F1 that is allowed."
        )
        parts.append(figure(drawing, caption))
    return Section("numbers", "Numbers", "In numbers", how, join(parts))


def _measure(one: Measure) -> list[Html]:
    def cell(value: float | None) -> Html:
        return number(NOTHING if value is None else f"{value:{one.form}}", value)

    change = interval = number(NOTHING, None)
    if one.before is not None and one.after is not None:
        points = one.after - one.before
        written = f"{points:+{one.form}}".replace("-", "−")  # noqa: RUF001
        change = number(written, points)
    if one.difference is not None:
        digits = difference_decimals(one.difference.half_width)
        change = number(signed(one.difference.point, digits), one.difference.point)
        ends = " to ".join(signed(end, digits) for end in one.difference.ends)
        interval = element("td", ends, class_="n")
    return [
        element("th", one.name, scope="row"),
        cell(one.before),
        cell(one.after),
        change,
        interval,
    ]


def _labels(paired: Paired) -> Section:
    columns = [
        Column("Label", numeric=False),
        Column("Rows", "rows with the label"),
        Column("F1 of the champion"),
        Column("F1 of the challenger"),
        Column("Change"),
        Column("Lost", "rows that were right for this label and are no more"),
        Column("Gained", "rows that were wrong for this label and are right now"),
    ]
    rows = [_label(one) for one in paired.per_label]
    return Section(
        "labels",
        "Labels",
        "Every label",
        "The largest loss first; a heading sorts by its column. What is not marked may be chance.",
        table(columns, rows, "F1 by label, before and after", sorted_by=(4, "ascending")),
    )


def _label(one: LabelChange) -> list[Html]:
    mark: object = ""
    for p_value, word, style in ((one.worse, "worse", "bad"), (one.better, "better", "good")):
        if p_value < SIGNIFICANCE:
            title = f"Holm-corrected p = {p_value:.2g}"
            mark = element("span", word, class_=f"mark {style}", title=title)
    change = None
    if one.before is not None or one.after is not None:
        change = (one.after or 0) - (one.before or 0)
    return [
        element("th", label_name(one.label), " ", mark, scope="row")
        if mark
        else labelled(one.label),
        counted(one.rows),
        scored(one.before, one.rows),
        scored(one.after, one.rows),
        number(signed(change), change),
        counted(one.lost),
        counted(one.gained),
    ]


def _flips(found: Comparison, paired: Paired) -> Section:
    items = [_flip(found, flip) for flip in paired.flips[:LISTED_FLIPS]]
    content = folded(items, OPEN_FLIPS, "rows")
    if not items:
        content = paragraph("Both give every row the same answer.")
    elif len(paired.flips) > LISTED_FLIPS:
        note = f"{LISTED_FLIPS} of {plural(len(paired.flips), 'row')}; flips.csv has all."
        content = join([paragraph(note, class_="note"), content])
    return Section(
        "flips",
        "Flips",
        "Rows answered differently",
        "What the challenger newly gets wrong comes first, its surest answers on top; what it gets "
        "right instead comes last.",
        content,
    )


def _flip(found: Comparison, flip: Flip) -> Html:
    assert found.champion is not None  # noqa: S101 - there are flips
    old, new = found.champion.answers[flip.row], found.challenger.answers[flip.row]
    about, style = KINDS[flip.kind]
    facts = [
        _fact("labelled", found.split.labels[flip.row], None, "true"),
        _fact("champion", _labels_of(old), old.score, ""),
        _fact("challenger", _labels_of(new), new.score, style),
    ]
    return element(
        "li",
        element("div", *facts, class_="verdict"),
        shown_texts(found.split.texts[flip.row]),
        paragraph(f"row {count(int(found.rows[flip.row]) + 1)} · {about}", class_="details"),
    )


def _labels_of(answer: Prediction) -> tuple[str, ...]:
    return (answer.label,) if answer.labels is None else answer.labels


def _fact(name: str, labels: tuple[str, ...], likely: float | None, class_: str) -> Html:
    shown = [element("div", label_name(label, "label")) for label in labels]
    if not shown:
        shown = [element("div", "no label")]
    if likely is not None:
        shown.append(element("span", score(likely), class_="p"))
    return element("div", element("span", name, class_="role"), *shown, class_=class_ or None)
