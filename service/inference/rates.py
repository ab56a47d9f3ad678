"""What is measured while an engine runs: the time that work takes, and how late answers are."""

from __future__ import annotations

import math
from collections.abc import Callable

# The weight of new measurements whose total amount is a rate's `memory`.
NEW_WEIGHT = 0.1
# A lateness loses half of its value in so many seconds.
LATENESS_HALF_LIFE = 5.0


class Rate:
    """A measured amount per unit, such as seconds per token; the newest measurements weigh most.

    Args:
        initial: the value before anything is measured.
        memory: so many new units together get the weight `NEW_WEIGHT`.
        initial_units: the initial value weighs as much as so many measured units.
    """

    def __init__(self, initial: float, memory: float, initial_units: float = 0.0) -> None:
        self.value = initial
        self._memory = memory
        self._units = initial_units

    def learn(self, total: float, units: float) -> None:
        """Include a measurement: `total` for so many units together."""
        self._units += units
        # A plain mean at first, until there are enough units to forget the oldest.
        weight = max(1 - (1 - NEW_WEIGHT) ** (units / self._memory), units / self._units)
        self.value += weight * (total / units - self.value)

    def lower(self, total: float, units: float) -> None:
        """Include a measurement that may be too high by chance: it can only lower the value."""
        self.value = min(self.value, total / units)


class Lateness:
    """By how many seconds recent answers were late: the largest value, which decays with time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._largest = 0.0
        self._measured_at = clock()

    @property
    def now(self) -> float:
        """The lateness that is left at the moment."""
        if not self._largest:
            return 0.0
        age = self._clock() - self._measured_at
        return self._largest * math.exp2(-age / LATENESS_HALF_LIFE)

    def learn(self, seconds: float) -> None:
        """Include an answer that was late by `seconds`; an answer in time changes nothing."""
        if seconds > 0 and seconds > self.now:
            self._largest, self._measured_at = seconds, self._clock()
