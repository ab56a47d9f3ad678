"""The limits on a request. The operator can change each by a setting of that name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one request may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(1 << 20, ge=1, description="bytes of a request's body")
    max_texts: int = Field(256, ge=1, description="texts of a request")
    max_characters: int = Field(100_000, ge=1, description="characters of a text")
    max_windows: int = Field(
        512, ge=1, description="windows of a request, where a model reads long texts by windows"
    )
    timeout_ms: int = Field(
        10_000, ge=1, description="milliseconds from a request's arrival to its deadline"
    )
    body_timeout_ms: int = Field(
        10_000, ge=1, description="milliseconds in which a request's body must arrive"
    )
