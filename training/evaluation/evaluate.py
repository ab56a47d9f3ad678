"""Package + labeled text → metrics and `metrics.json`.

Everything goes through `service.inference.classifier.Classifier`, the code that serves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.inference.classifier import Classifier, Prediction, predictions
from service.inference.decisions import FloatArray
from service.inference.tokenizing import EncodedText
from service.package.files import write_text
from service.package.manifest import Manifest
from training.common.digits import measured
from training.common.errors import DataError
from training.common.progress import progress
from training.data.leakage import find_leakage
from training.data.splits import Split
from training.evaluation.metrics import all_metrics
from training.evaluation.seen import SeenRows, unseen_metrics
from training.export.finish import out_of_fold
from training.recipe.arguments import ExportArguments

# Fewer rows than this are too few to fit anything to a part of them.
FEWEST_FOLDED = 10
# The metrics that a manifest keeps, beside two of calibration.
HEADLINE = (
    *("rows", "accuracy", "micro_f1", "macro_f1", "weighted_f1", "samples_f1"),
    *("average_precision", "positive", "abstention", "rests_on"),
)


def evaluate(
    classifier: Classifier, split: Split, where: str, seen: SeenRows | None = None
) -> tuple[dict[str, Any], list[Prediction]]:
    """Classify every row and compare with its label, which the package must know.

    Args:
        seen: rows that training has; the metrics then have `unseen`, the score without them.

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
    classifier: Classifier,
    arguments: ExportArguments,
    split: Split,
    held_out: FloatArray | None = None,
) -> tuple[dict[str, Any], list[Prediction]]:
    """Classify the validation rows out-of-fold, as the package was chosen by them.

    Args:
        held_out: the logits of the rows, of shape (windows, labels), by a checkpoint that has not
            seen them; None where the package's own has not.
    """
    encoded = classifier.encode(split.texts)
    logits = held_out
    if logits is None:
        with progress(len(split), "evaluate", "text", leave=False) as bar:
            logits = classifier.window_logits(encoded, on_batch=bar.update)
    return validation_metrics_of(
        classifier.manifest,
        arguments,
        split.labels,
        encoded,
        logits,
        split.groups,
        held_out=held_out is not None,
    )


def validation_metrics_of(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
    *,
    held_out: bool = False,
) -> tuple[dict[str, Any], list[Prediction]]:
    """Metrics of validation rows that flatter as little as possible, and the answers.

    Args:
        truth: the labels of the validation rows.
        logits: of the package, of shape (windows of `encoded`, labels).
        groups: numbers of shape (rows,), equal where rows may not be parted; None where all may.
        held_out: the logits are those of a model like the package's, without these rows.
    """
    rests_on = "validation rows, which also chose the checkpoint"
    if held_out:
        rests_on = (
            "validation rows, by a model that was trained without them and whose epoch they chose"
        )
    fitted = manifest.temperature != 1 or manifest.platt or manifest.thresholds
    if not fitted and manifest.abstain_threshold is None:
        answers = predictions(manifest, encoded, logits)
    elif len(truth) < FEWEST_FOLDED or (groups is not None and len(np.unique(groups)) < 2):
        rests_on += ", the calibration and the thresholds"
        answers = predictions(manifest, encoded, logits)
    else:
        rests_on += "; calibration and thresholds were fitted to others of them (out-of-fold)"
        answers = out_of_fold(manifest, arguments, truth, encoded, logits, groups)
    metrics = {"rests_on": rests_on, **all_metrics(manifest, truth, answers)}
    return metrics | ({"of_another_model": True} if held_out else {}), answers


def _unseen(manifest: Manifest, split: Split) -> str:
    """Whether the package was made with any of these rows, for `rests_on`."""
    leakage = find_leakage(manifest, split.texts)
    if leakage is None:
        return "rows of which the package does not say whether it was made with them"
    looked_up = "" if leakage.looked_at == len(split) else f" of the {leakage.looked_at} looked up"
    if not leakage.rows:
        return f"rows that the package was not made with{looked_up and f' (none{looked_up})'}"
    return (
        f"rows of which {len(leakage.rows)}{looked_up} were there when the package was made: they "
        "flatter it"
    )


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that a manifest keeps."""
    calibration = metrics.get("calibration", {})
    kept = {name: metrics[name] for name in HEADLINE if name in metrics}
    return kept | {name: calibration[name] for name in ("ece", "brier") if name in calibration}


def summary(metrics: dict[str, Any]) -> str:
    """The headline in words, with the decimals that its rows carry."""

    def text_of(name: str) -> str:
        return measured(metrics[name], metrics["rows"])

    if "samples_f1" in metrics:
        return (
            f"micro-F1 {text_of('micro_f1')}, macro-F1 {text_of('macro_f1')}, "
            f"samples-F1 {text_of('samples_f1')}, average precision {text_of('average_precision')}"
        )
    text = f"accuracy {text_of('accuracy')}, macro-F1 {text_of('macro_f1')}"
    if positive := metrics.get("positive"):
        # Older packages do not say how many rows have the label.
        f1 = measured(positive["f1"], positive.get("support", metrics["rows"]))
        text += f", F1 of {positive['label']} {f1}"
    return text


def write_metrics(metrics: dict[str, Any], path: Path) -> None:
    """Write the metrics as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
