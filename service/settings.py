"""What the operator decides: the `WHETSTONE_*` environment variables, typed and checked once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from service.batching import QUEUE_TOKENS
from service.classifier import Device
from service.schemas import Limits

PREFIX = "WHETSTONE_"


class SettingsError(Exception):
    """A variable is unknown or its value is impossible; the message names it."""


def _split(value: object) -> object:
    """The items of a list separated by commas."""
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(Limits):
    """One field per variable: `package` is read from `WHETSTONE_PACKAGE`, and so on."""

    package: Path | None = Field(
        None, description="folder of the model package to serve instead of the model store's"
    )
    device: Device = Field("cpu", description="`cpu`, or `cuda` where onnxruntime-gpu is installed")
    threads: int | None = Field(
        None, ge=1, le=1024, description="batches at once; all available cores if unset, on a GPU 1"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of a batch, padding included; 128, on a GPU 16,384"
    )
    queue_tokens: int = Field(QUEUE_TOKENS, ge=1, description="tokens that may wait")
    api_keys_file: Path | None = Field(
        None, description="file with the SHA-256 of every API key, a line each; without it no key"
    )
    open_routes: CommaList = Field(
        ("/livez", "/readyz", "/healthz", "/metrics"),
        description="routes that need no API key, separated by commas",
    )
    cors_origins: CommaList = Field(
        (), description="origins whose pages may call the service, separated by commas; none"
    )
    access_log: bool = Field(False, description="write a JSON line for every request; never text")
    tracing_url: str | None = Field(
        None, pattern="^https?://", description="OTLP/HTTP address that OpenTelemetry spans go to"
    )
    tracing_sample_rate: float = Field(
        1.0, ge=0, le=1, description="share of requests traced, where the caller has not decided"
    )


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environment`.

    Raises:
        SettingsError: a `WHETSTONE_*` variable is unknown or impossible.
    """
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and value != ""
    }
    known = list(Settings.model_fields)
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise SettingsError(
                f"unknown environment variable {PREFIX}{name.upper()}: "
                f"did you mean {PREFIX}{nearest.upper()}?"
            )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"{PREFIX}{str(first['loc'][0]).upper()}"
        raise SettingsError(f"{variable}={first['input']!r}: {first['msg']}") from None
