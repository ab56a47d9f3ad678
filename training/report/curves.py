"""The report's sections about probabilities: calibration, coverage, precision-recall, scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.metrics import average_precisions
from training.promises import broken_promises
from training.report.page import (
    Column,
    Html,
    Section,
    element,
    join,
    labelled,
    paragraph,
    plural,
    score,
    scored,
    table,
)
from training.report.plots import Axes, figure, histogram, reliability
from training.report.plots import coverage as coverage_plot
from training.report.rows import Measured, histograms
from training.report.rows import precision_recall as curve

# The curves of more labels would be a grey area.
DRAWN_LABELS = 150
METHODS = {
    "temperature": "One temperature for all labels was fitted.",
    "platt": "A slope and an intercept were fitted for each label (Platt scaling).",
}
MEASURES = {
    "ece": "Expected calibration error",
    "brier": "Brier score",
    "nll": "Log loss",
    "log_loss": "Log loss",
}


def calibration(found: Measured) -> Section | None:
    """Whether probabilities are frequencies, and what calibrating changed."""
    measured = found.metrics.get("calibration")
    if not measured:
        return None
    name, things = ("mean probability", "pair") if found.several else ("mean confidence", "row")
    plot = reliability(measured["bins"], name, things)
    numbers = [
        Column("On these rows", numeric=False),
        Column("Value"),
    ]
    rows = [
        [element("th", name, scope="row"), scored(measured[key], len(found.split))]
        for key, name in MEASURES.items()
        if measured.get(key) is not None
    ]
    beside = [table(numbers, rows, "Calibration on these rows")]
    if evidence := found.manifest.calibration:
        beside.append(_fitted(evidence))
    if said := broken_promises(found.manifest):
        beside.append(element("h3", "Precision that is not promised"))
        beside.append(element("ul", *(element("li", one) for one in said), class_="reasons"))
    pairs = " A pair is a row and a label." if found.several else ""
    return Section(
        "calibration",
        "Calibration",
        "Calibration",
        "Of all answers given with a probability of 0.8, eight in ten should be right: dots on the "
        f"diagonal. All measures are better when lower.{pairs}",
        element("div", plot, element("div", *beside), class_="columns"),
    )


def _fitted(evidence: dict[str, Any]) -> Html:
    """What export did, on the validation rows."""
    method = METHODS.get(evidence.get("method") or "", "The probabilities were left as they are.")
    if reason := evidence.get("reason"):
        method = f"{method.removesuffix('.')}: {reason}."
    parts = [element("h3", "At export"), paragraph(method)]
    before, after = evidence.get("before") or {}, evidence.get("after") or {}
    rows = [
        [
            element("th", name, scope="row"),
            *(scored(one.get(key), evidence.get("rows")) for one in (before, after)),
        ]
        for key, name in MEASURES.items()
        if key in before
    ]
    if rows:
        on = f"On {plural(evidence['rows'], 'validation row')}" if "rows" in evidence else "Measure"
        columns = [Column(on, numeric=False), Column("Before"), Column("After")]
        parts.append(table(columns, rows, "Calibration before and after"))
    return join(parts)


def coverage(found: Measured) -> Section | None:
    """How right the answers are when the doubtful ones are left out."""
    points = found.metrics.get("coverage")
    if not points:
        return None
    abstention = found.metrics.get("abstention")
    caption = "The least probable answers are left out first."
    if abstention:
        caption += (
            f" The ring is where the package abstains, below {score(abstention['threshold'])}."
        )
    columns = [Column("Coverage"), Column("Precision"), Column("Score from")]
    size = len(found.split)
    rows = [
        [
            scored(point["coverage"], size),
            scored(point["precision"], round(point["coverage"] * size)),
            scored(point["threshold"]),
        ]
        for point in points
    ]
    return Section(
        "coverage",
        "Coverage",
        "Coverage and precision",
        "What leaving the doubtful rows to people would gain: the share answered, and how many of "
        "those are right.",
        element(
            "div",
            figure(coverage_plot(points, abstention), caption),
            element("div", table(columns, rows, "Precision by coverage")),
            class_="columns",
        ),
    )


@dataclass(frozen=True)
class _Curve:
    """One label's precision by recall, its average precision, and how it is answered."""

    label: str
    points: list[tuple[float, float]]
    area: float
    answered: dict[str, Any]


