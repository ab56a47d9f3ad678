"""Package + labelled text → metrics, a table, `metrics.json` and a picture.

Everything goes through `service.classifier.Classifier`, the code that serves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.classifier import Classifier, Prediction, predictions
from service.decisions import FloatArray
from service.inference.tokenizing import EncodedText
from service.model_package import Manifest, write_text
from training.calibrate import out_of_fold
from training.config import ExportArguments
from training.data import leakage
from training.data.splits import Split
from training.digits import measured
from training.errors import DataError
from training.layout import CONFUSION_FILE, LABELS_FILE
from training.metrics import all_metrics
from training.pictures import plain, save_figure
from training.progress import progress
from training.seen import SeenRows, unseen_metrics, unseen_sentence

if TYPE_CHECKING:
    from rich.table import Table

# Labels and cells of the picture stay readable up to here; beyond, it keeps the colours only.
READABLE_LABELS = 40
# A screen holds a confusion matrix of this many labels; of more, its largest cells.
SCREEN_LABELS = 10
SCREEN_PAIRS = 10
# Fewer rows than this are too few to fit anything to a part of them.
FEWEST_FOLDED = 10


def evaluate(
    classifier: Classifier, split: Split, where: str, seen: SeenRows | None = None
) -> tuple[dict[str, Any], list[Prediction]]:
    """Classify every row and compare with its label, which the package must know.

    Args:
        seen: rows that training has; the metrics then say `unseen`, too: the score without them.

    Raises:
        DataError: there is no row.
    """
    if not len(split):
        raise DataError(f"{where}: no row is left to use")
    with progress(len(split), "evaluate", "text", leave=False) as bar:
        answers = classifier.classify(split.texts, on_batch=bar.update)
    metrics = all_metrics(classifier.manifest, split.labels, answers)
    if seen is not None:
        metrics["unseen"] = unseen_metrics(classifier.manifest, split, answers, seen)
    return {"rests_on": _unseen(classifier.manifest, split), **metrics}, answers


def evaluate_validation(
    classifier: Classifier, arguments: ExportArguments, split: Split
) -> tuple[dict[str, Any], list[Prediction]]:
    """The same of the rows that the package was chosen by, each answered out-of-fold."""
    encoded = classifier.encode(split.texts)
    with progress(len(split), "evaluate", "text", leave=False) as bar:
        logits = classifier.window_logits(encoded, on_batch=bar.update)
    return validation_metrics_of(
        classifier.manifest, arguments, split.labels, encoded, logits, split.groups
    )


def validation_metrics_of(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> tuple[dict[str, Any], list[Prediction]]:
    """Metrics of validation rows that flatter as little as they can, and the answers.

    Args:
        truth: the labels of the validation rows.
        logits: of the package, of shape (windows of `encoded`, labels).
        groups: numbers of shape (rows,), equal where rows may not be parted; None where all may.
    """
    rests_on = "validation rows, which also chose the checkpoint"
    fitted = manifest.temperature != 1 or manifest.platt or manifest.thresholds
    if not fitted and manifest.abstain_threshold is None:
        answers = predictions(manifest, encoded, logits)
    elif len(truth) < FEWEST_FOLDED:
        rests_on += ", the calibration and the thresholds"
        answers = predictions(manifest, encoded, logits)
    else:
        rests_on += "; calibration and thresholds were fitted to others of them (out-of-fold)"
        answers = out_of_fold(manifest, arguments, truth, encoded, logits, groups)
    return {"rests_on": rests_on, **all_metrics(manifest, truth, answers)}, answers


def _unseen(manifest: Manifest, split: Split) -> str:
    """Whether the package was made with any of these rows, for `rests_on`."""
    found = leakage.overlap(manifest, split.texts)
    if found is None:
        return "rows of which the package does not say whether it was made with them"
    looked = "" if found.looked_at == len(split) else f" of the {found.looked_at} looked up"
    if not found.rows:
        return f"rows that the package was not made with{looked and f' (none{looked})'}"
    return (
        f"rows of which {len(found.rows)}{looked} were there when the package was made: they "
        "flatter it"
    )


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that a manifest keeps."""
    names = ("rows", "accuracy", "micro_f1", "macro_f1", "weighted_f1", "samples_f1")
    names = (*names, "average_precision", "positive", "abstention", "rests_on")
    found = {name: metrics[name] for name in names if name in metrics}
    calibration = metrics.get("calibration", {})
    return found | {name: calibration[name] for name in ("ece", "brier") if name in calibration}


