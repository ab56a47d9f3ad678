"""The servers that `benchmarks/bench_http.py` compares: the same small answer, made in three ways.

uvicorn benchmarks.http_peers:bare --port 3000
bentoml serve benchmarks.http_peers:Typed --port 3000
WHETSTONE_PACKAGE=runs/bench/package bentoml serve benchmarks.http_peers:Whetstone --port 3000
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.http.schemas import ClassifyResponse
from service.inference.classifier import Classifier
from service.inference.tokenizing import EncodedText, TextEncoder

LABELS = [f"label-{index}" for index in range(8)]


def answer(texts: Sequence[str]) -> dict[str, Any]:
    """What `/classify` answers, of no model."""
    return {
        "id": "classify-0",
        "object": "list",
        "created": 0,
        "model": "none:0",
        "data": [
            {
                "index": index,
                "label": LABELS[0],
                "score": 0.125,
                "truncated": False,
                "probs": [0.125] * len(LABELS),
                "num_classes": len(LABELS),
            }
            for index in range(len(texts))
        ],
        "usage": {"prompt_tokens": 14 * len(texts), "total_tokens": 14 * len(texts)},
    }


async def classify(request: Request) -> JSONResponse:
    """Read the JSON, answer JSON."""
    content = await request.json()
    texts = content["input"]
    return JSONResponse(answer([texts] if isinstance(texts, str) else texts))


async def ready(_request: Request) -> JSONResponse:
    """For the benchmark, which waits for it."""
    return JSONResponse({})


bare = Starlette(
    routes=[Route("/classify", classify, methods=["POST"]), Route("/readyz", ready)],
)


@bentoml.service(name="typed")
class Typed:
    """BentoML's typed API with its default settings."""

    @bentoml.api(route="/classify")
    async def classify(self, input: str) -> ClassifyResponse:
        """The same answer."""
        return ClassifyResponse.model_validate(answer([input]))


def _no_model(classifier: type[Classifier]) -> None:
    """Take the tokenizer and the model out of the classifier, and leave the rest."""
    token = [0] * 14

    def encode(_self: Any, texts: Sequence[Any], **_: Any) -> list[EncodedText]:
        return [EncodedText((token,), truncated=False) for _ in texts]  # type: ignore[arg-type]

    def logits(self: Classifier, encodings: Sequence[Any]) -> Any:
        return np.zeros((len(encodings), len(self.manifest.labels)), dtype=np.float32)

    classifier.encode = encode  # type: ignore[method-assign,assignment]
    TextEncoder.encode = encode  # type: ignore[method-assign,assignment]
    TextEncoder.encode_beginnings = encode  # type: ignore[method-assign,assignment]
    classifier.logits = logits  # type: ignore[method-assign,assignment]
    classifier.check_golden = lambda *_: 0  # type: ignore[method-assign,assignment]


if os.environ.get("WHETSTONE_PACKAGE"):
    _no_model(Classifier)
    from service.service import TextClassifier as Whetstone  # noqa: F401
