"""Package + labelled text → metrics, a table, `metrics.json` and a picture of the confusions.

Everything goes through `service.classifier.Classifier`, the code that serves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.classifier import Classifier, Prediction
from service.model_package import write_text
from training.data import Split
from training.errors import DataError
from training.progress import progress

if TYPE_CHECKING:
    from rich.table import Table

# Labels and cells of the picture stay readable up to here; beyond, it keeps the colours only.
READABLE_LABELS = 40
# A screen holds a confusion matrix of this many labels; of more, its largest cells.
SCREEN_LABELS = 10
SCREEN_PAIRS = 10


def evaluate(
    classifier: Classifier, split: Split, where: str
) -> tuple[dict[str, Any], list[Prediction]]:
    """Classify every row and compare with its label, which the package must know.

    Raises:
        DataError: there is no row.
    """
    if not len(split):
        raise DataError(f"{where}: no row is left to use")
    with progress(len(split), "evaluate", "text", leave=False) as bar:
        answers = classifier.classify(split.texts, on_batch=bar.update)
    chosen = [answer.label for answer in answers]
    return classification_metrics(list(classifier.manifest.labels), split.labels, chosen), answers


def classification_metrics(
    labels: list[str], truth: list[str], chosen: list[str]
) -> dict[str, Any]:
    """Metrics of single-label answers, as `metrics.json` holds them.

    Macro averages run over the labels that occur in `truth` or `chosen`: a label that the file
    lacks says nothing. `confusion[i][j]` counts rows of label i answered with label j, in the
    order of `labels`.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    seen = [label for label in labels if label in set(truth) | set(chosen)]
    columns = precision_recall_fscore_support(truth, chosen, labels=labels, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    per_label = {
        label: {
            name: (int if name == "support" else float)(column[index])
            for name, column in zip(names, columns, strict=True)
        }
        for index, label in enumerate(labels)
    }

    def f1(average: str) -> float:
        return float(f1_score(truth, chosen, labels=seen, average=average, zero_division=0))

    return {
        "rows": len(truth),
        "accuracy": float(np.mean(np.asarray(truth) == np.asarray(chosen))),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
        "micro_f1": f1("micro"),
        "per_label": per_label,
        "labels": labels,
        "confusion": confusion_matrix(truth, chosen, labels=labels).tolist(),
    }


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that a manifest keeps."""
    return {key: metrics[key] for key in ("rows", "accuracy", "macro_f1", "weighted_f1")}


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """The metrics as a table on screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    for name in ("precision", "recall", "F1", "support"):
        table.add_column(name, justify="right")
    for label, row in metrics["per_label"].items():
        values = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        table.add_row(label, *values, str(row["support"]))
    # A label's brackets and colons are its own.
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(_confusion_table(metrics))
    console.print(
        f"{metrics['rows']} rows: accuracy {metrics['accuracy']:.4f}, "
        f"macro-F1 {metrics['macro_f1']:.4f}, weighted-F1 {metrics['weighted_f1']:.4f}",
        highlight=False,
    )


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


def write_metrics(metrics: dict[str, Any], path: Path) -> None:
    """`metrics.json`: the metrics, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def draw_confusion(metrics: dict[str, Any], path: Path) -> None:
    """The confusion matrix as a PNG: rows are true labels, colour is the share of the row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels, counts = metrics["labels"], np.asarray(metrics["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(24.0, 3.0 + 0.55 * len(labels))
    figure, axes = pyplot.subplots(figsize=(size + 1, size), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.8)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    axes.set_title(f"accuracy {metrics['accuracy']:.3f}, macro-F1 {metrics['macro_f1']:.3f}")
    small = len(labels) > READABLE_LABELS
    # A `$` in a label is not mathematics.
    plain = [label.replace("$", r"\$") for label in labels]
    axes.set_xticks(range(len(labels)), plain, rotation=90, fontsize=6 if small else 9)
    axes.set_yticks(range(len(labels)), plain, fontsize=6 if small else 9)
    if not small:
        for row, column in np.argwhere(counts > 0):
            axes.text(
                column,
                row,
                f"{int(counts[row, column])}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        pyplot.close(figure)