def summary(metrics: dict[str, Any]) -> str:
    """The headline in words, with the decimals that its rows carry."""

    def written(name: str) -> str:
        return measured(metrics[name], metrics["rows"])

    if "samples_f1" in metrics:
        return (
            f"micro-F1 {written('micro_f1')}, macro-F1 {written('macro_f1')}, "
            f"samples-F1 {written('samples_f1')}, average precision {written('average_precision')}"
        )
    text = f"accuracy {written('accuracy')}, macro-F1 {written('macro_f1')}"
    if positive := metrics.get("positive"):
        # Older packages do not say how many rows have the label.
        f1 = measured(positive["f1"], positive.get("support", metrics["rows"]))
        text += f", F1 of {positive['label']} {f1}"
    return text


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """The metrics as a table on screen."""
    from rich.console import Console
    from rich.table import Table

    columns = ["precision", "recall", "f1"]
    if "samples_f1" in metrics:
        columns += ["average_precision", "threshold"]
    table = Table(title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    for name in (*columns, "support"):
        table.add_column(name.replace("f1", "F1").replace("_", " "), justify="right")
    for label, row in metrics["per_label"].items():
        values = [_cell(row, name) for name in columns]
        table.add_row(label, *values, str(row["support"]))
    # A label's brackets and colons are its own.
    console = Console(markup=False, emoji=False)
    console.print(table)
    if "confusion" in metrics:
        console.print(_confusion_table(metrics))
    console.print(f"{metrics['rows']} rows: {summary(metrics)}", highlight=False)
    if positive := metrics.get("positive"):
        area = positive["average_precision"]

        def written(name: str) -> str:
            return measured(positive[name], positive["support"])

        console.print(
            f"{positive['label']} from {positive['threshold']:.3f} on: precision "
            f"{written('precision')}, recall {written('recall')}, average precision "
            + ("-, of no row" if area is None else written("average_precision")),
            highlight=False,
        )
    if (unseen := metrics.get("unseen")) and (sentence := unseen_sentence(unseen)):
        console.print(sentence, highlight=False)
    rows = metrics["rows"]
    if found := metrics.get("abstention"):
        console.print(
            f"abstained on {measured(1 - found['coverage'], rows)} of the rows; of the others "
            f"{measured(found['precision'], round(found['coverage'] * rows))} are right",
            highlight=False,
        )


def _cell(row: dict[str, Any], name: str) -> str:
    """A label's number, with the decimals that its rows carry; a threshold is no measure."""
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


def write_metrics(metrics: dict[str, Any], path: Path) -> None:
    """`metrics.json`: the metrics, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def draw_metrics(metrics: dict[str, Any], folder: Path) -> Path:
    """A picture of the metrics: the confusions, or each label's precision and recall."""
    if "confusion" in metrics:
        draw_confusion(metrics, folder / CONFUSION_FILE)
        return folder / CONFUSION_FILE
    draw_labels(metrics, folder / LABELS_FILE)
    return folder / LABELS_FILE


def draw_labels(metrics: dict[str, Any], path: Path) -> None:
    """Precision, recall and F1 of each label as a PNG, the commonest label on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(metrics["per_label"].items(), key=lambda item: item[1]["support"])
    names = [plain(f"{label} ({row['support']})") for label, row in rows]
    figure, axes = pyplot.subplots(
        figsize=(8, min(40.0, 2.0 + 0.4 * len(names))), layout="constrained"
    )
    places = np.arange(len(names))
    for offset, name in ((0.27, "precision"), (0.0, "recall"), (-0.27, "f1")):
        values = [row[name] for _, row in rows]
        axes.barh(places + offset, values, height=0.25, label=name.replace("f1", "F1"))
    axes.set_yticks(places, names)
    axes.set_xlim(0, 1)
    axes.set_title(f"{summary(metrics)}")
    figure.legend(loc="outside lower center", ncols=3)
    save_figure(figure, path)


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
    axes.set_title(f"{summary(metrics)}")
    small = len(labels) > READABLE_LABELS
    names = [plain(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=6 if small else 9)
    axes.set_yticks(range(len(labels)), names, fontsize=6 if small else 9)
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
    save_figure(figure, path)
