"""The contents of answers, as plain values: pydantic's models would cost ten times as much."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from time import time
from typing import Any

import numpy as np

from service.capture.capture import Capture
from service.http.answering import Answers
from service.http.limits import Limits
from service.http.request import Request
from service.http.schemas import ClassifyRequest
from service.inference.classifier import Prediction
from service.inference.decisions import FloatArray
from service.package.manifest import Manifest


def classify_content(
    request: Request, parsed: ClassifyRequest, answers: Answers, manifest: Manifest
) -> dict[str, Any]:
    """The content of a `ClassifyResponse`."""
    wants_logits = parsed.return_logits or parsed.use_activation is False
    logits: Sequence[FloatArray | None] = (
        list(answers.logits()) if wants_logits else [None] * len(answers.predictions)
    )
    return {
        "id": f"classify-{request.id}",
        "object": "list",
        "created": int(time()),
        "model": model_name(manifest),
        "data": [
            _classification(index, answer, logits[index], parsed, manifest)
            for index, answer in enumerate(answers.predictions)
        ],
        "usage": {"prompt_tokens": request.tokens, "total_tokens": request.tokens},
    }


def _classification(
    index: int,
    answer: Prediction,
    logits: FloatArray | None,
    parsed: ClassifyRequest,
    manifest: Manifest,
) -> dict[str, Any]:
    """The content of a `Classification`."""
    item: dict[str, Any] = {
        "index": index,
        "label": answer.label,
        "score": np.float32(answer.score),
    }
    if answer.labels is not None:
        item["labels"] = answer.labels
    if answer.abstained is not None:
        item["abstained"] = answer.abstained
    by_windows = manifest.long_text == "window"
    if by_windows:
        item["windows"] = answer.windows
    if answer.truncated or not by_windows:
        item["truncated"] = answer.truncated
    # As in vLLM, the same field then holds other numbers.
    item["probs"] = logits if parsed.use_activation is False else answer.probs
    item["num_classes"] = len(manifest.labels)
    if parsed.top_k:
        ranked = rank(manifest.labels, answer.probs)[: parsed.top_k]
        item["scores"] = {each["label"]: each["score"] for each in ranked}
    if parsed.return_logits:
        item["logits"] = logits
    return item


def rank(labels: tuple[str, ...], scores: FloatArray) -> list[dict[str, Any]]:
    """Labels with their scores, the highest score first; equal scores keep the label order."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"label": labels[index], "score": scores[index]} for index in order]


def describe(
    manifest: Manifest, limits: Limits, capture: Capture | None = None, *, explains: bool = False
) -> dict[str, Any]:
    """The content of `/info`."""
    return {
        "model": model_name(manifest),
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "task": manifest.task,
        "labels": list(manifest.labels),
        "precision": manifest.precision,
        "text_columns": list(manifest.text_columns),
        "max_length": manifest.max_length,
        "long_text": manifest.long_text,
        "thresholds": manifest.thresholds,
        "abstain_threshold": manifest.abstain_threshold,
        "limits": {
            "body_bytes": limits.max_body_bytes,
            "texts": limits.max_texts,
            "characters": limits.max_characters,
            "windows": limits.max_windows,
            "timeout_ms": limits.timeout_ms,
        },
        "explain": explains,
        "capture": None if capture is None else capture.rules.as_dict(),
        "metrics": manifest.metrics,
        "provenance": {
            key: manifest.provenance.get(key)
            for key in ("base_model", "dataset", "git_commit", "packages", "label_change")
        },
    }


def model_name(manifest: Manifest) -> str:
    """The name and version of the model in one word."""
    return f"{manifest.name}:{manifest.version}"


def model_card(manifest: Manifest) -> dict[str, Any]:
    """The content of a `ModelCard`."""
    return {
        "id": model_name(manifest),
        "object": "model",
        "created": int(datetime.fromisoformat(manifest.created_at).timestamp()),
        "owned_by": "whetstone",
        "version": manifest.version,
        "max_model_len": manifest.max_length,
    }


def model_list(manifest: Manifest) -> dict[str, Any]:
    """The content of a `ModelList`."""
    return {"object": "list", "data": [model_card(manifest)]}
