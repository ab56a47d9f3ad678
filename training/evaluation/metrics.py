"""Truth and answers → metrics; pure arithmetic over scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.inference.classifier import Prediction
from service.inference.decisions import FloatArray
from service.package.manifest import InferenceConfig, Task

# Steps of the coverage-precision table.
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# Bins of the reliability diagram and of the expected calibration error.
CALIBRATION_BINS = 15
Labels = Sequence[tuple[str, ...]]


def validation_metrics(probs: FloatArray, targets: np.ndarray, task: Task) -> dict[str, float]:
    """The metrics by which checkpoints are compared, before any threshold is chosen.

    With one label a row: accuracy and macro-F1 over all labels. With several: the share of rows
    with exactly the right labels, micro- and macro-F1, at 0.5; and the mean over labels of the
    average precision, which needs no threshold.

    Args:
        probs: shape (rows, labels).
        targets: as `training.data.encoding.make_targets` makes them.
    """
    from sklearn.metrics import f1_score

    if task == "single_label":
        chosen = probs.argmax(axis=-1)
        macro = f1_score(
            targets, chosen, labels=range(probs.shape[-1]), average="macro", zero_division=0
        )
        return {"accuracy": float((chosen == targets).mean()), "macro_f1": float(macro)}
    truth, answered = targets.astype(bool), probs >= 0.5
    precisions = average_precisions(truth, probs)
    return {
        "accuracy": float((truth == answered).all(axis=-1).mean()),
        "micro_f1": float(f1_score(truth, answered, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, answered, average="macro", zero_division=0)),
        "average_precision": mean_of(precisions),
    }


def average_precisions(truth: np.ndarray, probs: FloatArray) -> list[float | None]:
    """Average precision of each column; None where no row has the label."""
    from sklearn.metrics import average_precision_score

    return [
        float(average_precision_score(truth[:, column], probs[:, column]))
        if truth[:, column].any()
        else None
        for column in range(truth.shape[1])
    ]


def mean_of(values: Sequence[float | None]) -> float:
    """The mean of the values that are not None; 0 where there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def all_metrics(
    config: InferenceConfig, truth: Labels, answers: Sequence[Prediction]
) -> dict[str, Any]:
    """Every metric of a package's answers, as `metrics.json` holds them."""
    names = list(config.labels)
    probs = np.stack([answer.probs for answer in answers])
    calibration = calibration_metrics(probs, label_matrix(truth, names), config.task)
    if config.task == "multi_label":
        return multi_label_metrics(config, truth, answers) | {"calibration": calibration}
    wanted = [labels[0] for labels in truth]
    metrics = single_label_metrics(names, wanted, [answer.label for answer in answers])
    metrics["calibration"] = calibration
    if config.positive_label is not None:
        metrics["positive"] = positive_metrics(config, metrics, wanted, answers)
    right = np.asarray([a.label == label for a, label in zip(answers, wanted, strict=True)])
    scores = np.asarray([answer.score for answer in answers])
    metrics["coverage"] = coverage_table(right, scores)
    if config.abstain_threshold is not None:
        # As each answer is marked: out-of-fold it has the threshold of its fold.
        kept = np.asarray([not answer.abstained for answer in answers])
        threshold = config.abstain_threshold
        metrics["abstention"] = coverage_at(right, kept.astype(float), 1.0)
        metrics["abstention"]["threshold"] = threshold
    return metrics


