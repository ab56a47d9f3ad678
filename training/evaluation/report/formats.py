"""Numbers and labels as both pages write them; each function is a filter of the templates."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from training.common.digits import decimals, measured

# The sign for a missing number.
NOTHING = "–"  # noqa: RUF001
# A browser may break a name of several words here.
BREAKS = re.compile(r"([_/.:-])(?=\w)")


def is_missing(value: float | None) -> bool:
    """Whether there is no number."""
    return value is None or math.isnan(value)


def score(value: float | None, rows: int | None = None, *, digits: int = 3) -> str:
    """A probability; or what was measured on so many rows, with the decimals that they carry."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.{digits}f}" if rows is None else measured(value, rows)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; a difference that is written as zero has none."""
    if value is None or math.isnan(value):
        return NOTHING
    text = f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001
    return text if round(value, digits) else text[1:]


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}"


def span(low: float, high: float) -> str:
    """Two scores as an interval, with the decimals that its width allows."""
    digits = decimals((high - low) / 2)
    return f"{score(low, digits=digits)}–{score(high, digits=digits)}"  # noqa: RUF001


def plural(number: int, singular: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {singular}{'' if number == 1 else 's'}"


def breakable(label: str) -> Markup:
    """A label, which a browser may break after what joins its words."""
    return Markup(BREAKS.sub("\\1<wbr>", str(escape(label))))  # noqa: S704 - escaped before
