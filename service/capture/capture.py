"""Which answers are kept, and what of them."""

from __future__ import annotations

import hmac
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from heapq import nlargest
from pathlib import Path
from sys import getsizeof
from time import time
from typing import Any

import numpy as np
import orjson

from service.capture.records import (
    MOST_GROUPS,
    OTHER_GROUP,
    as_time,
    plain_id,
    share_of,
    without_nothing,
)
from service.capture.writer import CaptureWriter, Entry
from service.inference.classifier import Prediction
from service.inference.pieces import PieceCounter
from service.inference.tokenizing import EncodedText
from service.package.manifest import Manifest, Text

SANE_GROUP = re.compile(rb"[\w.-]{1,64}", re.ASCII)
GROUP_HEADER = b"x-whetstone-group"
SMALLEST_KEY = 16
# About what an answer holds until its line is made, without its text.
BYTES_OF_LINE = 1500
Redact = Callable[[str], str]


class CaptureError(Exception):
    """Capture cannot be as it is asked for; the message says why."""


@dataclass(frozen=True)
class CaptureRules:
    """What is kept.

    Attributes:
        rate: the share of requests whose answers are kept.
        abstained: whether every abstained answer is kept, too.
        text: whether texts are kept.
        key: the secret of the texts' keys; without one a text has no key.
        redact: what makes of a text the text that is kept.
    """

    rate: float = 1.0
    abstained: bool = False
    text: bool = False
    key: bytes | None = None
    redact: Redact | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `/info`: what a caller should know."""
        return {"rate": self.rate, "abstained": self.abstained, "text": self.text}

    def __str__(self) -> str:
        """For the line that a server starts with."""
        share = f"{self.rate:.4g} of the requests"
        if self.abstained:
            share += " and all abstained answers"
        texts = "WITH THEIR TEXTS" if self.text else "without texts"
        return f"{share}, {texts}{', redacted' if self.text and self.redact else ''}"


class Capture:
    """Keeps answers and feedback of one model.

    Args:
        pieces: counts what the vocabulary does not know, and what continues a word.
    """

    def __init__(
        self,
        manifest: Manifest,
        rules: CaptureRules,
        writer: CaptureWriter,
        pieces: PieceCounter,
    ) -> None:
        self.rules = rules
        self._manifest = manifest
        self._writer = writer
        self._pieces = pieces
        self._groups: set[str] = set()
        self._labels = frozenset(manifest.labels)
        # Of several labels, and of the positive one of two: where an answer turns.
        self._turning = [manifest.labels.index(name) for name in manifest.thresholds]
        self._thresholds = np.array(list(manifest.thresholds.values()))

    def keep(
        self,
        name: str,
        headers: Mapping[bytes, bytes],
        texts: Sequence[Text],
        encoded: Sequence[EncodedText],
        predictions: Sequence[Prediction],
    ) -> None:
        """Keep the answers to a request, or those of them that the rules want."""
        rules = self.rules
        sampled = share_of(name) < rules.rate
        chosen = [
            index
            for index, answer in enumerate(predictions)
            if sampled or (rules.abstained and answer.abstained)
        ]
        if not chosen:
            return
        shared = {
            "kind": "answer",
            "id": plain_id(name),
            "time": as_time(time()),
            "version": self._manifest.version,
            "group": self._group(headers.get(GROUP_HEADER)),
        }
        with_texts = rules.text or rules.key is not None
        # Plain values only: what the answers and encoded texts hold would have to wait as well, and
        # the collector of garbage would look at all of it again and again.
        kept = [
            (
                self._facts(shared, index, predictions[index], encoded[index]),
                texts[index] if with_texts else None,
            )
            for index in chosen
        ]
        size = sum(BYTES_OF_LINE + _bytes_of(text) for _, text in kept)
        self._writer.put(Entry(partial(self._lines, kept), len(kept), size))

    def _facts(
        self, shared: Mapping[str, Any], index: int, answer: Prediction, encoded: EncodedText
    ) -> dict[str, Any]:
        """What is kept of an answer, besides its text."""
        always = self.rules.abstained and answer.abstained
        return {
            **shared,
            "index": index,
            "rate": 1.0 if always else self.rules.rate,
            **self._answer(answer),
            "tokens": answer.tokens,
            **self._pieces.count(encoded)._asdict(),
            "truncated": answer.truncated,
            "abstained": answer.abstained,
        }

    def _lines(self, kept: Sequence[tuple[dict[str, Any], Text | None]]) -> list[bytes]:
        """Their lines; in the writer's thread, because redaction is the user's code."""
        return [_as_line(**facts, **self._text(text)) for facts, text in kept]

    def keep_feedback(
        self,
        name: str,
        index: int,
        labels: Sequence[str],
        note: str | None,
        version: str | None = None,
    ) -> None:
        """Keep what is known of an answer.

        Args:
            version: the version that answered; the one that serves if None.
        """
        moment = time()
        note = note if self.rules.text else None

        def lines() -> list[bytes]:
            redact = self.rules.redact or str
            # A label that is none of the model's can be anything.
            own = [label if label in self._labels else redact(label) for label in labels]
            kept = None if note is None else redact(note)
            return [
                _as_line(
                    kind="feedback",
                    id=plain_id(name),
                    index=index,
                    time=as_time(moment),
                    version=version or self._manifest.version,
                    labels=own,
                    note=kept,
                )
            ]

        size = BYTES_OF_LINE + _bytes_of(note) + sum(map(_bytes_of, labels))
        self._writer.put(Entry(lines, 1, size))

    def close(self, seconds: float) -> None:
        """Write what waits; no longer than so many seconds."""
        self._writer.close(seconds)

    def _answer(self, answer: Prediction) -> dict[str, Any]:
        """Label, score and what the calibrated probabilities say of how sure they are."""
        found: dict[str, Any] = {"label": answer.label, "score": round(float(answer.score), 6)}
        if not self._turning:
            best, second = nlargest(2, answer.probs.tolist())
            return found | {"margin": round(best - second, 6)}
        probs = np.asarray(answer.probs, dtype=np.float64)
        distances = probs[self._turning] - self._thresholds
        found["margin"] = round(float(np.abs(distances).min()), 6)
        if self._manifest.task == "multi_label":
            found |= {
                "labels": list(answer.labels or ()),
                "expected_right": round(float(probs[self._turning][distances >= 0].sum()), 6),
                "expected_set": round(float(probs.sum()), 6),
            }
        return found

    def _group(self, header: bytes | None) -> str | None:
        """The caller's group: a sane name, and one of few."""
        if header is None or not SANE_GROUP.fullmatch(header):
            return None
        group = header.decode()
        if group not in self._groups:
            if len(self._groups) >= MOST_GROUPS:
                return OTHER_GROUP
            self._groups.add(group)
        return group

    def _text(self, text: Text | None) -> dict[str, Any]:
        if text is None:
            return {}
        parts = text if isinstance(text, tuple) else (text,)
        found: dict[str, Any] = {}
        if self.rules.key is not None:
            # A pair is not the text of both: the second part has its length before it.
            content = "\0".join(f"{len(part)}:{part}" for part in parts)
            digest = hmac.new(self.rules.key, content.encode("utf-8", "surrogatepass"), sha256)
            found["text_key"] = digest.hexdigest()[:32]
        if self.rules.text:
            redact = self.rules.redact or str
            found |= dict(zip(("text", "text_pair"), map(redact, parts), strict=False))
        return found


