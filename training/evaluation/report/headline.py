"""The report's first sections: the headline, and the score without rows that training has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.common.digits import decimals
from training.evaluation.report.formats import score, span
from training.evaluation.report.render import Section
from training.evaluation.report.rows import Measured
from training.evaluation.significance import Metric, interval, wilson

MEANINGS: dict[Metric, str] = {
    "accuracy": "rows with exactly the right answer",
    "macro_f1": "every label counts alike",
    "micro_f1": "every label of every row counts alike",
}


@dataclass(frozen=True)
class Tile:
    """A number with its name, its 95 % interval where it has one, and what it is."""

    name: str
    value: str
    interval: str | None
    about: str


def headline(measured: Measured) -> Section:
    """The main metrics, with intervals."""
    tiles = [
        *_main_tiles(measured),
        *_positive_tiles(measured),
        *_abstention_tiles(measured),
        *_calibration_tiles(measured),
    ]
    data = {
        "rows": len(measured.split),
        "rests_on": measured.metrics.get("rests_on"),
        "of_another_model": measured.metrics.get("of_another_model", False),
        "tiles": tiles,
    }
    return Section("headline", "Headline", "headline.html", data)


def _tile(
    name: str, value: float | None, ends: tuple[float, float] | None, about: str, rows: int
) -> Tile:
    """A number with the decimals that its interval carries; without one, those of its rows."""
    if ends is None or value is None:
        return Tile(name, score(value, rows), None, about)
    digits = decimals((ends[1] - ends[0]) / 2)
    return Tile(name, score(value, digits=digits), span(*ends), about)


def _main_tiles(measured: Measured) -> list[Tile]:
    metrics, rows = measured.metrics, len(measured.split)
    names: list[tuple[str, Metric]] = [("Accuracy", "accuracy"), ("Macro-F1", "macro_f1")]
    others = [("Weighted F1", "weighted_f1", "mean over labels by their rows")]
    if measured.several:
        names = [("Micro-F1", "micro_f1"), ("Macro-F1", "macro_f1"), ("All right", "accuracy")]
        others = [
            ("Samples-F1", "samples_f1", "mean over rows"),
            ("Average precision", "average_precision", "mean over labels"),
        ]
    tiles = []
    for name, key in names:
        ends = interval(measured.truth, measured.answered, key)
        tiles.append(_tile(name, metrics[key], ends, MEANINGS[key], rows))
    return tiles + [_tile(name, metrics[key], None, about, rows) for name, key, about in others]


def _positive_tiles(measured: Measured) -> list[Tile]:
    positive = measured.metrics.get("positive")
    if positive is None:
        return []
    label = positive["label"]
    column = [measured.manifest.labels.index(label)]
    truth, answered = measured.truth[:, column], measured.answered[:, column]
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


def _abstention_tiles(measured: Measured) -> list[Tile]:
    abstention = measured.metrics.get("abstention")
    if abstention is None:
        return []
    rows = len(measured.split)
    answered = round(abstention["coverage"] * rows)
    right = round(abstention["precision"] * answered)
    about = f"score from {score(abstention['threshold'])} on"
    coverage, precision = abstention["coverage"], abstention["precision"]
    return [
        _tile("Coverage", coverage, wilson(answered, rows), about, rows),
        _tile("Precision if answered", precision, wilson(right, answered), about, answered),
    ]


def _calibration_tiles(measured: Measured) -> list[Tile]:
    calibration, rows = measured.metrics.get("calibration"), len(measured.split)
    if not calibration:
        return []
    return [
        _tile("ECE", calibration["ece"], None, "calibration error, lower is better", rows),
        _tile("Brier score", calibration["brier"], None, "lower is better", rows),
    ]


def unseen(metrics: dict[str, Any]) -> Section | None:
    """The score with and without the rows that training has seen, where that was looked at."""
    unseen_metrics = metrics.get("unseen")
    if unseen_metrics is None:
        return None
    is_near = unseen_metrics["by"] == "near-duplicates"
    kind = "near-duplicates of" if is_near else "equal to"
    parts = (
        ("all rows", unseen_metrics["with"]),
        (f"those not {kind} a text of training", unseen_metrics["without"]),
    )
    data = {
        "is_near": is_near,
        "kind": kind,
        "looked_at": unseen_metrics["looked_at"],
        "seen": unseen_metrics["seen"],
        "metrics": list(unseen_metrics["with"]["metrics"]),
        "lines": [
            {"name": name, "rows": part["rows"], "scores": part["metrics"]}
            if part
            else {"name": name, "rows": 0, "scores": None}
            for name, part in parts
        ],
    }
    return Section("unseen", "Unseen rows", "unseen.html", data)
