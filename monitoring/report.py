"""One look at production: captured files and a package → what has changed, and how right it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.accuracy import Feedbacks, with_feedback
from monitoring.captured import Captured, Reading
from monitoring.drift import Check, Reference, Verdict, drift, mean_interval, overall
from monitoring.window import Share, Window, windows_of
from service.package.manifest import Manifest
from training.common.errors import DataError


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, or an F1 of several labels, with its 95 % interval.

    Attributes:
        rows: that it rests on.
        low, high: None of an F1, whose interval is not known.
    """

    value: float
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True)
class DriftReport:
    """What a window of production says.

    Attributes:
        expected: the accuracy that the calibrated probabilities expect.
        measured: the accuracy of the answers that feedback names; None without any.
        trained: the accuracy on the validation rows of the training; None where it is not known.
    """

    manifest: Manifest
    reference: Reference
    since: datetime | None
    until: datetime | None
    windows: dict[str | None, Window]
    checks: list[Check]
    verdict: Verdict
    expected: Accuracy
    measured: Accuracy | None
    trained: float | None
    feedback: Feedbacks
    reading: Reading


def look_at_production(
    manifest: Manifest, captured: Captured, reference: Captured | None = None
) -> DriftReport:
    """Compare captured answers of a package with its profile, or with an earlier window.

    Args:
        captured: answers of this package's version; others are counted and left out.

    Raises:
        DataError: there is no answer of this version.
    """
    reading = Reading()
    met = Feedbacks(frozenset(manifest.labels), manifest.version)
    answers = with_feedback(captured.answers(reading), captured.feedback(), met)
    windows = windows_of(manifest, answers)
    window = windows[None]
    if not window.rows:
        raise DataError(_nothing(manifest, reading))
    compared = Reference.of_package(manifest)
    if reference is not None:
        before = windows_of(manifest, reference.answers(), by_group=False)[None]
        if not before.rows:
            raise DataError(f"the reference window holds no answer of {manifest.version}")
        compared = Reference.of_window(before)
    checks = drift(compared, window)
    return DriftReport(
        manifest=manifest,
        reference=compared,
        since=captured.since,
        until=captured.until,
        windows=windows,
        checks=checks,
        verdict=overall(checks),
        expected=_expected(manifest, window),
        measured=_measured(manifest, met),
        trained=_trained(manifest),
        feedback=met,
        reading=reading,
    )


def as_json(report: DriftReport) -> dict[str, Any]:
    """The report for a file: numbers, and the names of labels and groups; no text of a request."""
    return {
        "package": f"{report.manifest.name}:{report.manifest.version}",
        "reference": report.reference.name,
        "since": report.since and report.since.isoformat(),
        "until": report.until and report.until.isoformat(),
        "verdict": report.verdict,
        "rows": report.windows[None].rows,
        "effective_rows": round(report.windows[None].every.effective, 1),
        "broken_lines": report.reading.broken_lines,
        "other_versions": report.reading.other_versions,
        "checks": [vars(check) for check in report.checks],
        "accuracy": {
            "expected": vars(report.expected),
            "measured": report.measured and vars(report.measured),
            "validation": report.trained,
        },
        "feedback": {
            "without_answer": report.feedback.missing,
            "repeated_ids": report.feedback.repeated,
            "other_versions": report.feedback.other_versions,
            "unknown_labels": report.feedback.shown_labels,
        },
        "groups": {
            name: _group(report.manifest, window)
            for name, window in report.windows.items()
            if name is not None
        },
    }


def _group(manifest: Manifest, window: Window) -> dict[str, Any]:
    shares = zip(manifest.labels, window.labels, strict=True)
    return {
        "rows": window.rows,
        "labels": {name: round(share.value, 6) for name, share in shares},
        "abstained": round(window.abstained.value, 6) if window.abstained.of else None,
        "truncated": round(window.truncated.value, 6),
    }


def _nothing(manifest: Manifest, reading: Reading) -> str:
    message = f"nothing was captured of {manifest.name} {manifest.version} in that time"
    if reading.other_versions:
        versions = ", ".join(sorted(reading.other_versions))
        message += f"; there are answers of {versions}: name the package that gave them"
    return message


def _expected(manifest: Manifest, window: Window) -> Accuracy:
    if manifest.task == "multi_label":
        return Accuracy(window.expected_f1, None, None, window.rows)
    return _share(window.expected, window.rows)


def _measured(manifest: Manifest, met: Feedbacks) -> Accuracy | None:
    if not met.right.of:
        return None
    rows = met.rows
    if manifest.task == "multi_label":
        return Accuracy(met.micro_f1, None, None, rows)
    return _share(met.right, rows)


def _share(share: Share, rows: int) -> Accuracy:
    low, high = mean_interval(share)
    return Accuracy(share.value, low, high, rows)


def _trained(manifest: Manifest) -> float | None:
    metrics = manifest.metrics.get("validation")
    name = "micro_f1" if manifest.task == "multi_label" else "accuracy"
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) else None
