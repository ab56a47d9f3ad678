"""The settings of capture → rules, a store and a writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from service.capture.capture import Capture, CaptureError, CaptureRules, load_redaction, read_key
from service.capture.store import FolderStore, StoreError, open_store
from service.capture.writer import FLUSH_SECONDS, CaptureWriter
from service.inference.classifier import Classifier
from service.metrics.recorder import Metrics
from service.settings import PREFIX, Settings, SettingsError

# In seconds. A bucket should hold few objects: whoever reads them asks for each.
REMOTE_FLUSH_SECONDS = 60.0

Value = TypeVar("Value")
Result = TypeVar("Result")


def check_capture(settings: Settings) -> CaptureRules | None:
    """The rules, where answers are captured; the store can be used.

    Raises:
        SettingsError: a variable is impossible, or has no meaning without `WHETSTONE_CAPTURE`.
    """
    chosen = [name for name in Settings.model_fields if name.startswith("capture_")]
    given = [name for name in chosen if name in settings.model_fields_set]
    if settings.capture is None:
        if given:
            raise SettingsError(
                f"{PREFIX}{given[0].upper()} needs {PREFIX}CAPTURE, the folder or address where "
                "answers are kept"
            )
        return None
    if settings.capture_redact is not None and not settings.capture_text:
        raise SettingsError(f"{PREFIX}CAPTURE_REDACT needs {PREFIX}CAPTURE_TEXT=1")
    try:
        open_store(settings.capture)
    except StoreError as error:
        raise SettingsError(f"{PREFIX}CAPTURE: {error}") from None
    return CaptureRules(
        rate=settings.capture_rate,
        abstained=settings.capture_abstained,
        text=settings.capture_text,
        key=_read("CAPTURE_KEY_FILE", read_key, settings.capture_key_file),
        redact=_read("CAPTURE_REDACT", load_redaction, settings.capture_redact),
    )


def _read(name: str, read: Callable[[Value], Result], value: Value | None) -> Result | None:
    """What a variable names; None where it is not set."""
    if value is None:
        return None
    try:
        return read(value)
    except CaptureError as error:
        raise SettingsError(f"{PREFIX}{name}: {error}") from None


def start_capture(
    rules: CaptureRules | None, settings: Settings, classifier: Classifier, metrics: Metrics
) -> Capture | None:
    """What keeps answers and feedback from now on; None where nothing is captured."""
    if rules is None or settings.capture is None:
        return None
    store = open_store(settings.capture)
    seconds = FLUSH_SECONDS if isinstance(store, FolderStore) else REMOTE_FLUSH_SECONDS
    writer = CaptureWriter(store, metrics.capture_dropped, metrics.captured, seconds)
    return Capture(classifier.manifest, rules, writer, classifier.encoder.pieces)
