"""The share of rows set aside suits what validation rows are for."""

from __future__ import annotations

import pytest

from tests.conftest import EXAMPLE
from training.data.dataset import load_data
from training.data.validation_share import validation_share
from training.recipe.load import load_recipe


@pytest.mark.parametrize(
    ("rows", "share", "reason"),
    [
        (48, 0.1, "48 rows are few"),
        (400, 0.15, "at least 60, to calibrate by"),
        (616, 0.1, "at least 60, to calibrate by"),
        (1_266, 0.127, "at least 160, to judge int8 by"),
        (10_003, 0.1, "at least 160, to judge int8 by"),
    ],
)
def test_the_validation_share_suits_what_the_rows_are_for(
    rows: int, share: float, reason: str
) -> None:
    found = validation_share(rows)
    assert found.value == share and reason in found.reason


def test_the_example_has_validation_rows_enough_for_the_gates() -> None:
    recipe = load_recipe(EXAMPLE / "recipe.yaml", {})
    data = load_data(recipe.data, 42)
    assert len(data.validation) >= 150
    assert len(data.validation) < 0.15 * len(data.train)
