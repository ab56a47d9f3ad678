"""Texts → token ids → ONNX → probabilities → labels. Plain Python, no server needed.

    classifier = Classifier.load("runs/support_tickets/package")
    classifier.classify(["where is my parcel?"])[0].label

Evaluation, the gates, `whetstone predict` and the server all call this one class on the same
package, so what is measured is what ships.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Encoding, Tokenizer

from service.model_package import (
    MODEL_FILE,
    TOKENIZER_FILE,
    Manifest,
    PackageFileError,
    read_golden,
    verify_package,
)

FloatArray = npt.NDArray[np.float32]

# A batch holds at most this many tokens, padding included: past a few thousand, larger batches
# only cost memory (attention grows with the square of the length).
BATCH_TOKENS = 4096
# When a golden answer counts as the same: int8 kernels differ a little by processor.
GOLDEN_SCORE_TOLERANCE = 0.02
GOLDEN_MARGIN = 0.05


class GoldenMismatchError(Exception):
    """This copy of the package does not answer as it did where it was made."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text; `probs` is in the manifest's label order and sums to 1."""

    label: str
    score: float
    probs: FloatArray
    tokens: int
    truncated: bool


def available_cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of cgroup v2 if there.

    ONNX Runtime sizes its pools from the host (onnxruntime#29510), so this is asked instead.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        quota, period = "max", "1"
    if quota != "max":
        cores = min(cores or 1, -(-int(quota) // int(period)))
    return max(1, cores or 1)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities of logits of shape (texts, labels), row by row."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


class Classifier:
    """A verified package, ready to answer.

    One ONNX Runtime session with one thread inside it: `run` releases the GIL and is
    thread-safe, so callers get their parallelism from threads of their own, which for short
    texts costs half the CPU of one session spread over all cores.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        session: onnxruntime.InferenceSession,
        threads: int,
    ) -> None:
        self.manifest = manifest
        self.threads = threads
        self._session = session
        self._input_names = [node.name for node in session.get_inputs()]
        self._padding = tokenizer.padding
        # Padding happens per batch in `logits`, by the values the package states.
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Classifier:
        """Verify `folder` and load it.

        Args:
            folder: a model package.
            threads: batches of one call that run at once; all available cores when None.

        Raises:
            PackageError: the folder does not verify, or its files cannot be loaded.
        """
        folder = Path(folder)
        manifest = verify_package(folder)
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # the Rust side raises bare Exception
            raise PackageFileError(
                f"{folder / TOKENIZER_FILE} cannot be loaded as a tokenizer: "
                "export the package again"
            ) from error
        if tokenizer.padding is None or tokenizer.truncation is None:
            raise PackageFileError(
                f"{folder / TOKENIZER_FILE} does not state its padding and truncation: "
                "export the package again"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise PackageFileError(
                f"{folder / MODEL_FILE} cannot be loaded by ONNX Runtime "
                f"{onnxruntime.__version__}: export the package again"
            ) from error
        return cls(manifest, tokenizer, session, threads or available_cores())

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids of each text, truncated at the package's `max_length`, not padded."""
        encodings: list[Encoding] = self._tokenizer.encode_batch(list(texts))
        return encodings

    def logits(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Run one batch, padded to its longest: shape (texts, labels), float32."""
        length = max(len(encoding) for encoding in encodings)
        multiple = self._padding["pad_to_multiple_of"]
        if multiple:
            length = -(-length // multiple) * multiple
        shape = (len(encodings), length)
        columns = {
            "input_ids": np.full(shape, self._padding["pad_id"], dtype=np.int64),
            "token_type_ids": np.full(shape, self._padding["pad_type_id"], dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        pad_left = self._padding["direction"] == "left"
        for row, encoding in enumerate(encodings):
            used = slice(length - len(encoding), length) if pad_left else slice(len(encoding))
            columns["input_ids"][row, used] = encoding.ids
            columns["token_type_ids"][row, used] = encoding.type_ids
            columns["attention_mask"][row, used] = 1
        feed = {name: columns[name] for name in self._input_names}
        return np.asarray(self._session.run(["logits"], feed)[0], dtype=np.float32)

    def predictions(self, encodings: Sequence[Encoding], logits: FloatArray) -> list[Prediction]:
        """Logits of shape (texts, labels) as answers, in order."""
        probs = softmax(logits)
        best = probs.argmax(axis=-1)
        return [
            Prediction(
                label=self.manifest.labels[best[row]],
                score=float(probs[row, best[row]]),
                probs=probs[row],
                tokens=len(encoding),
                truncated=bool(encoding.overflowing),
            )
            for row, encoding in enumerate(encodings)
        ]

    def classify(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Answer every text, in the order given.

        Batches are made of texts of like length, and `threads` of them run at once.

        Args:
            texts: any number of texts.
            batch_size: texts in a batch at most.
            on_batch: called with the number of texts answered, for a progress bar.
        """
        if not texts:
            return []
        encodings = self.encode(texts)
        answers: list[Prediction | None] = [None] * len(encodings)

        def run(batch: list[int]) -> None:
            chosen = [encodings[index] for index in batch]
            for index, answer in zip(
                batch, self.predictions(chosen, self.logits(chosen)), strict=True
            ):
                answers[index] = answer
            if on_batch:
                on_batch(len(batch))

        batches = length_sorted_batches([len(encoding) for encoding in encodings], batch_size)
        if len(batches) == 1 or self.threads == 1:
            for batch in batches:
                run(batch)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(run, batches))
        return [answer for answer in answers if answer is not None]

    def check_golden(self, folder: str | Path) -> int:
        """Ask the golden texts again; return how many there are. Warms the session up, too.

        Raises:
            GoldenMismatchError: an answer differs by more than another processor explains.
        """
        golden = read_golden(Path(folder))
        for row, (expected, answer) in enumerate(
            zip(golden, self.classify([answer.text for answer in golden]), strict=True), start=1
        ):
            second, first = np.sort(np.asarray(expected.probs))[-2:]
            drift = float(np.abs(answer.probs - np.asarray(expected.probs)).max())
            flipped = answer.label != expected.label and first - second > GOLDEN_MARGIN
            # `not <=` also refuses NaN.
            if flipped or not drift <= GOLDEN_SCORE_TOLERANCE:
                raise GoldenMismatchError(
                    f"{folder}: golden text {row} no longer gets the answer recorded when the "
                    f"package was made (score drift {drift:.3f}): do not serve this copy; "
                    "export the package again"
                )
        return len(golden)


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices grouped by like length, longest first, each batch within BATCH_TOKENS padded."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        current = batches[-1] if batches else []
        # The first of a batch is its longest, so it sets the padded width.
        fits = current and (len(current) + 1) * lengths[current[0]] <= BATCH_TOKENS
        if fits and len(current) < batch_size:
            current.append(index)
        else:
            batches.append([index])
    return batches
