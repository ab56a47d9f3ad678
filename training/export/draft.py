"""The manifest before anything is fitted: labels, profile, provenance."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from service.inference.classifier import TEXTS_AT_ONCE, Classifier, Prediction
from service.package.manifest import Manifest, Profile
from training.common.git import git_commit
from training.data import leakage
from training.export.candidates import FP32_SCORE_TOLERANCE
from training.export.thresholds import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from training.finetuning.record import TrainedRun

CONFIDENCE_BINS = 20
LENGTH_BINS = 16
VERSIONED_PACKAGES = (
    "whetstone",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
)


def draft_manifest(run: TrainedRun) -> Manifest:
    """The manifest before anything is chosen, hashed or measured."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(run.checkpoint, **loading_options(run))
    labels = tuple(config.id2label[index] for index in range(config.num_labels))
    windows = run.text_encoding.window_stride is not None
    several = run.data.task == "multi_label"
    return Manifest.model_construct(
        name=run.recipe.data.name or "",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        task=run.data.task,
        labels=labels,
        text_columns=("text", "text_pair") if run.data.has_pairs else ("text",),
        max_length=run.text_encoding.max_length,
        long_text="window" if windows else "truncate",
        window_stride=run.text_encoding.window_stride,
        window_aggregation=run.text_encoding.aggregation,
        thresholds=dict.fromkeys(labels, DEFAULT_THRESHOLD) if several else {},
        precision="fp32",
        target_device=run.recipe.export.target_device,
        score_tolerance=FP32_SCORE_TOLERANCE,
        profile=Profile(),
        # Filled by `seal_package`.
        version="",
        files={},
        provenance=_provenance(run),
    )


def profile_of(run: TrainedRun, classifier: Classifier, answers: list[Prediction]) -> Profile:
    """Label priors, token lengths and pieces of the training split, answers on validation."""
    counts = Counter(label for labels in run.data.train.labels for label in labels)
    texts = run.data.train.texts
    # Part by part: the encodings of a million texts do not fit the memory; only counts are needed.
    read = [
        (sum(map(len, text.windows)), text.truncated, classifier.encoder.pieces.count(text))
        for first in range(0, len(texts), TEXTS_AT_ONCE)
        for text in classifier.encode(texts[first : first + TEXTS_AT_ONCE])
    ]
    lengths = [tokens for tokens, _, _ in read]
    length_counts, length_edges = np.histogram(
        lengths, bins=LENGTH_BINS, range=(0, max(classifier.manifest.max_length, max(lengths)))
    )
    confidence_counts, confidence_edges = np.histogram(
        [answer.score for answer in answers], bins=CONFIDENCE_BINS, range=(0, 1)
    )
    answered = Counter(label for answer in answers for label in answer.answer)
    return Profile(
        label_priors={
            label: counts[label] / len(run.data.train) for label in classifier.manifest.labels
        },
        answer_shares={
            label: answered[label] / len(answers) for label in classifier.manifest.labels
        },
        token_length_edges=length_edges.tolist(),
        token_length_counts=length_counts.tolist(),
        confidence_edges=confidence_edges.tolist(),
        confidence_counts=confidence_counts.tolist(),
        truncated_share=_mean(truncated for _, truncated, _ in read),
        unknown_share=_mean(pieces.unknown / max(tokens, 1) for tokens, _, pieces in read),
        continued_share=_mean(
            pieces.continued / max(tokens, 1)
            for tokens, _, pieces in read
            if pieces.continued is not None
        ),
        abstained_share=_mean(
            answer.abstained for answer in answers if answer.abstained is not None
        ),
    )


def _mean(values: Iterable[float]) -> float | None:
    """The mean of shares; None of none."""
    known = [float(value) for value in values]
    return round(min(sum(known) / len(known), 1.0), 6) if known else None


def loading_options(run: TrainedRun) -> dict[str, Any]:
    """The options of `from_pretrained` for the checkpoint: from its folder, never from a hub."""
    return {
        "trust_remote_code": run.recipe.model.trust_remote_code,
        "local_files_only": True,
    }


def _provenance(run: TrainedRun) -> dict[str, Any]:
    record, data = run.record, run.data
    return {
        "base_model": record["base_model"],
        "dataset": {
            "fingerprint": data.fingerprint(),
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "trained_on_all_rows": run.held_out_checkpoint is not None,
            "test_rows": len(data.test) if data.test else 0,
            "dropped_rows": data.dropped,
        },
        # For a later comparison: the texts that training and its choices have seen.
        leakage.KEY: leakage.fingerprint([*data.train.texts, *data.validation.texts]),
        "recipe": run.recipe.as_dict(),
        "training_arguments": record["training_arguments"],
        "evaluations": record["evaluations"],
        "device": record["device"],
        "training_seconds": record["seconds"],
        "git_commit": git_commit(),
        "packages": {name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES},
    }
