"""What the operator decides: the `WHETSTONE_*` environment variables, typed and checked once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "WHETSTONE_"


class SettingsError(Exception):
    """A variable is unknown or its value is impossible; the message names it."""


class Settings(BaseModel):
    """One field per variable: `package` is read from `WHETSTONE_PACKAGE`, and so on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: Path | None = Field(
        None, description="folder of the model package to serve instead of the model store's"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="requests classified at once; all available cores if unset"
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
