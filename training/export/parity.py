"""Does the exported graph answer as the checkpoint? Token ids and logits, on the user's texts.

The torch checkpoint answers every validation row here. The gates compare the candidates with these
answers, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.inference.batches import length_sorted_batches
from service.inference.classifier import Classifier
from service.inference.decisions import FloatArray
from service.inference.tokenizing import EncodedText, Window
from service.package.manifest import Text
from training.common.errors import ExportError
from training.common.progress import progress
from training.evaluation.latency import batch_within_memory
from training.export.onnx import graph_inputs

if TYPE_CHECKING:
    from training.finetuning.record import TrainedRun

PARITY_TEXTS = 200
PARITY_BATCH_SIZES = (1, 2, 7, 64)
# Alone, and beside longer texts.
FRESH_BATCH_SIZES = (1, 7)
LOGIT_TOLERANCE = 1e-3
# Where logits differ by less from text to text, rounding alone is a share of it.
LEAST_SPREAD = 0.01
TORCH_BATCH = 32
# Rare in validation texts: one character, emoji, right-to-left, combining marks, controls.
ODD_TEXTS = ("x", "🙂", "👩‍👩‍👧 ❤️", "שלום עולם", "مرحبا بالعالم", "e\u0301", "a\u0000b\tc", "。")


class TorchCheckpoint:
    """A checkpoint of a run, and its tokenizer, as transformers loads them.

    Args:
        folder: the checkpoint; by default the one that ships.
    """

    def __init__(
        self, run: TrainedRun, loading: dict[str, Any], folder: Path | None = None
    ) -> None:
        from transformers import AutoTokenizer

        from training.finetuning.pooling import load_checkpoint

        folder = folder or run.checkpoint
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **loading)
        self.model = load_checkpoint(folder, **loading)
        self._options = run.text_encoding.tokenizer_options()
        self._columns = graph_inputs(self.model)

    def token_ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """The token ids of every window, as training read them."""
        pairs = [text[1] for text in texts if isinstance(text, tuple)]
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        ids: list[list[int]] = self.tokenizer(firsts, pairs or None, **self._options)["input_ids"]
        return ids

    def logits(self, windows: Sequence[Window]) -> FloatArray:
        """The logits of one batch, padded to its longest window; shape (windows, labels)."""
        import torch

        inputs = {
            "input_ids": [window.ids for window in windows],
            "token_type_ids": [window.type_ids for window in windows],
            "attention_mask": [[1] * len(window) for window in windows],
        }
        batch = self.tokenizer.pad(
            {name: inputs[name] for name in inputs if name in self._columns}, return_tensors="pt"
        )
        with torch.inference_mode():
            logits: FloatArray = self.model(**batch).logits.float().numpy()
        return logits

    def all_logits(self, encoded: Sequence[EncodedText]) -> FloatArray:
        """The logits of the windows of all texts, in order; shape (windows, labels)."""
        windows = [window for text in encoded for window in text.windows]
        logits = np.empty((len(windows), self.model.config.num_labels), dtype=np.float32)
        batches = length_sorted_batches([len(window) for window in windows], TORCH_BATCH)
        with progress(len(windows), "checkpoint", "text", leave=False) as bar:
            for batch in batches:
                logits[batch] = self.logits([windows[index] for index in batch])
                bar.update(len(batch))
        return logits


def check_parity(
    checkpoint: TorchCheckpoint,
    classifier: Classifier,
    texts: list[Text],
    max_length: int,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Compare a package with the checkpoint on `texts`, odd ones, and batches of mixed lengths.

    Token ids must be equal; logits within LOGIT_TOLERANCE.

    Args:
        fresh: a rehearsal, of fewer batch sizes; the head has learned nothing, and its logits
            differ little from text to text: the tolerance shrinks with their standard deviation.

    Returns:
        The evidence for the manifest.

    Raises:
        ExportError: they are not.
    """
    chosen = parity_texts(texts, max_length)
    encoded = classifier.encode(chosen)
    windows = [window for text in encoded for window in text.windows]
    if [window.ids for window in windows] != checkpoint.token_ids(chosen):
        raise ExportError(
            "tokenizer.json gives other token ids than the checkpoint's tokenizer: this tokenizer "
            "cannot be shipped"
        )
    expected = checkpoint.all_logits(encoded)
    wanted_sizes = FRESH_BATCH_SIZES if fresh else PARITY_BATCH_SIZES
    sizes = sorted({batch_within_memory(size, max_length) for size in wanted_sizes})
    largest = float(
        np.max([_largest_difference(classifier, windows, expected, size) for size in sizes])
    )
    tolerance = LOGIT_TOLERANCE
    if fresh:
        tolerance *= float(np.clip(expected.std(axis=0).max(), LEAST_SPREAD, 1))
    # `not <=` also refuses NaN.
    if not largest <= tolerance:
        raise ExportError(
            f"the ONNX graph's logits differ from the checkpoint's by {largest:.2g}, more than "
            f"{tolerance:.2g}: this model cannot be shipped with these versions"
        )
    return {
        "texts": len(chosen),
        "windows": len(windows),
        "batch_sizes": sizes,
        "token_ids_equal": True,
        "largest_logit_difference": largest,
        "tolerance": tolerance,
    }


def _largest_difference(
    classifier: Classifier, windows: Sequence[Window], expected: FloatArray, batch_size: int
) -> float:
    """The largest difference of a logit, in batches of this size; NaN where there is one."""
    differences = [
        np.abs(expected[rows] - classifier.logits(windows[rows])).max()
        for rows in (
            slice(start, start + batch_size) for start in range(0, len(windows), batch_size)
        )
    ]
    return float(np.max(differences))


def parity_texts(texts: list[Text], max_length: int) -> list[Text]:
    """Up to PARITY_TEXTS texts over the whole range of lengths, over-long and odd ones, shuffled.

    Shuffled, so that batches mix lengths and padding is part of the comparison.
    """

    def characters(text: Text) -> int:
        return len(text) if isinstance(text, str) else sum(map(len, text))

    def over_long(text: str) -> str:
        # A word is one token at least. Of a text that is long already the beginning is enough.
        most = 20 * max_length
        return " ".join((text[:most] + " word").split() * max_length)[:most]

    by_length = sorted(texts, key=characters)
    chosen = np.unique(np.linspace(0, len(by_length) - 1, PARITY_TEXTS - 1).astype(int))
    picked = [by_length[index] for index in chosen]
    longest = by_length[-1]
    if isinstance(longest, str):
        picked += [over_long(longest), *ODD_TEXTS]
    else:
        first, second = longest
        # Long in either place: truncation takes from the longer one.
        picked += [(over_long(first), second), (first, over_long(second))]
        picked.append((over_long(first), over_long(second)))
        picked += [(odd, second) for odd in ODD_TEXTS] + [(first, odd) for odd in ODD_TEXTS]
    order = np.random.default_rng(0).permutation(len(picked))
    return [picked[index] for index in order]
