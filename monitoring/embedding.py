"""Vectors of texts, by the embedded base model: texts that mean the same lie close together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.package.manifest import Text
from training.common.progress import progress

TEXTS_AT_ONCE = 64
MAX_LENGTH = 128
SMALLEST_NORM = 1e-12


def embed(texts: Sequence[Text]) -> NDArray[np.float32]:
    """Vectors of shape (texts, features) and of length 1: the mean of the last hidden states.

    As the encoder was trained (Reimers and Gurevych 2019, "Sentence-BERT", section 3). Of a pair
    both texts are read.

    Raises:
        BaseModelError: the embedded base model is missing or altered.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from training.finetuning.base_models import embedded_folder

    folder = str(embedded_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    parts = []
    with torch.inference_mode(), progress(len(texts), "embeddings", "text") as bar:
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[first : first + TEXTS_AT_ONCE]
            batch = tokenizer(
                [text if isinstance(text, str) else " ".join(text) for text in some],
                truncation=True,
                max_length=MAX_LENGTH,
                padding=True,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            parts.append(means.numpy())
            bar.update(len(some))
    vectors = np.concatenate(parts)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, SMALLEST_NORM), dtype=np.float32)
