"""As many digits as the rows carry."""

from __future__ import annotations

import pytest

from training.common.digits import decimals, difference_decimals, measured


@pytest.mark.parametrize(
    ("half_width", "expected"),
    [(0.3, 2), (0.05, 2), (0.01, 2), (0.0099, 3), (0.001, 3), (0.0009, 4), (1e-9, 4), (0, 4)],
)
def test_the_last_decimal_is_the_first_in_doubt(half_width: float, expected: int) -> None:
    assert decimals(half_width) == expected
    assert difference_decimals(half_width) == min(4, expected + 1)


@pytest.mark.parametrize(
    ("share", "rows", "written"),
    [
        (0.93333, 15, "0.93"),
        (1.0, 30, "1.00"),
        (0.93333, 3080, "0.933"),
        (0.93333, 500_000, "0.9333"),
        (0.5, 0, "0.50"),
    ],
)
def test_a_share_is_written_as_its_rows_allow(share: float, rows: int, written: str) -> None:
    assert measured(share, rows) == written
