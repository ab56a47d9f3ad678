"""The bounds of the gates and of a comparison, as a recipe states them."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import yaml

from training.common.errors import RecipeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyBounds = TypeVar("AnyBounds", bound=DataclassInstance)


@dataclass(frozen=True)
class Gates:
    """The bounds of the gates, each a key of the recipe's `gates:`."""

    min_agreement: float = 0.98
    max_drift: float = 0.02
    max_macro_f1_drop: float = 0.01
    max_half_width: float = 0.02


def parse_gates(value: str | None) -> Gates:
    """The recipe's key `gates` as bounds; a bound that it does not name keeps its default.

    Raises:
        RecipeError: it is not a mapping of bounds to numbers from 0 to 1.
    """
    return parse_bounds("gates", value, Gates())


def parse_bounds(key: str, value: object, defaults: AnyBounds) -> AnyBounds:
    """A recipe's mapping of bounds over `defaults`, a dataclass.

    Raises:
        RecipeError: it is not a mapping of these bounds to numbers from 0 to 1.
    """
    if value is None:
        return defaults
    known = [bound.name for bound in dataclasses.fields(defaults)]
    try:
        stated = yaml.safe_load(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        stated = None
    if not isinstance(stated, dict):
        raise RecipeError(f"{key} is {value!r}: give a mapping such as {{{known[0]}: 0.01}}")
    bounds = {}
    for name, bound in stated.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{key} has no bound {name!r}: did you mean {nearest!r}?")
        bounds[name] = parse_bound(key, name, bound)
    return dataclasses.replace(defaults, **bounds)


def parse_bound(key: str, name: str, value: object) -> float:
    """One bound, a number from 0 to 1.

    Raises:
        RecipeError: it is not.
    """
    try:
        # YAML reads 1e-2 as text; float() reads true as 1.
        bound = float("" if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RecipeError(f"{key}: {name} is {value!r}, which is no number") from None
    if not 0 <= bound <= 1:
        raise RecipeError(f"{key}: {name} is {value!r}: it lies between 0 and 1")
    if name == "max_half_width" and bound == 0:
        raise RecipeError(f"{key}: {name} is 0, which no number of rows reaches")
    return bound


@dataclass(frozen=True)
class PromotionBounds:
    """The bounds of a comparison, each a key of the recipe's `compare:`.

    A floor of 0 and a ceiling of 1 ask for nothing.
    """

    max_macro_f1_drop: float = 0.01
    max_half_width: float = 0.02
    min_macro_f1: float = 0.0
    max_ece: float = 1.0

    @property
    def has_floor(self) -> bool:
        """Whether a package that replaces none has to reach a bound."""
        return self.min_macro_f1 > 0 or self.max_ece < 1


def parse_compare(value: object) -> PromotionBounds:
    """The recipe's key `compare` as bounds; a bound that it does not name keeps its default.

    Raises:
        RecipeError: it is not a mapping of bounds to numbers from 0 to 1.
    """
    return parse_bounds("compare", value, PromotionBounds())
