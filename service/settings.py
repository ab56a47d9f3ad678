"""What the operator decides: the `WHETSTONE_*` environment variables, typed and checked once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from service.inference.admission import QUEUE_TOKENS
from service.inference.device import Device
from service.schemas import Limits

PREFIX = "WHETSTONE_"
# Variables that are read though they are empty: to pass them over would open the service.
READ_EMPTY = (f"{PREFIX}API_KEYS_FILE", f"{PREFIX}OPEN_ROUTES")
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
SERVICE_LINK = re.compile(r"(\w+_)?(service_(host|port(_\w+)?)|port(_\d+_(tcp|udp|sctp)(_\w+)?)?)")


class SettingsError(Exception):
    """A variable is unknown or its value is impossible; the message names it."""


def _split(value: object) -> object:
    """The items of a list separated by commas."""
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(Limits):
    """One field per variable: `package` is read from `WHETSTONE_PACKAGE`, and so on.

    A `title` says in words what the default is.
    """

    package: Path | None = Field(
        None,
        title="unset",
        description="folder of the model package to serve instead of the model store's",
    )
    device: Device = Field(
        "cpu",
        description="`cpu`, or `cuda` with `onnxruntime-gpu` and a package of `target_device: gpu` "
        "(not tried on a GPU yet); one that does not start, or a package for the other one, is an "
        "error, not a fallback",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="processes, each with the model, a queue and threads of its own: for more "
        "cores than one event loop can feed",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        title="the cores that the server may use, divided by the workers; on a GPU 1",
        description="batches at once, of each worker",
    )
    probe_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        title="none",
        description="port on which `/livez` and `/readyz` are answered, too, without a key and "
        "whatever else there is to do",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        title="128; on a GPU 16,384",
        description="tokens of a batch, padding included",
    )
    queue_tokens: int = Field(QUEUE_TOKENS, ge=1, description="tokens that may wait")
    drain_ms: int = Field(
        5_000, ge=0, description="milliseconds in which open connections are answered after SIGTERM"
    )
    stall_ms: int = Field(
        30_000, ge=1, description="milliseconds after which a batch under way fails `/livez`"
    )
    api_keys_file: Path | None = Field(
        None, title="no key needed", description="file with the SHA-256 of every API key"
    )
    open_routes: CommaList = Field(
        ("/livez", "/readyz", "/healthz", "/health", "/metrics"),
        description="routes that need no API key, separated by commas; empty: none",
    )
    cors_origins: CommaList = Field(
        (),
        title="none",
        description="origins whose pages may call the service, separated by commas",
    )
    ui: bool = Field(
        False,
        description="serve `/ui`, a page to try the model on; it needs no key, what it asks does",
    )
    access_log: bool = Field(
        False,
        description="write a JSON line for every request, of BentoML's own routes and `/health` "
        "only where the status is 400 or more; never text",
    )
    tracing_url: str | None = Field(
        None,
        pattern="^https?://",
        title="no spans",
        description="OTLP/HTTP address that OpenTelemetry spans go to, such as "
        "`http://collector:4318/v1/traces`",
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
                # For a Service named whetstone, every pod gets such variables.
                hint = "Kubernetes sets it for a Service: add enableServiceLinks: false to the pod"
            raise SettingsError(f"unknown environment variable {PREFIX}{name.upper()}: {hint}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"{PREFIX}{str(first['loc'][0]).upper()}"
        raise SettingsError(f"{variable}={first['input']!r}: {first['msg']}") from None


def settings_table() -> str:
    """All variables as a table in Markdown: `python -m service.settings`, for the README."""
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    own = [name for name in Settings.model_fields if name not in Limits.model_fields]
    for name in (*own, *Limits.model_fields):
        field = Settings.model_fields[name]
        default = field.title or _in_words(field.default)
        lines.append(f"| `{PREFIX}{name.upper()}` | {field.description} | {default} |")
    return "\n".join(lines)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    print(settings_table())  # noqa: T201
