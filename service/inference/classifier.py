"""Texts → token ids → ONNX → answers. Plain Python; it needs no server.

    classifier = Classifier.load("runs/support_tickets/package")
    classifier.classify(["where is my parcel?"])[0].label

Evaluation, the gates, `whetstone predict` and the server all use this class with the same package,
so the numbers that evaluation measures are those of the package that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from service.inference.batches import Padding, length_sorted_batches
from service.inference.cores import available_cores
from service.inference.decisions import (
    Decision,
    FloatArray,
    calibrated,
    decide,
    probabilities,
    text_probabilities,
)
from service.inference.device import Device
from service.inference.errors import NotFiniteError
from service.inference.golden import compare_golden
from service.inference.loading import load_session, load_tokenizer
from service.inference.tokenizing import (
    AS_PACKAGED,
    EncodedText,
    TextEncoder,
    TokenizationOptions,
    Window,
)
from service.package.golden import GoldenMismatchError, read_golden
from service.package.manifest import InferenceConfig, Manifest, Text
from service.package.package import verify_package

# `classify` encodes and answers so many texts at a time: the encodings of a million texts would
# fill the memory.
TEXTS_AT_ONCE = 10_000


class RowAnswer(NamedTuple):
    """The logits and probabilities of one window, each of shape (labels,).

    `decision` is None where texts are read by windows: all windows of a text decide together.
    """

    logits: FloatArray
    probs: FloatArray
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class Prediction(Decision):
    """The answer to one text, and how much of the text was read.

    `tokens` counts the tokens of all windows; `truncated` says that the rest was not read.
    """

    tokens: int
    windows: int
    truncated: bool


class Classifier:
    """A verified package, ready to answer.

    It has one ONNX Runtime session with one thread inside. `run` releases the GIL and is
    thread-safe, so callers run several batches in threads of their own. For short texts this
    costs half the CPU time of a session that is spread over all cores.
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
        self._padding = Padding(tokenizer.padding)
        # `logits` pads each batch itself, by the values that the package states.
        tokenizer.no_padding()
        self.encoder = TextEncoder(manifest, tokenizer)

    @classmethod
    def load(
        cls, folder: str | Path, *, threads: int | None = None, device: Device = "cpu"
    ) -> Classifier:
        """Verify `folder` and load it.

        Args:
            folder: a model package.
            threads: batches of one call that run at once; all available cores when None.
            device: where the model runs; only `onnxruntime-gpu` supports `cuda`.

        Raises:
            DeviceError: ONNX Runtime does not run on `device` here.
            PackageError: the folder does not verify, or its files cannot be loaded.
        """
        folder = Path(folder)
        manifest = verify_package(folder)
        tokenizer = load_tokenizer(folder)
        session = load_session(folder, device)
        return cls(manifest, tokenizer, session, threads or available_cores())

    def encode(
        self, texts: Sequence[Text], options: TokenizationOptions = AS_PACKAGED
    ) -> list[EncodedText]:
        """Each text, or pair, as token ids: see `TextEncoder.encode`."""
        return self.encoder.encode(texts, options)

    def logits(self, windows: Sequence[Window]) -> FloatArray:
        """Run one batch, padded to its longest window: shape (windows, labels), float32."""
        columns = self._padding.pad(windows)
        feed = {name: columns[name] for name in self._input_names}
        return np.asarray(self._session.run(["logits"], feed)[0], dtype=np.float32)

    def row_answers(self, logits: FloatArray) -> list[RowAnswer]:
        """The answer of each row of a batch's logits, computed for all rows together."""
        manifest = self.manifest
        probs = probabilities(calibrated(logits, manifest), manifest.task)
        if manifest.window_aggregation is not None:
            return [RowAnswer(*row, None) for row in zip(logits, probs, strict=True)]
        return list(map(RowAnswer, logits, probs, decide(probs, manifest)))

    def row_predictions(
        self, encoded: Sequence[EncodedText], rows: Sequence[RowAnswer]
    ) -> list[Prediction]:
        """One answer for each text, in order, from the rows of all windows."""
        if self.manifest.window_aggregation is not None:
            return self.predictions(encoded, np.array([row.logits for row in rows]))
        return [
            _prediction(cast(Decision, row.decision), text)
            for row, text in zip(rows, encoded, strict=True)
        ]

    def predictions(self, encoded: Sequence[EncodedText], logits: FloatArray) -> list[Prediction]:
        """One answer for each text, in order, from logits of shape (windows, labels)."""
        return predictions(self.manifest, encoded, logits)

    def classify(
        self,
        texts: Sequence[Text],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Answer every text, in the given order.

        Windows of similar length form a batch, and `threads` batches run at once.

        Args:
            texts: any number of texts, or of pairs where the package reads pairs.
            batch_size: windows in a batch at most.
            on_batch: called with a number of answered texts, for a progress bar.

        Raises:
            NotFiniteError: some texts have no answer.
        """
        answers: list[Prediction] = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            encoded = self.encode(texts[first : first + TEXTS_AT_ONCE])
            try:
                logits = self.window_logits(encoded, batch_size=batch_size, on_batch=on_batch)
            except NotFiniteError as error:
                raise NotFiniteError([first + index for index in error.texts]) from None
            answers += self.predictions(encoded, logits)
        return answers

    def window_logits(
        self,
        encoded: Sequence[EncodedText],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """Logits of the windows of all texts, in order, of shape (windows, labels).

        Batches, threads, arguments and errors are those of `classify`.
        """
        windows = [window for text in encoded for window in text.windows]
        first = np.cumsum([0] + [len(text.windows) for text in encoded])[:-1]
        starts_text = np.zeros(len(windows), dtype=bool)
        starts_text[first] = True
        # A row that no batch fills stays NaN, and is refused below.
        logits = np.full((len(windows), len(self.manifest.labels)), np.nan, dtype=np.float32)

        def run(batch: list[int]) -> None:
            logits[batch] = self.logits([windows[index] for index in batch])
            if on_batch:
                on_batch(int(starts_text[batch].sum()))

        batches = length_sorted_batches([len(window) for window in windows], batch_size)
        if len(batches) == 1 or self.threads == 1:
            for batch in batches:
                run(batch)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(run, batches))
        _refuse_not_finite(logits, first)
        return logits

    def check_golden(self, folder: str | Path) -> int:
        """Answer the golden texts again; return how many there are. It also warms up the session.

        Raises:
            GoldenMismatchError: an answer differs by more than another processor explains.
        """
        golden = read_golden(Path(folder))
        try:
            answers = self.classify([expected.input for expected in golden])
        except NotFiniteError as error:
            raise GoldenMismatchError(f"{folder}: {error}") from None
        compare_golden(golden, answers, self.manifest, str(folder))
        return len(golden)


def predictions(
    config: InferenceConfig, encoded: Sequence[EncodedText], logits: FloatArray
) -> list[Prediction]:
    """One answer for each text, in order, from logits of shape (windows, labels)."""
    probs = text_probabilities(logits, [len(text.windows) for text in encoded], config)
    return [
        _prediction(decision, text)
        for decision, text in zip(decide(probs, config), encoded, strict=True)
    ]


def _prediction(decision: Decision, text: EncodedText) -> Prediction:
    return Prediction(
        decision.label,
        decision.score,
        decision.probs,
        decision.labels,
        decision.abstained,
        tokens=sum(map(len, text.windows)),
        windows=len(text.windows),
        truncated=text.truncated,
    )


def _refuse_not_finite(logits: FloatArray, first: npt.NDArray[np.int64]) -> None:
    """Raise NotFiniteError for rows that are not finite; `first` is each text's first row."""
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        texts = np.searchsorted(first, bad, side="right") - 1
        raise NotFiniteError(sorted({int(index) for index in texts}))
