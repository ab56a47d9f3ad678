"""The report of `whetstone evaluate`: one HTML file that shows what the metrics cannot say alone.

    write_report(path, manifest, split, answers, metrics, where="test.csv")

The file holds texts of the data. It loads nothing, and is complete without its script. Each section
has a function that computes what it shows, and a template in `templates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from service.inference.classifier import Classifier, Prediction
from service.package.files import write_text
from service.package.manifest import Manifest
from training.data.splits import Split
from training.evaluation.explanations import explain_rows
from training.evaluation.report.curves import calibration, coverage, precision_recall, scores
from training.evaluation.report.evidence import behavior_tests, candidates
from training.evaluation.report.headline import headline, unseen
from training.evaluation.report.labels import confused_labels, label_errors, labels
from training.evaluation.report.render import PACKAGE, render_page
from training.evaluation.report.rows import measure
from training.evaluation.report.slices import slices as slices_section
from training.evaluation.report.texts import least_certain_rows, most_confident_errors
from training.evaluation.report.words import deciding_words


def write_report(
    path: Path,
    manifest: Manifest,
    split: Split,
    answers: Sequence[Prediction],
    metrics: dict[str, Any],
    *,
    where: str,
    slices: Mapping[str, Sequence[str]] = MappingProxyType({}),
    behaviour: dict[str, Any] | None = None,
    classifier: Classifier | None = None,
) -> None:
    """Write the report of a package's answers, whole or not at all.

    Args:
        metrics: those of `training.evaluation.metrics.all_metrics` for `split` and `answers`.
        where: the file that was measured on, for the heading.
        slices: by a column's name its value of each row.
        behaviour: how many behavior tests passed and failed, by kind, and the failures.
        classifier: the package; with it, the report says which words decide.

    Raises:
        NotFiniteError: the model computed no number for a text without some of its words.
    """
    measured = measure(manifest, split, answers, metrics)
    explanations = None if classifier is None else explain_rows(classifier, measured)
    sections = [
        headline(measured),
        unseen(metrics),
        labels(measured),
        label_errors(measured) if measured.several else confused_labels(measured),
        slices_section(measured, slices),
        calibration(measured),
        coverage(measured),
        precision_recall(measured),
        scores(measured),
        most_confident_errors(measured),
        least_certain_rows(measured),
        deciding_words(measured, explanations),
        candidates(manifest),
        behavior_tests(behaviour),
    ]
    labels_per_row = "any number of labels a row" if measured.several else "one label a row"
    content = render_page(
        "report.html",
        PACKAGE,
        f"{manifest.name} {manifest.version} on {where}",
        [section for section in sections if section is not None],
        manifest=manifest,
        where=where,
        task=f"{labels_per_row}, {'pairs of texts' if manifest.has_pairs else 'texts'}",
        rows=len(split),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
