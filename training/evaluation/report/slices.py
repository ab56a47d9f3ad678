"""The report's section about groups of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.report.plots import Strip, axis_start, strip
from training.evaluation.report.render import Section
from training.evaluation.report.rows import (
    Measured,
    Slice,
    by_label_frequency,
    by_length,
    by_value,
)

# An accuracy over fewer rows than this says little.
SMALL_SLICE = 30


@dataclass(frozen=True)
class SliceGroup:
    """The same rows divided in one way."""

    name: str
    slices: list[Slice]


@dataclass(frozen=True)
class Slices:
    """All groups, over one axis of accuracy that begins at `start`."""

    groups: list[SliceGroup]
    rows: int
    accuracy: float
    start: float
    small: int = SMALL_SLICE

    def strip_of(self, part: Slice) -> Strip:
        """The drawing of a slice's accuracy."""
        return strip(part, self.start, self.accuracy)


def slices(measured: Measured, values: Mapping[str, Sequence[str]]) -> Section:
    """Groups by length, by the frequency of the label, and by the values of columns.

    Args:
        values: by a column's name its value of each row.
    """
    groups = [SliceGroup("By length of the text", by_length(measured))]
    if frequency := by_label_frequency(measured):
        groups.append(SliceGroup("By the share of the label in the training rows", frequency))
    groups += [
        SliceGroup(f"By {name}", by_value(measured, column)) for name, column in values.items()
    ]
    # Few rows have wide intervals: they are cut off rather than let all others shrink.
    start = axis_start(
        [
            part.accuracy if part.rows < SMALL_SLICE else part.low
            for group in groups
            for part in group.slices
        ]
    )
    data = Slices(groups, len(measured.split), float(measured.metrics["accuracy"]), start)
    return Section("slices", "Slices", "slices.html", data)