def single_label_metrics(labels: list[str], truth: list[str], chosen: list[str]) -> dict[str, Any]:
    """Metrics of single-label answers.

    Macro averages run over the labels that occur in `truth` or `chosen`: the others have no F1.
    `confusion[i][j]` counts rows of label i answered with label j, in the order of `labels`.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    occurring = set(truth) | set(chosen)
    seen = [label for label in labels if label in occurring]
    columns = precision_recall_fscore_support(truth, chosen, labels=labels, zero_division=0)

    def f1(average: str) -> float:
        return float(f1_score(truth, chosen, labels=seen, average=average, zero_division=0))

    return {
        "rows": len(truth),
        "accuracy": float(np.mean(np.asarray(truth) == np.asarray(chosen))),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
        "micro_f1": f1("micro"),
        "per_label": _per_label(labels, columns),
        "labels": labels,
        "confusion": confusion_matrix(truth, chosen, labels=labels).tolist(),
    }


def positive_metrics(
    config: InferenceConfig,
    metrics: dict[str, Any],
    truth: list[str],
    answers: Sequence[Prediction],
) -> dict[str, Any]:
    """The metrics of the positive label of two."""
    positive = config.positive_label
    assert positive is not None  # noqa: S101 - the caller checked
    column = config.labels.index(positive)
    is_positive = np.asarray([[label == positive] for label in truth])
    probs = np.asarray([[answer.probs[column]] for answer in answers], dtype=np.float32)
    return {
        "label": positive,
        "threshold": config.thresholds[positive],
        **metrics["per_label"][positive],
        "average_precision": average_precisions(is_positive, probs)[0],
    }


def multi_label_metrics(
    config: InferenceConfig, truth: Labels, answers: Sequence[Prediction]
) -> dict[str, Any]:
    """Metrics of multi-label answers at the package's thresholds.

    A row that rightly gets no label counts 1 in samples-F1. Macro averages run over the labels
    that occur in `truth` or in an answer; average precision over those in `truth`.
    """
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    names = list(config.labels)
    wanted = label_matrix(truth, names)
    chosen = label_matrix([answer.labels or () for answer in answers], names)
    probs = np.stack([answer.probs for answer in answers])
    columns = precision_recall_fscore_support(wanted, chosen, average=None, zero_division=0)
    precisions = average_precisions(wanted, probs)
    per_label = _per_label(names, columns)
    for label, precision in zip(names, precisions, strict=True):
        per_label[label] |= {
            "average_precision": precision,
            "threshold": config.thresholds[label],
        }
    seen = wanted.any(axis=0) | chosen.any(axis=0)
    with warnings.catch_warnings():
        # scikit-learn warns where no row has a label at all, which is what zero_division answers.
        warnings.simplefilter("ignore")
        samples = f1_score(wanted, chosen, average="samples", zero_division=1)
    return {
        "rows": len(truth),
        "rows_without_labels": int((~wanted.any(axis=1)).sum()),
        "accuracy": float((wanted == chosen).all(axis=1).mean()),
        "micro_f1": float(f1_score(wanted, chosen, average="micro", zero_division=0)),
        "macro_f1": float(np.mean(columns[2][seen])) if seen.any() else 0.0,
        "samples_f1": float(samples),
        "average_precision": mean_of(precisions),
        "per_label": per_label,
        "labels": names,
    }


def calibration_metrics(probs: FloatArray, truth: np.ndarray, task: Task) -> dict[str, Any]:
    """How far probabilities are from frequencies, before any threshold.

    With one label a row the most probable label counts: its probability is the confidence. With
    several, every probability of every label does. ECE is the mean distance of confidence and
    frequency over equal-width bins, weighted by rows (Naeini et al. 2015, "Obtaining Well
    Calibrated Probabilities Using Bayesian Binning"). The Brier score is the mean squared distance
    of probabilities and truth, summed over the labels of a single-label row (Brier 1950).

    Args:
        probs, truth: shape (rows, labels), truth boolean.

    Returns:
        `ece`, `brier`, `log_loss` (nats a row, of several labels a row and label) and `bins`.
    """
    likely = np.clip(probs.astype(np.float64), 1e-12, 1 - 1e-12)
    squares = (likely - truth) ** 2
    if task == "single_label":
        confidence, right = probs.max(axis=1), truth[np.arange(len(probs)), probs.argmax(axis=1)]
        brier, log_loss = squares.sum(axis=1).mean(), -np.log(likely[truth]).mean()
    else:
        confidence, right = probs.ravel(), truth.ravel()
        brier = squares.mean()
        log_loss = -np.where(truth, np.log(likely), np.log1p(-likely)).mean()
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    # A bin holds its upper edge, the first one its lower edge, too.
    places = np.clip(np.searchsorted(edges, confidence) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(places, minlength=CALIBRATION_BINS)
    sums = np.bincount(places, weights=confidence, minlength=CALIBRATION_BINS)
    hits = np.bincount(places, weights=right, minlength=CALIBRATION_BINS)
    bins: list[dict[str, Any]] = []
    for index, count in enumerate(counts.tolist()):
        mean, share = (sums[index] / count, hits[index] / count) if count else (None, None)
        ends = {"low": float(edges[index]), "high": float(edges[index + 1])}
        bins.append({**ends, "count": count, "confidence": mean, "accuracy": share})
    ece = float(np.abs(sums - hits).sum() / len(confidence))
    return {"ece": ece, "brier": float(brier), "log_loss": float(log_loss), "bins": bins}


def label_matrix(rows: Labels, names: Sequence[str]) -> np.ndarray:
    """Booleans of shape (rows, labels)."""
    index = {name: column for column, name in enumerate(names)}
    matrix = np.zeros((len(rows), len(names)), dtype=bool)
    for row, labels in enumerate(rows):
        matrix[row, [index[label] for label in labels]] = True
    return matrix


def coverage_table(right: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """Precision of the most confident answers, for several shares of all answers.

    Where answers tie at a threshold all of them are taken, so a share may be exceeded. The
    curve of El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective
    Classification", in a few points.
    """
    ranked = np.sort(scores)[::-1]
    thresholds = [float(ranked[max(1, round(c * len(ranked))) - 1]) for c in COVERAGES]
    return [coverage_at(right, scores, threshold) for threshold in dict.fromkeys(thresholds)]


def coverage_at(right: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Share of rows with at least this score, and the share of those that are right."""
    answered = scores >= threshold
    return {
        "threshold": threshold,
        "coverage": float(answered.mean()),
        "precision": float(right[answered].mean()) if answered.any() else 0.0,
    }


def _per_label(labels: Sequence[str], columns: Sequence[np.ndarray]) -> dict[str, dict[str, Any]]:
    """scikit-learn's columns of precision, recall, F1 and support as rows by label."""
    names = ("precision", "recall", "f1", "support")
    return {
        label: {
            name: (int if name == "support" else float)(column[index])
            for name, column in zip(names, columns, strict=True)
        }
        for index, label in enumerate(labels)
    }
