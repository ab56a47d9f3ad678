"""The choices that are fitted to the validation rows: calibration, thresholds, abstention."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from service.inference.classifier import Prediction, predictions
from service.inference.decisions import FloatArray
from service.inference.tokenizing import EncodedText
from service.package.manifest import Manifest
from training.common.errors import ExportError
from training.evaluation.metrics import label_matrix
from training.export.calibration import (
    ValidationRows,
    fold_numbers,
    with_calibration,
    with_platt,
    with_temperature,
)
from training.export.thresholds import DEFAULT_THRESHOLD, with_abstention, with_thresholds
from training.recipe.arguments import ExportArguments


def finish(
    draft: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> tuple[Manifest, list[Prediction]]:
    """Calibrate, then choose thresholds, then abstention.

    A calibration with which fewer rows are answered rightly is left out.

    Args:
        draft: a manifest without any of them.
        truth: the labels of the validation rows.
        logits: shape (windows of `encoded`, labels).
        groups: as for `with_calibration`.

    Returns:
        The manifest as it ships, and its answers to the rows.

    Raises:
        ExportError: no abstain threshold reaches the wanted precision.
    """
    windows = [len(text.windows) for text in encoded]
    calibrated = with_calibration(draft, truth, windows, logits, groups)
    manifest, right = _with_thresholds(calibrated, arguments, truth, encoded, logits)
    if calibrated.calibration["method"] is not None:
        plain, plain_right = _with_thresholds(draft, arguments, truth, encoded, logits)
        if right < plain_right:
            reason = f"{plain_right - right} rows more would be answered wrongly"
            evidence = {**calibrated.calibration, "method": None, "reason": reason}
            # The promises are those of its own thresholds.
            manifest = plain.model_copy(update={"calibration": evidence | plain.calibration})
    answers = predictions(manifest, encoded, logits)
    manifest = with_abstention(manifest, arguments, truth, answers)
    return manifest, predictions(manifest, encoded, logits)


def _with_thresholds(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
) -> tuple[Manifest, int]:
    """The manifest with thresholds, and how many rows it answers rightly."""
    manifest = with_thresholds(manifest, arguments, truth, predictions(manifest, encoded, logits))
    answers = predictions(manifest, encoded, logits)
    pairs = zip(answers, truth, strict=True)
    return manifest, sum(answer.answer == set(labels) for answer, labels in pairs)


def out_of_fold(
    manifest: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
    groups: np.ndarray | None = None,
) -> list[Prediction]:
    """Answer each validation row with the choices that were fitted to the other folds.

    The answers of `manifest` itself to the rows that it was fitted to flatter it.

    Args:
        manifest: a finished manifest; whether it is calibrated is not tried again.
        truth: the labels of the validation rows.
        logits: shape (windows of `encoded`, labels).
        groups: as for `with_calibration`.
    """
    windows = np.asarray([len(text.windows) for text in encoded])
    folds, places = fold_numbers(len(truth), groups), np.arange(len(truth))
    draft = _without_choices(manifest)
    rows = ValidationRows(draft, label_matrix(truth, draft.labels), windows, logits)
    answers: dict[int, Prediction] = {}
    for fold in np.unique(folds):
        held, others = places[folds == fold], places[folds != fold]
        refitted = _refit(
            _recalibrated(draft, rows.take(folds != fold), manifest),
            arguments,
            [truth[row] for row in others],
            [encoded[row] for row in others],
            rows.take(folds != fold).logits,
        )
        held_texts, held_logits = [encoded[row] for row in held], rows.take(folds == fold).logits
        held_answers = predictions(refitted, held_texts, held_logits)
        answers |= zip(held.tolist(), held_answers, strict=True)
    return [answers[row] for row in places.tolist()]


def _refit(
    calibrated: Manifest,
    arguments: ExportArguments,
    truth: Sequence[tuple[str, ...]],
    encoded: Sequence[EncodedText],
    logits: FloatArray,
) -> Manifest:
    """The manifest with thresholds, and with abstention where any threshold reaches it."""
    manifest = with_thresholds(
        calibrated, arguments, truth, predictions(calibrated, encoded, logits)
    )
    with contextlib.suppress(ExportError):
        answers = predictions(manifest, encoded, logits)
        return with_abstention(manifest, arguments, truth, answers)
    return manifest


def _recalibrated(draft: Manifest, rows: ValidationRows, manifest: Manifest) -> Manifest:
    """`draft` with the calibration of these rows, of the kind that `manifest` has."""
    if manifest.platt:
        return with_platt(rows, manifest)
    if manifest.temperature != 1:
        return with_temperature(rows, manifest)
    return draft


def _without_choices(manifest: Manifest) -> Manifest:
    """The manifest as it was before anything was fitted to validation rows."""
    several = manifest.task == "multi_label"
    thresholds = dict.fromkeys(manifest.labels, DEFAULT_THRESHOLD) if several else {}
    fresh = {"temperature": 1.0, "platt": {}, "thresholds": thresholds, "abstain_threshold": None}
    return manifest.model_copy(update=fresh)