def precision_recall(found: Measured) -> Section | None:
    """Precision by recall, of the positive label or of all labels together and each."""
    curves = _curves(found)
    if not curves:
        return None
    columns = [Column("Label", numeric=False), Column("Average precision")]
    ranked = sorted(curves, key=lambda one: one.area)
    areas = [[labelled(one.label), scored(one.area, one.answered["support"])] for one in ranked]
    beside = table(columns, areas, "Average precision by label", sorted_by=(1, "ascending"))
    return Section(
        "precision-recall",
        "Precision and recall",
        "Precision and recall",
        "Further up and right is better: the share of the answers that is right, by the share of "
        "the rows with a label that is found, as the threshold falls. Average precision is the "
        "area below.",
        element(
            "div",
            element("div", *_curve_plot(found, curves)),
            element("div", beside, class_="low"),
            class_="columns",
        ),
    )


def _curves(found: Measured) -> list[_Curve]:
    """Of the positive label, or of the commonest labels in their order."""
    labels = list(found.manifest.labels)
    support = found.truth.sum(axis=0)
    columns = np.sort(np.argsort(-support, kind="stable")[:DRAWN_LABELS]).tolist()
    if found.manifest.positive_label:
        columns = [labels.index(found.manifest.positive_label)]
    areas = average_precisions(found.truth, found.probs)
    return [
        _Curve(
            labels[column],
            curve(found.truth[:, column], found.probs[:, column]),
            area,
            found.metrics["per_label"][labels[column]],
        )
        for column in columns
        if (area := areas[column]) is not None
    ]


def _curve_plot(found: Measured, curves: list[_Curve]) -> list[Html]:
    """Where there are several curves, what picks one of them; then the plot."""
    axes = Axes(height=380)
    frame = axes.frame("recall", "precision")
    if found.manifest.positive_label:
        caption = "The dot is where the package answers, by its threshold."
        line = _label_curve(axes, 0, curves[0], "curve chosen")
        return [figure(axes.drawing("Precision by recall", frame, line), caption)]
    together = curve(found.truth.ravel(), found.probs.ravel())
    lines = [axes.path(together, class_="line", data_curve="all")]
    choices = [element("option", "all labels together", value="all")]
    for place, one in enumerate(curves):
        lines.append(_label_curve(axes, place, one, "curve"))
        choices.append(element("option", one.label, value=place))
    caption = (
        "Bold: all labels of all rows together (micro-average). Thin: each of "
        f"{plural(len(curves), 'label')} with rows. The dot of a label is its precision and recall "
        "as answered."
    )
    picker = element("label", "Show ", element("select", *choices), class_="picker scripted")
    return [picker, figure(axes.drawing("Precision by recall", frame, *lines), caption)]


def _label_curve(axes: Axes, place: int, one: _Curve, class_: str) -> Html:
    name = f"{one.label}: average precision {score(one.area)}"
    answered = axes.dot(
        one.answered["recall"], one.answered["precision"], 4.5, f"{name}, as answered"
    )
    line = axes.path(one.points)
    return element("g", element("title", name), line, answered, class_=class_, data_curve=place)


def scores(found: Measured) -> Section:
    """How probable the right and the wrong answers were."""
    right, wrong = histograms(found)
    things = "decisions" if found.several else "answers"
    plots = [
        figure(histogram(right, "hit", f"right {things}"), f"Right {things}: {sum(right):,}"),
        figure(histogram(wrong, "miss", f"wrong {things}"), f"Wrong {things}: {sum(wrong):,}"),
    ]
    how = (
        "Each label of each row is a decision, made by its probability: wrong ones near 0 or 1 are "
        "the costly kind."
        if found.several
        else "How probable the answers were that turned out right, and those that did not: wrong "
        "ones far right are the costly kind."
    )
    return Section(
        "scores",
        "Scores",
        "Scores of right and wrong answers",
        f"{how} The two heights have scales of their own.",
        element("div", *plots, class_="columns even"),
    )
