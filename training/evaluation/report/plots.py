"""The arithmetic of the report's plots: values → places in a drawing, which `plots.html` draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.report.formats import count, plural, score, span
from training.evaluation.report.rows import HISTOGRAM_BINS, Slice
from training.evaluation.significance import Difference, wilson

Points = Sequence[tuple[float, float]]
# Margins of the drawing, for the ticks and the names of the axes.
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 38
# Where an axis of shares may begin when nothing lies below.
AXIS_STARTS = (0.95, 0.9, 0.8, 0.6, 0.5, 0.0)
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
STRIP_WIDTH = 168


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what stands there."""

    value: float
    text: str


@dataclass(frozen=True)
class Axes:
    """A drawing of a width and height in units of the SVG, and what its edges stand for.

    `y_steps` are the values with a tick, where they are not the round ones.
    """

    width: float = 420
    height: float = 300
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    bottom: float = BOTTOM
    y_steps: tuple[float, ...] = ()

    def across(self, value: float) -> float:
        """Where a value of x lies."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def up(self, value: float) -> float:
        """Where a value of y lies."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - self.bottom - share * (self.height - TOP - self.bottom), 1)

    def points(self, points: Points) -> str:
        """The places of a line's points, as a polyline has them."""
        return " ".join(f"{self.across(x):g},{self.up(y):g}" for x, y in points)

    @property
    def x_ticks(self) -> list[Tick]:
        """Round values of x."""
        return [Tick(value, short(value)) for value in round_values(*self.x)]

    @property
    def y_ticks(self) -> list[Tick]:
        """Round values of y, or `y_steps`."""
        return [Tick(value, short(value)) for value in self.y_steps or round_values(*self.y)]


@dataclass(frozen=True)
class Dot:
    """A point with its tooltip; `low` and `high` are the ends of its interval, if it has one."""

    x: float
    y: float
    radius: float
    title: str
    low: float = 0
    high: float = 0


@dataclass(frozen=True)
class Bar:
    """A rectangle in units of the SVG; `text` stands over it or is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str = ""
    middle: float = 0


@dataclass(frozen=True)
class Reliability:
    """Observed share by mean probability, and below it the number of `things` in each bin."""

    name: str
    things: str
    axes: Axes
    dots: list[Dot]
    count_axes: Axes
    count_bars: list[Bar]


@dataclass(frozen=True)
class Histogram:
    """Answers by probability, in one color: `style` is `hit` or `miss`."""

    name: str
    style: str
    caption: str
    axes: Axes
    bars: list[Bar]


@dataclass(frozen=True)
class Coverage:
    """Precision by the share of rows answered; the ring is where the package abstains."""

    axes: Axes
    line: Points
    dots: list[Dot]
    ring: Dot | None


@dataclass(frozen=True)
class Strip:
    """The places of a slice's accuracy, of its interval and of the accuracy of all rows."""

    width: float
    low: float
    high: float
    accuracy: float
    overall: float


@dataclass(frozen=True)
class DifferenceLine:
    """The places of a difference and of its interval, on a line of its own."""

    name: str
    title: str
    y: int
    low: float
    high: float
    point: float


@dataclass(frozen=True)
class DifferenceStrip:
    """Differences over one axis; `zero` and `allowed` are the places of two vertical lines."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    zero: float
    allowed: float
    ticks: list[Tick]
    lines: list[DifferenceLine]


def round_values(low: float, high: float) -> list[float]:
    """About five round values from low to high, which are shares or counts."""
    reach = high - low
    if high > 1:
        step = max(1.0, next_round(reach / 4))
    else:
        step = next(step for step in TICK_STEPS if reach / step <= 5.01)
    return [round(low + step * i, 6) for i in range(int(reach / step + 1e-9) + 1)]


def next_round(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)


def short(value: float) -> str:
    """A number for a tick, or over a bar: 0.8, 250, 12k."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.{1 if value < 10 * unit else 0}f}".removesuffix(".0") + name
    return f"{value:g}"


def axis_start(values: Sequence[float]) -> float:
    """The highest round start below all values, so that differences near 1 can be seen."""
    return next(start for start in AXIS_STARTS if start <= min(values, default=0) or start == 0)


def reliability(bins: Sequence[dict[str, Any]], name: str, things: str) -> Reliability:
    """Dots as wide as their bins are full, with Wilson intervals, and the counts."""
    most = max(part["count"] for part in bins)
    count_axes = Axes(height=84, y=(0, math.sqrt(most) * 1.25), bottom=4)
    return Reliability(
        name=name,
        things=things,
        axes=Axes(),
        dots=[_reliability_dot(part, most, things) for part in bins if part["count"]],
        count_axes=count_axes,
        count_bars=[_count_bar(part, count_axes) for part in bins],
    )


