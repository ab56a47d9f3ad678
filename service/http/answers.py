"""The contents of answers, as plain values: those of pydantic's models cost ten times as much."""

from __future__ import annotations

from datetime import datetime
from time import time
from typing import Any

import numpy as np

from service.answering import Answers
from service.asgi import Request
from service.classifier import Classifier
from service.decisions import FloatArray
from service.model_package import Manifest
from service.schemas import ClassifyRequest
from service.settings import Settings


def classify_content(
    request: Request,
    parsed: ClassifyRequest,
    answers: Answers,
    classifier: Classifier,
) -> dict[str, Any]:
    """The content of a `ClassifyResponse`; as plain values, which cost a tenth of the model's."""
    manifest = classifier.manifest
    plain = parsed.use_activation is False
    logits = answers.logits() if parsed.return_logits or plain else None
    data = []
    for index, answer in enumerate(answers.predictions):
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
        # As vLLM has it: the same field, other numbers.
        item["probs"] = logits[index] if plain and logits is not None else answer.probs
        item["num_classes"] = len(manifest.labels)
        if parsed.top_k:
            ranked = rank(manifest.labels, answer.probs)[: parsed.top_k]
            item["scores"] = {found["label"]: found["score"] for found in ranked}
        if parsed.return_logits and logits is not None:
            item["logits"] = logits[index]
        data.append(item)
    return {
        "id": f"classify-{request.id}",
        "object": "list",
        "created": int(time()),
        "model": model_name(manifest),
        "data": data,
        "usage": {"prompt_tokens": request.tokens, "total_tokens": request.tokens},
    }


def rank(labels: tuple[str, ...], scores: FloatArray) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first; of equal ones in label order."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"label": labels[index], "score": scores[index]} for index in order]


def describe(classifier: Classifier, settings: Settings) -> dict[str, Any]:
    """The content of `/info`."""
    manifest = classifier.manifest
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
            "body_bytes": settings.max_body_bytes,
            "texts": settings.max_texts,
            "characters": settings.max_characters,
            "windows": settings.max_windows,
            "timeout_ms": settings.timeout_ms,
        },
        "metrics": manifest.metrics,
        "provenance": {
            key: manifest.provenance.get(key)
            for key in ("base_model", "dataset", "git_commit", "packages", "label_change")
        },
    }


def model_name(manifest: Manifest) -> str:
    """What the model is called wherever it is named by one word."""
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
