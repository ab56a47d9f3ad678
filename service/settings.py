"""The operator's settings: the `WHETSTONE_*` environment variables, typed and checked once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from service.http.limits import Limits
from service.inference.capacity import QUEUE_TOKENS
from service.inference.device import Device

PREFIX = "WHETSTONE_"
# Variables that count although they are empty: to ignore them would open the service to everybody.
READ_EMPTY = (f"{PREFIX}API_KEYS_FILE", f"{PREFIX}OPEN_ROUTES")
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
SERVICE_LINK = re.compile(r"(\w+_)?(service_(host|port(_\w+)?)|port(_\d+_(tcp|udp|sctp)(_\w+)?)?)")


class SettingsError(Exception):
    """A variable is unknown or has an impossible value; the message names the variable."""


def _split(value: object) -> object:
    """The items of a comma-separated list."""
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(Limits):
    """One field for each variable: `package` is read from `WHETSTONE_PACKAGE`, and so on.

    A `title` describes the default in words.
    """

    package: Path | None = Field(
        None,
        title="unset",
        description="folder of the model package to serve, instead of one of the model store",
    )
    device: Device = Field(
        "cpu",
        description="`cpu`, or `cuda` with `onnxruntime-gpu` and a package of `target_device: gpu` "
        "(not tried on a GPU yet); a device that does not start and a package for the other device "
        "are errors, there is no fallback",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="processes, each with its own model, queue and threads: for more cores than "
        "one event loop can feed",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        title="the cores that the server may use, divided by the workers; 1 on a GPU",
        description="batches that each worker computes at once",
    )
    probe_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        title="none",
        description="additional port for `/livez` and `/readyz`, which answers without a key and "
        "however busy the server is",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        title="128; 16,384 on a GPU",
        description="tokens of a batch, padding included",
    )
    queue_tokens: int = Field(QUEUE_TOKENS, ge=1, description="tokens that may wait")
    drain_ms: int = Field(
        5_000,
        ge=0,
        description="milliseconds after SIGTERM in which open connections are still answered",
    )
    stall_ms: int = Field(
        30_000, ge=1, description="milliseconds after which a running batch fails `/livez`"
    )
    api_keys_file: Path | None = Field(
        None, title="no key needed", description="file with the SHA-256 of every API key"
    )
    open_routes: CommaList = Field(
        ("/livez", "/readyz", "/healthz", "/health", "/metrics"),
        description="routes that need no API key, separated by commas; if empty, all need one",
    )
    cors_origins: CommaList = Field(
        (),
        title="none",
        description="origins whose pages may call the service, separated by commas",
    )
    ui: bool = Field(
        False,
        description="serve `/ui`, a page to try the model on; it needs no key, its requests do",
    )
    explain: bool = Field(
        False,
        description="answer `POST /explain`: the words that made a label; also shown on `/ui`",
    )
    explain_max_texts: int = Field(8, ge=1, description="texts of a request to `/explain`")
    explain_max_words: int = Field(
        64, ge=1, description="words of a text that are weighed; of longer texts, those that matter"
    )
    explain_max_windows: int = Field(
        256, ge=8, description="windows that the model reads for a request to `/explain`"
    )
    access_log: bool = Field(
        False,
        description="write a JSON line for every request, without its text; for `/health` and "
        "BentoML's own routes only if the status is 400 or higher",
    )
    capture: str | None = Field(
        None,
        title="nothing is captured",
        description="folder, or address such as `s3://bucket/captured`, where answers and feedback "
        "are kept, and switch of `POST /feedback`",
    )
    capture_rate: float = Field(
        1.0, gt=0, le=1, description="share of requests whose answers are captured"
    )
    capture_abstained: bool = Field(
        False, description="capture every abstained answer, whatever the rate"
    )
    capture_text: bool = Field(
        False, description="capture texts and notes, too: personal data, if callers send any"
    )
    capture_key_file: Path | None = Field(
        None,
        title="texts have no key",
        description="file with a secret, by which equal texts get equal keys in what is captured",
    )
    capture_redact: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        title="texts are kept as they are",
        description="`module:function` that gets a text and returns the text to keep",
    )
    tracing_url: str | None = Field(
        None,
        pattern="^https?://",
        title="no spans",
        description="OTLP/HTTP address for OpenTelemetry spans, such as "
        "`http://collector:4318/v1/traces`",
    )
    tracing_sample_rate: float = Field(
        1.0, ge=0, le=1, description="share of traced requests, where the caller has not decided"
    )


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environment`.

    Raises:
        SettingsError: a `WHETSTONE_*` variable is unknown, or has an impossible value.
    """
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and (value or name in READ_EMPTY)
    }
    if values.get("api_keys_file") == "":
        raise SettingsError(
            f"{PREFIX}API_KEYS_FILE is empty: set it to a file, or unset it to serve without keys"
        )
    known = list(Settings.model_fields)
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            hint = f"did you mean {PREFIX}{nearest.upper()}?"
            if SERVICE_LINK.fullmatch(name):
                # Every pod gets such variables where a Service is named whetstone.
                hint = "Kubernetes sets it for a Service: add enableServiceLinks: false to the pod"
            raise SettingsError(f"unknown environment variable {PREFIX}{name.upper()}: {hint}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"{PREFIX}{str(first['loc'][0]).upper()}"
        raise SettingsError(f"{variable}={first['input']!r}: {first['msg']}") from None


def settings_table() -> str:
    """All variables as a table in Markdown: `python -m service.settings`."""
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    own = [name for name in Settings.model_fields if name not in Limits.model_fields]
    for name in (*own, *Limits.model_fields):
        field = Settings.model_fields[name]
        default = field.title or _describe(field.default)
        lines.append(f"| `{PREFIX}{name.upper()}` | {field.description} | {default} |")
    return "\n".join(lines)


def _describe(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    print(settings_table())  # noqa: T201