def _reliability_dot(part: dict[str, Any], most: int, things: str) -> Dot:
    low, high = wilson(round(part["accuracy"] * part["count"]), part["count"])
    title = (
        f"{plural(part['count'], things)} between {score(part['low'])} and "
        f"{score(part['high'])}: mean probability {score(part['confidence'])}, "
        f"observed {score(part['accuracy'])} (95 % interval {span(low, high)})"
    )
    radius = 2.5 + 5 * math.sqrt(part["count"] / most)
    return Dot(part["confidence"], part["accuracy"], radius, title, low, high)


def _count_bar(part: dict[str, Any], axes: Axes) -> Bar:
    left, right = axes.across(part["low"]) + 1, axes.across(part["high"]) - 1
    top, bottom = axes.up(math.sqrt(part["count"])), axes.up(0)
    text = short(part["count"]) if part["count"] else ""
    return Bar(left, top, round(right - left, 1), round(bottom - top, 1), text, (left + right) / 2)


def histogram(counts: Sequence[int], style: str, name: str, caption: str) -> Histogram:
    """A bar for each bin of probability."""
    step = max(1.0, next_round(max(*counts, 1) / 4))
    top = step * math.ceil(max(*counts, 1) / step)
    steps = tuple(step * i for i in range(round(top / step) + 1))
    axes = Axes(height=190, y=(0, top), y_steps=steps)
    bars = []
    for place, number in enumerate(counts):
        if number:
            low, high = place / HISTOGRAM_BINS, (place + 1) / HISTOGRAM_BINS
            left, right = axes.across(low) + 0.75, axes.across(high) - 0.75
            height = round(axes.up(0) - axes.up(number), 1)
            title = f"{count(number)} {name} between {score(low)} and {score(high)}"
            bars.append(Bar(left, axes.up(number), round(right - left, 2), height, title))
    return Histogram(name, style, caption, axes, bars)


def coverage(table: Sequence[dict[str, float]], abstention: dict[str, float] | None) -> Coverage:
    """A point for each share of rows answered, by rising coverage."""
    points = sorted((row["coverage"], row["precision"], row["threshold"]) for row in table)
    axes = Axes(y=(axis_start([precision for _, precision, _ in points]), 1))
    ring = None
    if abstention is not None and abstention["precision"] >= axes.y[0]:
        title = f"abstains below {score(abstention['threshold'])}"
        ring = Dot(abstention["coverage"], abstention["precision"], 6, title)
    return Coverage(
        axes=axes,
        line=[(x, y) for x, y, _ in points],
        dots=[
            Dot(x, y, 3.5, f"coverage {score(x)}, precision {score(y)} from {score(threshold)} on")
            for x, y, threshold in points
        ],
        ring=ring,
    )


def difference_strip(
    differences: Sequence[tuple[str, Difference]], allowed: float
) -> DifferenceStrip:
    """Differences with their intervals over one axis, with zero and the drop that is allowed."""
    ends = [end for _, one in differences for end in (*one.ends, one.point)]
    reach = max(next_round(max(map(abs, [*ends, allowed]))), 0.01)
    row_height, left, width = 30, 110, 520

    def across(value: float) -> float:
        share = (value + reach) / (2 * reach)
        return round(left + share * (width - left - RIGHT), 1)

    def line(place: int, name: str, difference: Difference) -> DifferenceLine:
        low, high = difference.ends
        title = f"{name} {difference.point:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        y = row_height * place + row_height // 2 + 4
        return DifferenceLine(name, title, y, across(low), across(high), across(difference.point))

    return DifferenceStrip(
        width=width,
        height=row_height * len(differences) + 44,
        left=left,
        right=width - RIGHT,
        bottom=row_height * len(differences) + 8,
        zero=across(0),
        allowed=across(allowed),
        ticks=[
            Tick(across(value), f"{value:+g}".replace("-", "−") if value else "0")  # noqa: RUF001
            for value in (-reach, -reach / 2, 0.0, reach / 2, reach)
        ],
        lines=[line(place, *named) for place, named in enumerate(differences)],
    )


def strip(part: Slice, start: float, overall: float) -> Strip:
    """The line of a slice; what lies below `start` is drawn there."""

    def across(value: float) -> float:
        return round(4 + (STRIP_WIDTH - 8) * (max(value, start) - start) / (1 - start), 1)

    places = (across(value) for value in (part.low, part.high, part.accuracy, overall))
    return Strip(STRIP_WIDTH, *places)
