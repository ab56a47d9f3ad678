"""How many digits of a measured share its rows carry."""

from __future__ import annotations

import math

from training.significance import wilson

FEWEST, MOST = 2, 4


def decimals(half_width: float) -> int:
    """Decimals of a number that is known to ± `half_width`: the last is the first in doubt.

    So the third is written where half the 95 % interval is below 0.01. Never fewer than FEWEST.
    """
    if half_width <= 0:
        return MOST
    return min(MOST, max(FEWEST, math.ceil(-math.log10(half_width))))


def difference_decimals(half_width: float) -> int:
    """One more for a difference and its ends: whether they are above 0 or a bound must be seen."""
    return min(MOST, decimals(half_width) + 1)


def decimals_of(share: float, rows: int) -> int:
    """Decimals of a share of so many rows, by its Wilson interval."""
    low, high = wilson(min(1.0, max(0.0, share)) * rows, rows)
    return decimals((high - low) / 2)


def measured(share: float, rows: int) -> str:
    """A share of so many rows, or what varies as one does: an F1, a calibration error."""
    return f"{share:.{decimals_of(share, rows)}f}"
