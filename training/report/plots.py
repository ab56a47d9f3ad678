"""The report's plots as inline SVG; colours and fonts are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.report.page import Html, count, element, join, plural, score, span
from training.report.rows import HISTOGRAM_BINS, Slice, wilson
from training.significance import Difference

Points = Sequence[tuple[float, float]]
# Around the drawing: for the ticks and the names of the axes.
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 38
# Where an axis of shares may begin when nothing lies below.
AXIS_STARTS = (0.95, 0.9, 0.8, 0.6, 0.5, 0.0)
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
STRIP = 168


@dataclass(frozen=True)
class Axes:
    """A drawing of a width and height in units of the SVG, and what its edges stand for."""

    width: float = 420
    height: float = 300
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    bottom: float = BOTTOM

    def across(self, value: float) -> float:
        """Where a value of x lies."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def up(self, value: float) -> float:
        """Where a value of y lies."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - self.bottom - share * (self.height - TOP - self.bottom), 1)

    def path(self, points: Points, **attributes: object) -> Html:
        """A line through points."""
        steps = " ".join(f"{self.across(x):g},{self.up(y):g}" for x, y in points)
        return element("polyline", points=steps, **attributes)

    def dot(self, x: float, y: float, radius: float, title: str, **attributes: object) -> Html:
        """A point with its tooltip."""
        return element(
            "circle",
            element("title", title),
            cx=self.across(x),
            cy=self.up(y),
            r=f"{radius:.1f}",
            **attributes,
        )

    def frame(self, x_name: str, y_name: str, y_ticks: Sequence[float] = ()) -> Html:
        """Grid, ticks and the names of both axes."""
        bottom, left = self.up(self.y[0]), self.across(self.x[0])
        right, top = self.across(self.x[1]), self.up(self.y[1])
        parts = []
        for tick in y_ticks or ticks(*self.y):
            y = self.up(tick)
            parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(element("text", short(tick), x=left - 6, y=y + 4, class_="end"))
        for tick in ticks(*self.x):
            x = self.across(tick)
            parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick"))
            parts.append(element("text", short(tick), x=x, y=bottom + 17, class_="middle"))
        parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        middle, height = (left + right) / 2, (bottom + top) / 2
        parts.append(element("text", x_name, x=middle, y=bottom + 33, class_="middle name"))
        turned = f"rotate(-90 11 {height:g})"
        parts.append(
            element("text", y_name, x=11, y=height, class_="middle name", transform=turned)
        )
        return join(parts)

    def drawing(self, label: str, *parts: object) -> Html:
        """The SVG; `label` says in words what it shows."""
        return element(
            "svg",
            *parts,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            aria_label=label,
        )


def figure(drawing: Html, caption: str) -> Html:
    """A drawing and what it shows."""
    return element("figure", drawing, element("figcaption", caption))


def ticks(low: float, high: float) -> list[float]:
    """About five round values from low to high, which are shares or counts."""
    reach = high - low
    if high > 1:
        step = max(1.0, nice(reach / 4))
    else:
        step = next(step for step in TICK_STEPS if reach / step <= 5.01)
    return [round(low + step * i, 6) for i in range(int(reach / step + 1e-9) + 1)]


def nice(value: float) -> float:
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


def reliability(bins: Sequence[dict[str, Any]], name: str, things: str) -> Html:
    """Observed share by mean probability, dots as wide as their bins are full, and the counts."""
    axes = Axes()
    most = max(part["count"] for part in bins)
    diagonal = axes.path([(0, 0), (1, 1)], class_="ideal")
    dots = []
    for part in bins:
        if not part["count"]:
            continue
        low, high = wilson(round(part["accuracy"] * part["count"]), part["count"])
        place = axes.across(part["confidence"])
        ends = {"x1": place, "x2": place, "y1": axes.up(low), "y2": axes.up(high)}
        title = (
            f"{plural(part['count'], things)} between {score(part['low'])} and "
            f"{score(part['high'])}: mean probability {score(part['confidence'])}, "
            f"observed {score(part['accuracy'])} (95 % interval {span(low, high)})"
        )
        radius = 2.5 + 5 * math.sqrt(part["count"] / most)
        dots.append(element("line", **ends, class_="whisker"))
        dots.append(axes.dot(part["confidence"], part["accuracy"], radius, title, class_="dot"))
    frame = axes.frame(name, "observed share")
    upper = axes.drawing(f"Reliability: observed share by {name}", frame, diagonal, *dots)
    return figure(
        join([upper, _counts(bins, most, things)]),
        f"Above: a dot below the diagonal means too sure, one above it too unsure; lines are 95 % "
        f"intervals. Below: how many {things}s each bin holds; heights grow with the square root.",
    )


def _counts(bins: Sequence[dict[str, Any]], most: int, things: str) -> Html:
    axes = Axes(height=84, y=(0, math.sqrt(most) * 1.25), bottom=4)
    bars = []
    for part in bins:
        left, right = axes.across(part["low"]) + 1, axes.across(part["high"]) - 1
        top, bottom = axes.up(math.sqrt(part["count"])), axes.up(0)
        rectangle = {"x": left, "y": top, "width": round(right - left, 1)}
        bars.append(element("rect", **rectangle, height=round(bottom - top, 1), class_="quiet"))
        if part["count"]:
            middle, text = (left + right) / 2, short(part["count"])
            bars.append(element("text", text, x=middle, y=top - 4, class_="middle tiny"))
    bottom = axes.up(0)
    ends = {"x1": axes.across(0), "x2": axes.across(1), "y1": bottom, "y2": bottom}
    line = element("line", **ends, class_="axis")
    return axes.drawing(f"{things}s in each bin", *bars, line)


def histogram(counts: Sequence[int], class_: str, name: str) -> Html:
    """Answers by probability, in one colour."""
    most = max(*counts, 1)
    step = max(1.0, nice(most / 4))
    top = step * math.ceil(most / step)
    axes = Axes(height=190, y=(0, top))
    bars = []
    for place, number in enumerate(counts):
        if not number:
            continue
        low, high = place / HISTOGRAM_BINS, (place + 1) / HISTOGRAM_BINS
        left, right = axes.across(low) + 0.75, axes.across(high) - 0.75
        title = element("title", f"{count(number)} {name} between {score(low)} and {score(high)}")
        rectangle = {"x": left, "y": axes.up(number), "width": round(right - left, 2)}
        height = round(axes.up(0) - axes.up(number), 1)
        bars.append(element("rect", title, **rectangle, height=height, class_=class_))
    y_ticks = [step * i for i in range(round(top / step) + 1)]
    frame = axes.frame("probability of the answer", name, y_ticks)
    return axes.drawing(f"Histogram of {name}", frame, *bars)


def coverage(table: Sequence[dict[str, float]], abstention: dict[str, float] | None) -> Html:
    """Precision by the share of rows answered, and where the package abstains."""
    points = sorted((row["coverage"], row["precision"], row["threshold"]) for row in table)
    axes = Axes(y=(axis_start([precision for _, precision, _ in points]), 1))
    dots = [
        axes.dot(x, y, 3.5, f"coverage {score(x)}, precision {score(y)} from {score(t)} on")
        for x, y, t in points
    ]
    line = axes.path([(x, y) for x, y, _ in points], class_="line")
    if abstention is not None and abstention["precision"] >= axes.y[0]:
        title = f"abstains below {score(abstention['threshold'])}"
        at = (abstention["coverage"], abstention["precision"])
        dots.append(axes.dot(*at, 6, title, class_="chosen"))
    frame = axes.frame("coverage: share of rows answered", "precision")
    return axes.drawing("Precision by coverage", frame, line, element("g", *dots, class_="dots"))


def difference_strip(differences: Sequence[tuple[str, Difference]], allowed: float) -> Html:
    """Differences with their intervals over one axis, zero and the drop that is allowed."""
    ends = [end for _, one in differences for end in (*one.ends, one.point)]
    reach = max(nice(max(map(abs, [*ends, allowed]))), 0.01)
    row, left = 30, 110
    axes = Axes(width=520, height=row * len(differences) + 44, x=(-reach, reach))

    def across(value: float) -> float:
        share = (value + reach) / (2 * reach)
        return round(left + share * (axes.width - left - RIGHT), 1)

    bottom = row * len(differences) + 8
    zero, bound = across(0), across(allowed)
    parts = [
        element("line", x1=zero, x2=zero, y1=0, y2=bottom, class_="axis"),
        element("line", x1=bound, x2=bound, y1=0, y2=bottom, class_="ideal"),
        element("line", x1=left, x2=axes.width - RIGHT, y1=bottom, y2=bottom, class_="axis"),
    ]
    for tick in (-reach, -reach / 2, 0.0, reach / 2, reach):
        x = across(tick)
        name = f"{tick:+g}".replace("-", "−") if tick else "0"  # noqa: RUF001
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick"))
        parts.append(element("text", name, x=x, y=bottom + 17, class_="middle"))
    for place, (name, one) in enumerate(differences):
        y = row * place + row // 2 + 4
        low, high = one.ends
        title = f"{name} {one.point:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        whisker = {"x1": across(low), "x2": across(high), "y1": y, "y2": y}
        parts.append(element("text", name, x=left - 10, y=y + 4, class_="end name"))
        parts.append(element("line", **whisker, class_="whisker"))
        dot = element("circle", element("title", title), cx=across(one.point), cy=y, r=5)
        parts.append(element("g", dot, class_="dots"))
    return axes.drawing("Differences with their intervals", *parts)


def strip(part: Slice, start: float, overall: float) -> Html:
    """A slice's accuracy with its interval, on a line that all slices share."""

    def across(value: float) -> float:
        return round(4 + (STRIP - 8) * (max(value, start) - start) / (1 - start), 1)

    low, high, middle = across(part.low), across(part.high), across(part.accuracy)
    whole = across(overall)
    return element(
        "svg",
        element("line", x1=4, x2=STRIP - 4, y1=9, y2=9, class_="grid"),
        element("line", x1=whole, x2=whole, y1=0, y2=18, class_="ideal"),
        element("line", x1=low, x2=high, y1=9, y2=9, class_="whisker"),
        element("circle", cx=middle, cy=9, r=4, class_="dot"),
        viewBox=f"0 0 {STRIP} 18",
        class_="strip",
        aria_hidden="true",
    )
