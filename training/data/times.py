"""The values of `time_column` → numbers by which rows are ordered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal

import numpy as np

from training.common.errors import DataError

Kind = Literal["number", "date", "nothing"]


def parse_times(values: Sequence[Any], where: str = "the rows") -> np.ndarray:
    """A number for each row, larger for newer rows; NaN where there is no readable time.

    Dates and times are as ISO 8601 writes them, in UTC where they name no zone. Numbers (of a CSV
    file, too) are only compared: seconds since 1970, milliseconds, 20240131, a running number.

    Raises:
        DataError: some are numbers and some are dates, so that they have no common order.
    """
    import pandas

    kinds = [_kind(value) for value in values]
    parsed = np.full(len(values), np.nan)
    numbers = [row for row, kind in enumerate(kinds) if kind == "number"]
    parsed[numbers] = [float(values[row]) for row in numbers]
    dates = [row for row, kind in enumerate(kinds) if kind == "date"]
    written = pandas.Series([_written(values[row]) for row in dates], dtype="object")
    moments = pandas.to_datetime(written, format="ISO8601", utc=True, errors="coerce")
    microseconds = moments.dt.as_unit("us").astype("int64").to_numpy(dtype=float)
    parsed[dates] = np.where(moments.isna(), np.nan, microseconds / 1e6)
    readable = [row for row in dates if not np.isnan(parsed[row])]
    if numbers and readable:
        raise DataError(
            f"{where}: time_column holds a number in row {numbers[0] + 1} and a date in row "
            f"{readable[0] + 1}: write all of them alike"
        )
    return parsed


def _kind(value: Any) -> Kind:
    if isinstance(value, date):
        return "date"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return "nothing"
    try:
        return "number" if np.isfinite(float(value)) else "nothing"
    except (ValueError, OverflowError):
        return "date"


def _written(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime | date) else str(value).strip()
