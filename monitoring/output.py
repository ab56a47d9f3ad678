"""A look at production on screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from monitoring.collect import Collection
from monitoring.merging import Merged, Returned
from monitoring.report import Accuracy, DriftReport

SHOWN_CHECKS = 12
SHOWN_LINES = 10


def print_report(report: DriftReport) -> None:
    """The verdict, what it rests on, and the checks with the largest effects."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    window = report.windows[None]
    manifest = report.manifest
    console.print(
        f"{manifest.name}:{manifest.version}: {window.rows:,} captured answers, which tell as much "
        f"as {window.every.effective:,.0f} separate ones, compared with {report.reference.name}"
    )
    table = Table()
    for column in ("check", "before", "now", "difference", "p", "verdict"):
        table.add_column(column, justify="left" if column in ("check", "verdict") else "right")
    for check in report.checks[:SHOWN_CHECKS]:
        before = "" if check.before is None else f"{check.before:.1%}"
        now = "" if check.after is None else f"{check.after:.1%}"
        sign = "+" if check.before is not None else ""
        difference = f"{check.effect:{sign}.1%}"
        table.add_row(check.name, before, now, difference, f"{check.p:.2g}", check.verdict)
    console.print(table)
    if len(report.checks) > SHOWN_CHECKS:
        console.print(f"and {len(report.checks) - SHOWN_CHECKS} checks with smaller differences")
    for line in sentences(report):
        console.print(line)
    console.print(f"verdict: {report.verdict}")


def print_collection(collection: Collection) -> None:
    """How many texts were picked, why, and what was left out."""
    reasons = Counter(pick.reason for pick in collection.picks)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    print(f"{len(collection.picks)} texts of {collection.captured:,} captured answers: {counts}")
    if collection.without_text:
        print(f"left out: {collection.without_text:,} answers without their text")
    if collection.known:
        print(f"left out: {collection.known:,} texts that the training had")
    if collection.known_share < 1:
        print(
            f"the package knows only {collection.known_share:.0%} of its training texts: name the "
            "training file with --exclude, or texts are picked that it was trained on"
        )
    if collection.repeated:
        print(f"left out: {collection.repeated:,} texts that equal or resemble another one")


def print_merged(returned: Returned, merged: Merged) -> None:
    """How many labeled rows were added, and what became of the others."""
    print(f"{merged.added} labeled rows were added")
    if merged.present:
        print(f"left out: {merged.present} rows that the file has already")
    if returned.unlabeled:
        print(f"left out: {returned.unlabeled} rows without a label")
    if returned.left_out:
        print(f"left out: {returned.left_out} rows that were rejected or skipped")
    for kind, lines in (("cannot be used", returned.problems), ("conflict", merged.conflicts)):
        for line in lines[:SHOWN_LINES]:
            print(f"{kind}: {line}")
        if len(lines) > SHOWN_LINES:
            print(f"{kind}: and {len(lines) - SHOWN_LINES} more rows")


def sentences(report: DriftReport) -> Iterator[str]:
    """How right the answers are, the groups, and what could not be used."""
    name = "micro-F1" if report.manifest.task == "multi_label" else "accuracy"
    trained = "" if report.trained is None else f"; {report.trained:.3f} on validation"
    yield f"expected {name}: {_value(report.expected)}{trained}"
    if report.measured is not None:
        yield (
            f"measured {name}: {_value(report.measured)} of {report.measured.rows:,} answers "
            "with feedback"
        )
    for group, window in sorted(report.windows.items(), key=lambda item: -item[1].rows):
        if group is not None:
            share = max(share.value for share in window.labels)
            # Of several labels an answer has no score that expects it to be right.
            score = f"mean score {window.expected.value:.3f}, " if window.expected.of else ""
            yield (
                f"group {group}: {window.rows:,} answers, {score}"
                f"mostly {window.most_frequent!r} ({share:.0%})"
            )
    feedback = report.feedback
    if feedback.repeated:
        yield (
            f"{feedback.repeated} feedbacks name an id that several requests had: each is taken as "
            "one about the last answer before it"
        )
    if feedback.missing:
        yield f"{feedback.missing} feedbacks name no answer of this window"
    if feedback.other_versions:
        yield f"{feedback.other_versions} feedbacks are of answers of other versions"
    for label, count in feedback.shown_labels.items():
        yield f"{count} feedbacks name the label {label!r}, which the package does not have"
    more = len(feedback.unknown_labels) - len(feedback.shown_labels)
    if more > 0:
        yield f"feedbacks name {more} more labels that the package does not have"
    if report.reading.broken_lines:
        yield f"{report.reading.broken_lines} lines could not be read, such as the last of a part"
    for version, count in sorted(report.reading.other_versions.items()):
        yield f"{count:,} answers of version {version} were left out"


def _value(accuracy: Accuracy) -> str:
    if accuracy.low is None:
        return f"{accuracy.value:.3f}"
    return f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})"
