"""What a package costs, and what the texts beside a text do to its answer: measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from service.classifier import Classifier, Prediction, predictions
from service.inference.tokenizing import TokenIds
from service.model_package import Manifest, Text

# Tokens of the texts that are asked alone and again in batches of NEIGHBOURS: about 2,000 short
# texts, and of long ones no more than half a minute.
NEIGHBOUR_TOKENS = 50_000
NEIGHBOURS = 16
# Tokens at which the cost of one text is measured.
COST_LENGTHS = (16, 64, 256)
COST_ROUNDS = 5
COST_SECONDS = 0.02


def batch_within_memory(size: int, length: int) -> int:
    """`size`, or as many texts of `length` tokens as need the memory of 64 of 512 for attention."""
    return max(1, min(size, 64 * 512**2 // length**2))


def neighbour_effect(
    classifier: Classifier, manifest: Manifest, texts: Sequence[Text]
) -> tuple[float, int]:
    """The largest change of a probability, and how many answers change, by texts in the batch.

    Texts of up to NEIGHBOUR_TOKENS tokens, each asked alone, and together with others of any
    length.
    """
    order = np.random.default_rng(0).permutation(len(texts))
    encoded = classifier.encode([texts[index] for index in order])
    tokens = np.cumsum([sum(map(len, text.windows)) for text in encoded])
    encoded = encoded[: max(1, int(np.searchsorted(tokens, NEIGHBOUR_TOKENS, side="right")))]
    windows = [window for text in encoded for window in text.windows]
    together_size = batch_within_memory(NEIGHBOURS, classifier.manifest.max_length)

    def answers(size: int) -> list[Prediction]:
        batches = [windows[start : start + size] for start in range(0, len(windows), size)]
        logits = np.concatenate([classifier.logits(batch) for batch in batches])
        return predictions(manifest, encoded, logits)

    pairs = list(zip(answers(1), answers(together_size), strict=True))
    change = max(float(np.abs(alone.probs - together.probs).max()) for alone, together in pairs)
    return change, sum(alone.answer != together.answer for alone, together in pairs)


def cpu_milliseconds(classifiers: Mapping[str, Classifier]) -> dict[str, dict[str, float]]:
    """CPU-milliseconds of one text alone at COST_LENGTHS tokens, by name and length.

    Interleaved, the median of COST_ROUNDS rounds: the machine may be busy with other things.
    """
    encodings = _of_lengths(classifiers)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in classifiers}
    for _ in range(COST_ROUNDS):
        for of_classifiers in zip(*encodings.values(), strict=True):
            for (name, classifier), encoding in zip(
                classifiers.items(), of_classifiers, strict=True
            ):
                times, began = 0, time.thread_time()
                while not times or time.thread_time() - began < COST_SECONDS:
                    classifier.logits([encoding])
                    times += 1
                spent = (time.thread_time() - began) / times * 1000
                found[name].setdefault(str(len(encoding)), []).append(spent)
    return {
        name: {length: round(statistics.median(times), 3) for length, times in lengths.items()}
        for name, lengths in found.items()
    }


def _of_lengths(classifiers: Mapping[str, Classifier]) -> dict[str, list[TokenIds]]:
    """One text of each of COST_LENGTHS tokens, as far as all read; each has its own vocabulary."""
    words = " ".join(["word"] * max(COST_LENGTHS))
    windows = {}
    for name, classifier in classifiers.items():
        (encoded,) = classifier.encode([(words, words) if classifier.manifest.has_pairs else words])
        windows[name] = encoded.windows[0]
    most = min(map(len, windows.values()))
    lengths = sorted({min(length, most) for length in COST_LENGTHS})
    return {
        name: [TokenIds(window.ids[:length], window.type_ids[:length]) for length in lengths]
        for name, window in windows.items()
    }
