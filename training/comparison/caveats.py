"""What makes a comparison worth less than it looks."""

from __future__ import annotations

from collections.abc import Iterator

from training.comparison.result import Measurement, Side
from training.recipe.bounds import PromotionBounds

# Where fewer rows of a file can be looked up, they say little about the others.
LEAST_LOOKED_UP = 0.5


def find_caveats(measurement: Measurement, file: str, bounds: PromotionBounds) -> list[str]:
    """A sentence for each doubt about the comparison."""
    champion, challenger = measurement.champion, measurement.challenger
    warnings = list(_leakage_warnings(challenger, "challenger", file))
    if champion is not None:
        warnings += _leakage_warnings(champion, "champion", file)
        if measurement.is_same_package:
            warnings.append(
                "champion and challenger are the same package, so nothing was compared: is the "
                "champion the one that runs?"
            )
    elif not bounds.has_floor:
        warnings.append(
            "nothing is asked of the challenger: set floors with --min_macro_f1 and --max_ece, or "
            "the recipe's key compare"
        )
    return warnings


def _leakage_warnings(side: Side, name: str, file: str) -> Iterator[str]:
    """Whether the package was made with rows of the file, as far as that can be looked up."""
    if side.leakage is None:
        yield (
            f"the {name} does not say which texts it was trained on, so nobody knows whether "
            f"{file} flatters it: a package exported anew says it"
        )
        return
    rows, looked_up, all_rows = len(side.leakage.rows), side.leakage.looked_at, len(side.answers)
    if rows:
        total = f"{looked_up} rows" if looked_up == all_rows else f"the {looked_up} rows"
        yield (
            f"{rows} of {total} of {file} that could be looked up are among the texts that the "
            f"{name} was trained or tuned on, which flatters it: use rows that it has not seen"
        )
    elif looked_up < all_rows * LEAST_LOOKED_UP:
        yield (
            f"only {looked_up} of {all_rows} rows could be looked up among the texts that the "
            f"{name} was trained on, so it may be flattered without a warning"
        )
