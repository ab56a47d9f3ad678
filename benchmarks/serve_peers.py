"""What Whetstone is measured against, as tutorials have it; each runs in its own environment.

    PEER_PACKAGE=… bentoml serve benchmarks.serve_peers:Tutorial
    PEER_CHECKPOINT=… uvicorn benchmarks.serve_peers:app

Settings are each library's defaults, and nothing of the project is imported: the environments do
not have it.
"""

import json
import os
from importlib.util import find_spec
from typing import Any

if find_spec("bentoml"):
    import bentoml
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    @bentoml.service(name="tutorial")
    class Tutorial:
        """An ONNX model behind BentoML's adaptive batching."""

        def __init__(self) -> None:
            """Load the model and its tokenizer."""
            folder = os.environ["PEER_PACKAGE"]
            self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
            self.tokenizer.enable_padding()
            self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
            self.inputs = [node.name for node in self.session.get_inputs()]
            self.labels = json.loads(os.environ["PEER_LABELS"])

        @bentoml.api(batchable=True)
        def classify(self, texts: list[str]) -> list[dict[str, Any]]:
            """The most probable label of each text."""
            encodings = self.tokenizer.encode_batch(texts)
            columns = {
                "input_ids": [encoding.ids for encoding in encodings],
                "attention_mask": [encoding.attention_mask for encoding in encodings],
                "token_type_ids": [encoding.type_ids for encoding in encodings],
            }
            feed = {name: np.array(columns[name], dtype=np.int64) for name in self.inputs}
            logits = self.session.run(None, feed)[0]
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            return [
                {"label": self.labels[best], "score": float(row[best])}
                for row, best in zip(shares, shares.argmax(axis=-1), strict=True)
            ]


if find_spec("fastapi"):
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import pipeline

    app = FastAPI()
    classifier = pipeline("text-classification", model=os.environ["PEER_CHECKPOINT"])

    class Request(BaseModel):
        """One text."""

        text: str

    @app.post("/classify")
    def classify(request: Request) -> dict[str, Any]:
        """The most probable label."""
        return classifier(request.text, truncation=True)[0]

    @app.get("/health")
    def health() -> dict[str, Any]:
        """For the benchmark, which waits for it."""
        return {}
