"""The page of a look at production, in the style of the report.

    write_drift_page(path, report)

The file holds numbers and the names of labels and groups, and no text of a request. It loads
nothing, and is complete without its script.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from monitoring.drift import Check, Verdict
from monitoring.output import sentences
from monitoring.report import DriftReport
from monitoring.window import Counts
from service.package.files import write_text
from training.evaluation.report.render import Section, render_page

STYLES: dict[Verdict, str] = {"drift": "bad", "steady": "good", "too few rows": "open"}


def write_drift_page(path: Path, report: DriftReport) -> None:
    """Write the page, whole or not at all."""
    manifest = report.manifest
    sections = [_verdict(report), _checks(report), _labels(report), *_histograms(report)]
    if len(report.windows) > 1:
        sections.append(_groups(report))
    content = render_page(
        "drift.html",
        "monitoring",
        f"Production of {manifest.name} {manifest.version}",
        sections,
        report=report,
        window=report.windows[None],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)


def _verdict(report: DriftReport) -> Section:
    data = {
        "outcome": report.verdict,
        "style": STYLES[report.verdict],
        "found": [_in_words(check) for check in report.checks if check.verdict == "drift"],
        "notes": list(sentences(report)),
    }
    return Section("verdict", "Verdict", "drift_verdict.html", data)


def _in_words(check: Check) -> str:
    if check.before is None or check.after is None:
        return f"{check.name} differs by {check.effect:.0%} of the rows"
    return f"{check.name}: {check.before:.1%} before, {check.after:.1%} now"


def _checks(report: DriftReport) -> Section:
    return Section("checks", "Checks", "drift_checks.html", report.checks)


@dataclass(frozen=True)
class LabelShares:
    """The shares of a label before and now."""

    name: str
    before: float
    now: float


def _labels(report: DriftReport) -> Section:
    window = report.windows[None]
    rows = zip(report.reference.names, report.reference.labels, window.labels, strict=True)
    lines = [LabelShares(name, float(before), share.value) for name, before, share in rows]
    lines.sort(key=lambda line: -abs(line.now - line.before))
    return Section("labels", "Labels", "drift_labels.html", lines)


@dataclass(frozen=True)
class Bin:
    """A bin of two histograms: its edges, and the shares of the rows before and now."""

    low: float
    high: float
    before: float
    now: float


def _histograms(report: DriftReport) -> list[Section]:
    """Scores and tokens, where both sides have them."""
    window, reference = report.windows[None], report.reference
    scores = _bins(window.confidence_edges, reference.confidence, window.confidence)
    tokens = _bins(window.token_edges, reference.tokens, window.tokens)
    titles = (("scores", "Scores", scores, 2), ("tokens", "Tokens", tokens, 0))
    return [
        Section(name, title, "drift_histogram.html", {"bins": bins, "digits": digits})
        for name, title, bins, digits in titles
        if bins
    ]


def _bins(edges: Counts, before: Counts, now: Counts) -> list[Bin]:
    """Bins from the first that holds something to the last."""
    if not before.sum() or not now.sum():
        return []
    held = np.flatnonzero(before + now)
    bins = [
        Bin(low, high, old, new)
        for (low, high), old, new in zip(
            pairwise(edges.tolist()),
            (before / before.sum()).tolist(),
            (now / now.sum()).tolist(),
            strict=True,
        )
    ]
    return bins[held[0] : held[-1] + 1]


def _groups(report: DriftReport) -> Section:
    groups = [(name, window) for name, window in report.windows.items() if name is not None]
    groups.sort(key=lambda group: -group[1].rows)
    return Section("groups", "Groups", "drift_groups.html", groups)
