"""Metrics and behavior tests on screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from training.common.digits import measured
from training.evaluation.evaluate import summary
from training.evaluation.seen import unseen_sentence

if TYPE_CHECKING:
    from rich.table import Table

# A screen holds a confusion matrix of this many labels; of more, its largest cells.
SCREEN_LABELS = 10
SCREEN_PAIRS = 10


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print the metrics of every label, the confusions and the headline."""
    from rich.console import Console

    # A label's brackets and colons are its own.
    console = Console(markup=False, emoji=False)
    console.print(_label_table(metrics, title))
    if "confusion" in metrics:
        console.print(_confusion_table(metrics))
    for line in _headline_lines(metrics):
        console.print(line, highlight=False)


def _label_table(metrics: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    columns = ["precision", "recall", "f1"]
    if "samples_f1" in metrics:
        columns += ["average_precision", "threshold"]
    table = Table(title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    for name in (*columns, "support"):
        table.add_column(name.replace("f1", "F1").replace("_", " "), justify="right")
    for label, row in metrics["per_label"].items():
        table.add_row(label, *(_cell(row, name) for name in columns), str(row["support"]))
    return table


def _headline_lines(metrics: dict[str, Any]) -> list[str]:
    """A line for each part of the metrics that concerns all rows."""
    rows = metrics["rows"]
    lines = [f"{rows} rows: {summary(metrics)}"]
    if positive := metrics.get("positive"):
        lines.append(_positive_line(positive))
    if (unseen := metrics.get("unseen")) and (sentence := unseen_sentence(unseen)):
        lines.append(sentence)
    if abstention := metrics.get("abstention"):
        coverage, precision = abstention["coverage"], abstention["precision"]
        lines.append(
            f"abstained on {measured(1 - coverage, rows)} of the rows; of the others "
            f"{measured(precision, round(coverage * rows))} are right"
        )
    return lines


def _positive_line(positive: dict[str, Any]) -> str:
    def text_of(name: str) -> str:
        return measured(positive[name], positive["support"])

    area = "-, of no row"
    if positive["average_precision"] is not None:
        area = text_of("average_precision")
    return (
        f"{positive['label']} from {positive['threshold']:.3f} on: precision "
        f"{text_of('precision')}, recall {text_of('recall')}, average precision {area}"
    )


def _cell(row: dict[str, Any], name: str) -> str:
    """A number with the decimals that the label's rows carry; a threshold has three."""
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f}" if name == "threshold" else measured(row[name], row["support"])


def _confusion_table(metrics: dict[str, Any]) -> Table:
    """The confusion matrix for the screen; of many labels the most confused pairs."""
    from rich.table import Table

    labels, counts = metrics["labels"], np.asarray(metrics["confusion"])
    if len(labels) <= SCREEN_LABELS:
        table = Table(title="rows of a label (down) by answer (across)", title_justify="left")
        # Numbers across, since eight names do not fit side by side.
        table.add_column("label", overflow="fold")
        for number in range(1, len(labels) + 1):
            table.add_column(str(number), justify="right")
        for number, (label, row) in enumerate(zip(labels, counts, strict=True), start=1):
            table.add_row(f"{number} {label}", *(str(count) if count else "·" for count in row))
        return table
    table = Table(title="most confused", title_justify="left")
    for name in ("label", "answered", "rows"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    wrong = counts * ~np.eye(len(labels), dtype=bool)
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:SCREEN_PAIRS]:
        row, column = np.unravel_index(cell, wrong.shape)
        if wrong[row, column]:
            table.add_row(labels[row], labels[column], str(wrong[row, column]))
    return table


def print_behavior(result: dict[str, Any]) -> None:
    """Print the behavior tests as a table, then each failure."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="behavior tests", title_justify="left")
    for name in ("kind", "test", "passed", "failed"):
        table.add_column(
            name, justify="right" if name in ("passed", "failed") else "left", overflow="fold"
        )
    for test in result["tests"]:
        counts = (str(test["passed"]), str(test["failed"]))
        table.add_row(test["kind"], test["name"], *counts)
    # Texts may hold brackets and colons of their own.
    console = Console(markup=False, emoji=False)
    console.print(table)
    for failure in result["failures"]:
        console.print(
            f"{failure['name']}: {failure['text']!r} expected {failure['expected']}, got "
            f"{failure['got']}",
            highlight=False,
        )
    console.print(f"{result['passed']} passed, {result['failed']} failed", highlight=False)