def load_redaction(name: str) -> Redact:
    """The function named `module:function`, which gets a text and gives the text that is kept.

    Raises:
        CaptureError: it is not there, or fails for a text.
    """
    module, _, function = name.partition(":")
    try:
        redact: Redact = getattr(importlib.import_module(module), function)
        answer = redact("a text")
    except Exception as error:  # noqa: BLE001 - the user's code
        raise CaptureError(f"{name} cannot be used: {type(error).__name__}: {error}") from None
    if not isinstance(answer, str):
        raise CaptureError(f"{name} must give a text, and gave {type(answer).__name__}")
    return redact


def read_key(path: Path) -> bytes:
    """The secret in a file, without white space around it.

    Raises:
        CaptureError: it cannot be read, or is so short that it can be guessed.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror}") from None
    if len(key) < SMALLEST_KEY:
        raise CaptureError(f"{path} holds fewer than {SMALLEST_KEY} bytes: write a longer secret")
    return key


def _bytes_of(text: Text | None) -> int:
    """What a text holds in memory: a character is one to four bytes."""
    if text is None:
        return 0
    return sum(map(getsizeof, (text,) if isinstance(text, str) else text))


def _as_line(**fields: Any) -> bytes:
    # As ASCII: no text can end a line, whatever a reader takes for the end of one.
    kept = without_nothing(fields)
    try:
        line = orjson.dumps(kept)
    except orjson.JSONEncodeError:
        # Such as a lone surrogate that a redaction has made.
        line = b""
    if not line.isascii() or not line:
        line = json.dumps(kept, separators=(",", ":")).encode()
    return line + b"\n"
