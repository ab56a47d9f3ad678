"""Texts → token ids → ONNX → answers. Plain Python, no server needed.

    classifier = Classifier.load("runs/support_tickets/package")
    classifier.classify(["where is my parcel?"])[0].label

Evaluation, the gates, `whetstone predict` and the server all call this one class on the same
package, so what is measured is what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from service.decisions import (
    Decision,
    FloatArray,
    calibrated,
    decide,
    margin,
    probabilities,
    text_probabilities,
)
from service.inference.cores import available_cores
from service.inference.device import PROVIDERS, Device, DeviceError, check_device
from service.inference.tokenizing import (
    AS_PACKAGED,
    EncodedText,
    TextEncoder,
    TokenizationOptions,
    Window,
)
from service.model_package import (
    MODEL_FILE,
    TOKENIZER_FILE,
    Behaviour,
    GoldenAnswer,
    Manifest,
    PackageFileError,
    Text,
    read_golden,
    verify_package,
)

# A batch holds at most this many tokens, padding included: past a few thousand, larger batches
# only cost memory (attention grows with the square of the length).
BATCH_TOKENS = 4096
# Texts that are encoded before the first of them is answered.
TEXTS_AT_ONCE = 10_000
# When a golden answer counts as the same: int8 kernels differ a little by processor.
GOLDEN_SCORE_TOLERANCE = 0.02
GOLDEN_MARGIN = 0.05


class GoldenMismatchError(Exception):
    """This copy of the package does not answer as it did where it was made."""


class NotFiniteError(Exception):
    """The model computed NaN or infinity: for these texts there is no answer.

    `texts` are their places, from 0.
    """

    def __init__(self, texts: Sequence[int] = ()) -> None:
        first = f", of text {texts[0] + 1} the first" if texts else ""
        super().__init__(
            f"the model computed logits that are no finite numbers{first}: do not use this "
            "package; train and export it again"
        )
        self.texts = tuple(texts)


class RowAnswer(NamedTuple):
    """A window's logits and probabilities, each of shape (labels,).

    `decision` is None where a text has several windows, which decide together.
    """

    logits: FloatArray
    probs: FloatArray
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class Prediction(Decision):
    """The answer to one text, and how much of it was read.

    `tokens` counts those of all windows; `truncated` says that the rest of the text was not read.
    """

    tokens: int
    windows: int
    truncated: bool


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
        self.encoder = TextEncoder(manifest, tokenizer)

    @classmethod
    def load(
        cls, folder: str | Path, *, threads: int | None = None, device: Device = "cpu"
    ) -> Classifier:
        """Verify `folder` and load it.

        Args:
            folder: a model package.
            threads: batches of one call that run at once; all available cores when None.
            device: where the model runs; only `onnxruntime-gpu` knows `cuda`.

        Raises:
            DeviceError: ONNX Runtime does not run on `device` here.
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
        check_device(device)
        provider = PROVIDERS[device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=[provider]
            )
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise PackageFileError(
                f"{folder / MODEL_FILE} cannot be loaded by ONNX Runtime "
                f"{onnxruntime.__version__}: export the package again"
            ) from error
        # ONNX Runtime falls back to the CPU without an error (onnxruntime#23372).
        active = session.get_providers()[0]
        if active != provider:
            raise DeviceError(
                f"ONNX Runtime could not start {provider} and fell back to {active}: check the "
                "driver and the CUDA libraries"
            )
        return cls(manifest, tokenizer, session, threads or available_cores())

    def encode(
        self, texts: Sequence[Text], options: TokenizationOptions = AS_PACKAGED
    ) -> list[EncodedText]:
        """Each text, or pair, as token ids: see `TextEncoder.encode`."""
        return self.encoder.encode(texts, options)

    def logits(self, encodings: Sequence[Window]) -> FloatArray:
        """Run one batch of windows, padded to its longest: shape (windows, labels), float32."""
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

    def row_answers(self, logits: FloatArray) -> list[RowAnswer]:
        """What each row of a batch's logits comes to, computed for all of them together."""
        manifest = self.manifest
        probs = probabilities(calibrated(logits, manifest), manifest.task)
        if manifest.window_aggregation is not None:
            return [RowAnswer(*row, None) for row in zip(logits, probs, strict=True)]
        return list(map(RowAnswer, logits, probs, decide(probs, manifest)))

    def row_predictions(
        self, encoded: Sequence[EncodedText], rows: Sequence[RowAnswer]
    ) -> list[Prediction]:
        """Rows of all windows, one after another, as one answer a text, in order."""
        if self.manifest.window_aggregation is not None:
            return self.predictions(encoded, np.array([row.logits for row in rows]))
        return [
            _prediction(cast(Decision, row.decision), text)
            for row, text in zip(rows, encoded, strict=True)
        ]

    def predictions(self, encoded: Sequence[EncodedText], logits: FloatArray) -> list[Prediction]:
        """Logits of all windows, of shape (windows, labels), as one answer a text, in order."""
        return predictions(self.manifest, encoded, logits)

    def classify(
        self,
        texts: Sequence[Text],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Answer every text, in the order given.

        Batches are made of windows of like length, and `threads` of them run at once.

        Args:
            texts: any number of texts, or of pairs where the package was made for pairs.
            batch_size: windows in a batch at most.
            on_batch: called with a number of texts answered, for a progress bar.

        Raises:
            NotFiniteError: of some texts there is no answer.
        """
        answers: list[Prediction] = []
        # Part by part: the encodings of a million texts fill a memory.
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            encoded = self.encode(texts[first : first + TEXTS_AT_ONCE])
            try:
                logits = self.window_logits(encoded, batch_size=batch_size, on_batch=on_batch)
            except NotFiniteError as error:
                raise NotFiniteError([first + place for place in error.texts]) from None
            answers += self.predictions(encoded, logits)
        return answers

    def window_logits(
        self,
        encoded: Sequence[EncodedText],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """Logits of the windows of all texts, one after another, of shape (windows, labels).

        Batches, threads, arguments and errors are those of `classify`.
        """
        windows = [window for text in encoded for window in text.windows]
        first = np.cumsum([0] + [len(text.windows) for text in encoded])[:-1]
        starts_text = np.zeros(len(windows), dtype=bool)
        starts_text[first] = True
        # What no batch fills stays NaN, and is refused below as what the model computed so.
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
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            texts = np.searchsorted(first, bad, side="right") - 1
            raise NotFiniteError(sorted({int(place) for place in texts}))
        return logits

    def check_golden(self, folder: str | Path) -> int:
        """Ask the golden texts again; return how many there are. Warms the session up, too.

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


def compare_golden(
    golden: Sequence[GoldenAnswer],
    answers: Sequence[Decision],
    behaviour: Behaviour,
    where: str,
) -> None:
    """Refuse answers that are not those recorded when the package was made.

    A label counts where the recorded margin exceeds GOLDEN_MARGIN; every probability must be
    within GOLDEN_SCORE_TOLERANCE.

    Raises:
        GoldenMismatchError: the message names `where` and the number of the text, not the text.
    """
    for row, (expected, answer) in enumerate(zip(golden, answers, strict=True), start=1):
        recorded = np.asarray(expected.probs, dtype=np.float32)
        drift = float(np.abs(answer.probs - recorded).max())
        flipped = answer.answer != expected.answer and margin(recorded, behaviour) > GOLDEN_MARGIN
        # `not <=` also refuses NaN.
        if flipped or not drift <= GOLDEN_SCORE_TOLERANCE:
            raise GoldenMismatchError(
                f"{where}: golden text {row} no longer gets the answer recorded when the "
                f"package was made (score drift {drift:.3f}): do not serve this copy; "
                "export the package again"
            )


def predictions(
    behaviour: Behaviour, encoded: Sequence[EncodedText], logits: FloatArray
) -> list[Prediction]:
    """Logits of all windows, of shape (windows, labels), as one answer a text, in order."""
    probs = text_probabilities(logits, [len(text.windows) for text in encoded], behaviour)
    return [
        _prediction(decision, text)
        for decision, text in zip(decide(probs, behaviour), encoded, strict=True)
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


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int, batch_tokens: int = BATCH_TOKENS
) -> list[list[int]]:
    """Indices grouped by like length, longest first, each within `batch_tokens`, padding too.

    Something longer than that is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        current = batches[-1] if batches else []
        # The first of a batch is its longest, so it sets the padded width.
        fits = current and (len(current) + 1) * lengths[current[0]] <= batch_tokens
        if fits and len(current) < batch_size:
            current.append(index)
        else:
            batches.append([index])
    return batches
