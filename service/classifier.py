"""Texts → token ids → ONNX → answers. Plain Python, no server needed.

    classifier = Classifier.load("runs/support_tickets/package")
    classifier.classify(["where is my parcel?"])[0].label

Evaluation, the gates, `whetstone predict` and the server all call this one class on the same
package, so what is measured is what ships.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from service.decisions import (
    Decision,
    FloatArray,
    calibrated,
    decide,
    margin,
    probabilities,
    text_probabilities,
)
from service.inference.prefixes import Beginning, Prefixes
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


Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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


class DeviceError(Exception):
    """The device that was asked for is not there; the message says what is."""


class TokenIds:
    """Token ids of a part of a text.

    The `Encoding` of a text that was too long would keep all of its tokens, a hundred bytes each.
    """

    __slots__ = ("ids", "type_ids")

    def __init__(self, ids: list[int], type_ids: list[int]) -> None:
        self.ids = ids
        self.type_ids = type_ids

    def __len__(self) -> int:
        return len(self.ids)


Window: TypeAlias = Encoding | TokenIds


class EncodedText(NamedTuple):
    """A text as the model reads it.

    `windows` holds token ids, not padded, at most `max_length` a window: more than one only where
    the package reads long texts by windows. `truncated` says that the rest was cut off.
    """

    windows: tuple[Window, ...]
    truncated: bool


class RowAnswer(NamedTuple):
    """A window's logits and probabilities, each of shape (labels,).

    `decision` is None where a text has several windows, which decide together.
    """

    logits: FloatArray
    probs: FloatArray
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class TokenizationOptions:
    """How a request wants its texts read, where that is not how the package reads them.

    `keep_end` says whether the beginning of a text that is too long is cut off, or its end; None
    leaves it to the package. `max_length` is in tokens, special ones included, and at most the
    package's: of each text that many are read, in one window. Without `add_special_tokens` a text
    has none.
    """

    keep_end: bool | None = None
    max_length: int | None = None
    add_special_tokens: bool = True


AS_PACKAGED = TokenizationOptions()


@dataclass(frozen=True, slots=True)
class Prediction(Decision):
    """The answer to one text, and how much of it was read.

    `tokens` counts those of all windows; `truncated` says that the rest of the text was not read.
    """

    tokens: int
    windows: int
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


def check_device(device: Device) -> None:
    """Refuse a device that this ONNX Runtime was not built for.

    Raises:
        DeviceError: the message says what is there and what to install.
    """
    available = onnxruntime.get_available_providers()
    if PROVIDERS[device] not in available:
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDERS[device]} here, only "
            f"{', '.join(available)}: install onnxruntime-gpu, or serve on the CPU"
        )


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
        # Asked of every request; the tokenizer would make a new dict each time.
        self._keeps_end = bool(tokenizer.truncation and tokenizer.truncation["direction"] == "left")
        # Padding happens per batch in `logits`, by the values the package states.
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._prefixes = Prefixes(tokenizer)
        self._whole_tokenizer: Tokenizer | None = None
        self._copying = threading.Lock()

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
        """Each text, or pair, as token ids.

        Threads may call this side by side: a tokenizer is never changed once it is made.

        Args:
            texts: texts, or pairs where the package was made for pairs.
            options: what is to be otherwise than in the package. The first call that cuts texts
                otherwise copies the tokenizer, unless `prepare` has.
        """
        special = options.add_special_tokens
        if self._cuts_otherwise(options):
            limit = options.max_length or self.manifest.max_length
            keep_end = self._keeps_end if options.keep_end is None else options.keep_end
            encodings = self._whole().encode_batch_fast(list(texts), add_special_tokens=special)
            return [cut(encoding, limit, keep_end=keep_end) for encoding in encodings]
        if not special:
            return self._encode_whole(texts, special=False)
        beginnings = [self.beginning(text) for text in texts]
        encoded = self.encode_beginnings(beginnings)
        for index in self.unsettled(beginnings, encoded):
            encoded[index] = self._encode_more(texts[index])
        return encoded

    def reads_beginnings(self, options: TokenizationOptions) -> bool:
        """Whether the beginning of a text may decide how it is read."""
        return options.add_special_tokens and not self._cuts_otherwise(options)

    def beginning(self, text: Text, *, tokens: int | None = None) -> Beginning:
        """As much of a text as is likely to decide how it is read; often all of it.

        Args:
            text: a text, or a pair, which is always read whole.
            tokens: how many to allow for; `max_length` by default.
        """
        if isinstance(text, str) and self.manifest.long_text == "truncate":
            return self._prefixes.of(text, tokens or self.manifest.max_length)
        return Beginning(text, True)

    @staticmethod
    def unsettled(beginnings: Sequence[Beginning], encoded: Sequence[EncodedText]) -> list[int]:
        """Which of the texts must be read further: they were cut, and have room for more tokens."""
        return [
            index
            for index, (beginning, text) in enumerate(zip(beginnings, encoded, strict=True))
            if not (beginning.is_whole or text.truncated)
        ]

    def encode_beginnings(self, beginnings: Sequence[Beginning]) -> list[EncodedText]:
        """The same as token ids; of those that are `unsettled`, the answer is still to come."""
        return self._encode_whole([beginning.text for beginning in beginnings])

    def _encode_more(self, text: Text) -> EncodedText:
        """A text whose beginning was too short: twice as much each time, so twice the work."""
        tokens = 2 * self.manifest.max_length
        while True:
            beginning = self.beginning(text, tokens=tokens)
            (encoded,) = self.encode_beginnings([beginning])
            if not self.unsettled([beginning], [encoded]):
                return encoded
            tokens *= 2

    def _encode_whole(self, texts: Sequence[Text], *, special: bool = True) -> list[EncodedText]:
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=special
        )
        return [self._windows(encoding) for encoding in encodings]

    @property
    def special_tokens(self) -> int:
        """How many tokens each text, or pair, has besides its own."""
        return int(self._tokenizer.num_special_tokens_to_add(self.manifest.has_pairs))

    def is_prepared(self, options: TokenizationOptions) -> bool:
        """Whether `encode` with these options does its own work only."""
        return self._whole_tokenizer is not None or not self._cuts_otherwise(options)

    def prepare(self, options: TokenizationOptions) -> None:
        """Do what the first call with such options would have to: 0.1 s for a large vocabulary."""
        if self._cuts_otherwise(options):
            self._whole()

    def _cuts_otherwise(self, options: TokenizationOptions) -> bool:
        if options is AS_PACKAGED:
            return False
        if options.max_length is not None:
            return True
        # By windows nothing is cut off, on whichever side.
        by_windows = self.manifest.long_text == "window"
        return not by_windows and options.keep_end not in (None, self._keeps_end)

    def _windows(self, encoding: Encoding) -> EncodedText:
        """What is read of a text, and nothing of it that is not."""
        rest = encoding.overflowing
        if not rest:
            return EncodedText((encoding,), truncated=False)
        if self.manifest.long_text == "window":
            windows = tuple(TokenIds(part.ids, part.type_ids) for part in (encoding, *rest))
            return EncodedText(windows, truncated=False)
        return EncodedText((TokenIds(encoding.ids, encoding.type_ids),), truncated=True)

    def _whole(self) -> Tokenizer:
        """A copy of the tokenizer that cuts nothing off: a limit cannot be given with a call."""
        with self._copying:
            if self._whole_tokenizer is None:
                copy = Tokenizer.from_str(self._tokenizer.to_str())
                copy.no_truncation()
                self._whole_tokenizer = copy
        return self._whole_tokenizer

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


def cut(encoding: Encoding, limit: int, *, keep_end: bool) -> EncodedText:
    """At most `limit` tokens of a text or pair, special ones included, as `tokenizers` cuts them.

    Args:
        encoding: the text or pair whole.
        limit: at least its special tokens.
        keep_end: cut off the beginning, not the end.
    """
    if len(encoding) <= limit:
        return EncodedText((encoding,), truncated=False)
    # For each token 0 or 1, its text's place in the pair, or None: a special one.
    places = encoding.sequence_ids
    lengths = places.count(0), places.count(1)
    kept = longest_first(*lengths, limit - places.count(None))
    spans = []
    for place in (0, 1):
        first = places.index(place) if lengths[place] else 0
        first += lengths[place] - kept[place] if keep_end else 0
        spans.append(range(first, first + kept[place]))
    chosen = [index for index, place in enumerate(places) if place is None or index in spans[place]]
    ids, type_ids = encoding.ids, encoding.type_ids
    window = TokenIds([ids[index] for index in chosen], [type_ids[index] for index in chosen])
    return EncodedText((window,), truncated=True)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept where `room` are: the longer one gives way.

    By the strategy that every package states; a single text is a pair with nothing.
    """
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)


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
