"""The number of digits that a share measured on so many rows deserves."""

from __future__ import annotations

import math

from training.evaluation.significance import wilson

FEWEST, MOST = 2, 4


def decimals(half_width: float) -> int:
    """The decimals of a number that is known to ± `half_width`: the last one is the first in doubt.

    The third decimal is written where half the 95 % interval is below 0.01. There are never fewer
    than FEWEST.
    """
    if half_width <= 0:
        return MOST
    return min(MOST, max(FEWEST, math.ceil(-math.log10(half_width))))


def difference_decimals(half_width: float) -> int:
    """One decimal more for a difference and its interval, which must show their side of 0."""
    return min(MOST, decimals(half_width) + 1)


def decimals_of(share: float, rows: int) -> int:
    """The decimals of a share of `rows` rows, by its Wilson interval."""
    low, high = wilson(min(1.0, max(0.0, share)) * rows, rows)
    return decimals((high - low) / 2)


def measured(share: float, rows: int) -> str:
    """A share of `rows` rows, or a measure that varies like one: an F1, a calibration error."""
    return f"{share:.{decimals_of(share, rows)}f}"
