"""The report's sections about probabilities: calibration, coverage, precision-recall, scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.evaluation.metrics import average_precisions
from training.evaluation.report import plots
from training.evaluation.report.formats import score
from training.evaluation.report.plots import Axes, Dot
from training.evaluation.report.render import Section
from training.evaluation.report.rows import Measured, histograms
from training.evaluation.report.rows import precision_recall as precision_recall_points
from training.export.promises import broken_promises

# The curves of more labels would be a gray area.
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


def calibration(measured: Measured) -> Section | None:
    """Whether probabilities are frequencies, and what calibrating changed."""
    metrics = measured.metrics.get("calibration")
    if not metrics:
        return None
    name, things = ("mean confidence", "row")
    if measured.several:
        name, things = ("mean probability", "pair")
    data = {
        "several": measured.several,
        "rows": len(measured.split),
        "plot": plots.reliability(metrics["bins"], name, things),
        "measures": [
            {"name": name, "value": metrics[key]}
            for key, name in MEASURES.items()
            if metrics.get(key) is not None
        ],
        "at_export": _at_export(measured.manifest.calibration),
        "broken_promises": broken_promises(measured.manifest),
    }
    return Section("calibration", "Calibration", "calibration.html", data)


def _at_export(evidence: dict[str, Any]) -> dict[str, Any] | None:
    """What the export did on the validation rows, for an older package as far as it says so."""
    if not evidence:
        return None
    method = METHODS.get(evidence.get("method") or "", "The probabilities were left as they are.")
    if reason := evidence.get("reason"):
        method = f"{method.removesuffix('.')}: {reason}."
    before, after = evidence.get("before") or {}, evidence.get("after") or {}
    measures = [
        {"name": name, "before": before.get(key), "after": after.get(key)}
        for key, name in MEASURES.items()
        if key in before
    ]
    return {"method": method, "rows": evidence.get("rows"), "measures": measures}


def coverage(measured: Measured) -> Section | None:
    """How right the answers are when the least certain ones are left out."""
    points = measured.metrics.get("coverage")
    if not points:
        return None
    abstention = measured.metrics.get("abstention")
    data = {
        "rows": len(measured.split),
        "points": points,
        "abstention": abstention,
        "plot": plots.coverage(points, abstention),
    }
    return Section("coverage", "Coverage", "coverage.html", data)


@dataclass(frozen=True)
class LabelCurve:
    """One label's precision by recall, its average precision, and its metrics as answered."""

    label: str
    points: list[tuple[float, float]]
    area: float
    answered: dict[str, Any]

    @property
    def title(self) -> str:
        """The tooltip of the curve."""
        return f"{self.label}: average precision {score(self.area)}"

    @property
    def answer_dot(self) -> Dot:
        """Precision and recall as answered."""
        recall, precision = self.answered["recall"], self.answered["precision"]
        return Dot(recall, precision, 4.5, f"{self.title}, as answered")


def precision_recall(measured: Measured) -> Section | None:
    """Precision by recall, of the positive label or of all labels together and each."""
    curves = _label_curves(measured)
    if not curves:
        return None
    together = None
    if not measured.manifest.positive_label:
        together = precision_recall_points(measured.truth.ravel(), measured.probs.ravel())
    data = {
        "axes": Axes(height=380),
        "curves": curves,
        "ranked": sorted(curves, key=lambda curve: curve.area),
        "together": together,
    }
    return Section("precision-recall", "Precision and recall", "precision_recall.html", data)


def _label_curves(measured: Measured) -> list[LabelCurve]:
    """Of the positive label, or of the commonest labels in their order."""
    labels = list(measured.manifest.labels)
    support = measured.truth.sum(axis=0)
    columns = np.sort(np.argsort(-support, kind="stable")[:DRAWN_LABELS]).tolist()
    if measured.manifest.positive_label:
        columns = [labels.index(measured.manifest.positive_label)]
    areas = average_precisions(measured.truth, measured.probs)
    return [
        LabelCurve(
            labels[column],
            precision_recall_points(measured.truth[:, column], measured.probs[:, column]),
            area,
            measured.metrics["per_label"][labels[column]],
        )
        for column in columns
        if (area := areas[column]) is not None
    ]


def scores(measured: Measured) -> Section:
    """How probable the right and the wrong answers were."""
    right, wrong = histograms(measured)
    things = "decisions" if measured.several else "answers"
    data = {
        "several": measured.several,
        "histograms": [
            plots.histogram(
                counts, style, f"{kind} {things}", f"{kind.capitalize()} {things}: {sum(counts):,}"
            )
            for counts, style, kind in ((right, "hit", "right"), (wrong, "miss", "wrong"))
        ],
    }
    return Section("scores", "Scores", "scores.html", data)
