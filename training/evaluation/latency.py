"""Measured on a package: the latency of a text, and whether an answer depends on its batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from service.inference.classifier import Classifier, Prediction, predictions
from service.inference.tokenizing import TokenIds
from service.package.manifest import Manifest, Text

# Tokens of the texts that are classified alone and again in batches of SENSITIVITY_BATCH: about
# 2,000 short texts, and of long texts no more than half a minute.
SENSITIVITY_TOKENS = 50_000
SENSITIVITY_BATCH = 16
# Lengths, in tokens, at which the latency of one text is measured.
LATENCY_LENGTHS = (16, 64, 256)
LATENCY_ROUNDS = 5
LATENCY_SECONDS = 0.02


class BatchSensitivity(NamedTuple):
    """How much the other texts of a batch change an answer.

    Attributes:
        largest_change: the largest change of a probability.
        changed_answers: how many texts get another answer.
    """

    largest_change: float
    changed_answers: int


def batch_within_memory(size: int, length: int) -> int:
    """`size`, or fewer texts of `length` tokens: attention needs the memory of 64 texts of 512."""
    return max(1, min(size, 64 * 512**2 // length**2))


def batch_sensitivity(
    classifier: Classifier, manifest: Manifest, texts: Sequence[Text]
) -> BatchSensitivity:
    """Classify texts alone and in batches with texts of any length, and compare the answers.

    Texts of up to SENSITIVITY_TOKENS tokens, drawn by a fixed seed.
    """
    order = np.random.default_rng(0).permutation(len(texts))
    encoded = classifier.encode([texts[index] for index in order])
    tokens = np.cumsum([sum(map(len, text.windows)) for text in encoded])
    encoded = encoded[: max(1, int(np.searchsorted(tokens, SENSITIVITY_TOKENS, side="right")))]
    windows = [window for text in encoded for window in text.windows]

    def classify(batch_size: int) -> list[Prediction]:
        starts = range(0, len(windows), batch_size)
        batches = [windows[start : start + batch_size] for start in starts]
        logits = np.concatenate([classifier.logits(batch) for batch in batches])
        return predictions(manifest, encoded, logits)

    alone = classify(1)
    batched = classify(batch_within_memory(SENSITIVITY_BATCH, classifier.manifest.max_length))
    pairs = list(zip(alone, batched, strict=True))
    return BatchSensitivity(
        max(float(np.abs(first.probs - second.probs).max()) for first, second in pairs),
        sum(first.answer != second.answer for first, second in pairs),
    )


def cpu_milliseconds(classifiers: Mapping[str, Classifier]) -> dict[str, dict[str, float]]:
    """CPU time of one text alone at LATENCY_LENGTHS tokens, in ms, by name and length.

    CPU time, not wall time. The classifiers take turns, and the median of LATENCY_ROUNDS rounds
    counts: the machine may be busy with other things.
    """
    texts = _texts_by_length(classifiers)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in classifiers}
    for _ in range(LATENCY_ROUNDS):
        for same_length in zip(*texts.values(), strict=True):
            for (name, classifier), text in zip(classifiers.items(), same_length, strict=True):
                length = str(len(text))
                times[name].setdefault(length, []).append(_milliseconds(classifier, text))
    return {
        name: {length: round(statistics.median(values), 3) for length, values in lengths.items()}
        for name, lengths in times.items()
    }


def _milliseconds(classifier: Classifier, text: TokenIds) -> float:
    """CPU time of one inference, the mean over at least LATENCY_SECONDS."""
    runs, start = 0, time.thread_time()
    while not runs or time.thread_time() - start < LATENCY_SECONDS:
        classifier.logits([text])
        runs += 1
    return (time.thread_time() - start) / runs * 1000


def _texts_by_length(classifiers: Mapping[str, Classifier]) -> dict[str, list[TokenIds]]:
    """One text of each of LATENCY_LENGTHS tokens, up to the shortest `max_length`.

    Each classifier has its own vocabulary, so it gets its own token ids.
    """
    words = " ".join(["word"] * max(LATENCY_LENGTHS))
    windows = {}
    for name, classifier in classifiers.items():
        (encoded,) = classifier.encode([(words, words) if classifier.manifest.has_pairs else words])
        windows[name] = encoded.windows[0]
    shortest = min(map(len, windows.values()))
    lengths = sorted({min(length, shortest) for length in LATENCY_LENGTHS})
    return {
        name: [TokenIds(window.ids[:length], window.type_ids[:length]) for length in lengths]
        for name, window in windows.items()
    }
