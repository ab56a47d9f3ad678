"""The report of `whetstone evaluate`: one HTML file that shows what the metrics cannot say alone.

    write_report(path, manifest, split, answers, metrics, where="test.csv")

The file holds texts of the data. It loads nothing, and is complete without its script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.classifier import Prediction
from service.model_package import Manifest, write_text
from training.data.splits import Split
from training.digits import decimals
from training.report.curves import calibration, coverage, precision_recall, scores
from training.report.evidence import behaviour_tests, candidates, unseen
from training.report.labels import confused, label_errors, labels
from training.report.mistakes import doubtful_rows, wrong_rows
from training.report.page import (
    Column,
    Html,
    Section,
    count,
    counted,
    element,
    join,
    number,
    page,
    paragraph,
    plural,
    score,
    scored,
    span,
    table,
    user_text,
    words,
)
from training.report.plots import axis_start, strip
from training.report.rows import (
    Measured,
    Slice,
    by_label_frequency,
    by_length,
    by_value,
    measure,
)
from training.significance import Metric, interval, wilson

# Below this many rows an accuracy says little.
SMALL_SLICE = 30


def write_report(
    path: Path,
    manifest: Manifest,
    split: Split,
    answers: Sequence[Prediction],
    metrics: dict[str, Any],
    *,
    where: str,
    slices: Mapping[str, Sequence[str]] = {},
    behaviour: dict[str, Any] | None = None,
) -> None:
    """Write the report of a package's answers, whole or not at all.

    Args:
        metrics: those of `training.metrics.all_metrics` for `split` and `answers`.
        where: what was measured on, for the heading.
        slices: by a column's name its value of each row.
        behaviour: how many behaviour tests passed and failed, by kind, and the failures.
    """
    found = measure(manifest, split, answers, metrics)
    made = [
        _headline(found),
        unseen(metrics),
        labels(found),
        label_errors(found) if found.several else confused(found),
        _slices(found, slices),
        calibration(found),
        coverage(found),
        precision_recall(found),
        scores(found),
        wrong_rows(found),
        doubtful_rows(found),
        candidates(manifest),
        behaviour_tests(behaviour),
    ]
    sections = [section for section in made if section is not None]
    title = f"{manifest.name} {manifest.version} on {where}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(title, _header(found, where), sections, _footer()))


def _header(found: Measured, where: str) -> Html:
    manifest = found.manifest
    task = "any number of labels a row" if found.several else "one label a row"
    texts = "pairs of texts" if manifest.has_pairs else "texts"
    facts = {
        "Version": element("code", manifest.version),
        "Made": f"{manifest.created_at[:16].replace('T', ' ')}",
        "Precision": manifest.precision,
        "Task": f"{task}, {texts}",
        "Labels": count(len(manifest.labels)),
        "Rows": count(len(found.split)),
    }
    listed = [
        element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items()
    ]
    return join(
        [
            paragraph("Evaluation report", class_="kicker"),
            user_text(manifest.name, "h1"),
            paragraph("measured on ", user_text(where, "strong"), class_="where"),
            element("dl", *listed, class_="facts"),
        ]
    )


def _footer() -> Html:
    return paragraph(
        "This file holds texts of the data: keep it where they may be kept. Shares and metrics "
        "have as many decimals as their rows carry, the third where half the 95 % interval is "
        "below 0.01; probabilities have three. Intervals are 95 % intervals, Wilson intervals of "
        "shares and by the bootstrap over rows else. Rows are counted from 1, without the heading "
        "and without rows that were dropped."
    )


def _headline(found: Measured) -> Section:
    metrics = found.metrics
    size = len(found.split)
    measures: list[tuple[str, Metric]] = [("Accuracy", "accuracy"), ("Macro-F1", "macro_f1")]
    if found.several:
        measures = [("Micro-F1", "micro_f1"), ("Macro-F1", "macro_f1"), ("All right", "accuracy")]
    tiles = [
        _tile(name, metrics[key], interval(found.truth, found.answered, key), _MEANINGS[key], size)
        for name, key in measures
    ]
    if found.several:
        tiles.append(_tile("Samples-F1", metrics["samples_f1"], None, "mean over rows", size))
        tiles.append(
            _tile("Average precision", metrics["average_precision"], None, "mean over labels", size)
        )
    else:
        tiles.append(
            _tile(
                "Weighted F1", metrics["weighted_f1"], None, "mean over labels by their rows", size
            )
        )
    tiles += _positive_tiles(found) + _abstention_tiles(found)
    if calibrated := metrics.get("calibration"):
        tiles.append(
            _tile("ECE", calibrated["ece"], None, "calibration error, lower is better", size)
        )
        tiles.append(_tile("Brier score", calibrated["brier"], None, "lower is better", size))
    rests_on = f" They are {on}." if (on := metrics.get("rests_on")) else ""
    return Section(
        "headline",
        "Headline",
        "Headline",
        f"What {plural(size, 'row')} say of the package as it ships; the interval is where the "
        f"number would fall on other rows of the same kind.{rests_on}",
        element("div", *tiles, class_="tiles"),
    )


_MEANINGS = {
    "accuracy": "rows with exactly the right answer",
    "macro_f1": "every label counts alike",
    "micro_f1": "every label of every row counts alike",
}


def _tile(
    name: str, value: float | None, ends: tuple[float, float] | None, about: str, rows: int
) -> Html:
    """A number; with its interval that says how many decimals it has, else its rows do."""
    written = score(value, rows)
    if ends is not None and value is not None:
        written = score(value, digits=decimals((ends[1] - ends[0]) / 2))
    parts = [element("h3", name), paragraph(written, class_="value")]
    if ends is not None and value is not None:
        parts.append(paragraph("95 % interval ", element("b", span(*ends)), class_="ends"))
    return element("div", *parts, paragraph(about, class_="about"), class_="tile")


def _positive_tiles(found: Measured) -> list[Html]:
    positive = found.metrics.get("positive")
    if positive is None:
        return []
    label = positive["label"]
    column = [found.manifest.labels.index(label)]
    truth, answered = found.truth[:, column], found.answered[:, column]
    hits, having, given = (int(x.sum()) for x in (truth & answered, truth, answered))
    threshold = f"from {score(positive['threshold'])} on"
    f1_ends = interval(truth, answered, "macro_f1")
    tiles = [
        ("F1", positive["f1"], f1_ends, threshold, having),
        ("Precision", positive["precision"], wilson(hits, given), "of those answered so", given),
        ("Recall", positive["recall"], wilson(hits, having), "of those that are so", having),
        ("Average precision", positive["average_precision"], None, "any threshold", having),
    ]
    return [_tile(f"{name} of {label}", *rest) for name, *rest in tiles]


def _abstention_tiles(found: Measured) -> list[Html]:
    abstention = found.metrics.get("abstention")
    if abstention is None:
        return []
    rows = len(found.split)
    answered = round(abstention["coverage"] * rows)
    right = round(abstention["precision"] * answered)
    about = f"score from {score(abstention['threshold'])} on"
    return [
        _tile("Coverage", abstention["coverage"], wilson(answered, rows), about, rows),
        _tile(
            "Precision if answered",
            abstention["precision"],
            wilson(right, answered),
            about,
            answered,
        ),
    ]


def _slices(found: Measured, chosen: Mapping[str, Sequence[str]]) -> Section:
    groups = [("By length of the text", by_length(found))]
    if frequency := by_label_frequency(found):
        groups.append(("By the share of the label in the training rows", frequency))
    groups += [(f"By {column}", by_value(found, values)) for column, values in chosen.items()]
    # Few rows have wide intervals: they are cut off rather than let all others shrink.
    start = axis_start(
        [part.accuracy if part.rows < SMALL_SLICE else part.low for _, g in groups for part in g]
    )
    tables = [
        join([user_text(name, "h3"), _slice_table(found, name, parts, start)])
        for name, parts in groups
    ]
    return Section(
        "slices",
        "Slices",
        "Slices",
        f"The same rows in groups; the dashed line is the accuracy of all, {_overall(found)}. A "
        "group whose interval lies left of it is weaker than the rest.",
        join(tables),
    )


def _overall(found: Measured) -> str:
    return score(float(found.metrics["accuracy"]), len(found.split))


def _slice_table(found: Measured, name: str, parts: Sequence[Slice], start: float) -> Html:
    columns = [
        Column("Group", numeric=False),
        Column("Rows"),
        Column("Accuracy"),
        Column("95 % interval"),
        Column(f"{start:g} to 1", numeric=False),
        Column("Macro-F1", "over the labels in the group"),
    ]
    rows = []
    for part in parts:
        few = part.rows < SMALL_SLICE
        mark = element("span", "few rows", class_="mark", title=f"fewer than {SMALL_SLICE}")
        rows.append(
            [
                element("th", user_text(part.name), " ", mark if few else "", scope="row"),
                counted(part.rows),
                scored(part.accuracy, part.rows),
                number(span(part.low, part.high), part.low),
                words(strip(part, start, float(found.metrics["accuracy"]))),
                scored(part.macro_f1, part.rows),
            ]
        )
    return table(columns, rows, name)
