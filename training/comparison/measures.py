"""The numbers that every table of a comparison shows, in their order."""

from __future__ import annotations

from dataclasses import dataclass

from training.common.digits import FEWEST, decimals, decimals_of
from training.comparison.result import Comparison, Side
from training.evaluation.significance import Difference, Metric


@dataclass(frozen=True)
class Measure:
    """A number of both sides.

    Attributes:
        format: the format specification of both numbers.
        difference: the paired difference over the same rows, where there is one.
    """

    name: str
    before: float | None
    after: float | None
    format: str
    difference: Difference | None = None

    @property
    def change(self) -> float | None:
        """After minus before; None where one of them is missing."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


def measures_of(comparison: Comparison) -> list[Measure]:
    """Metrics, then size, then latency; without those that neither side has."""
    several = comparison.challenger.manifest.task == "multi_label"
    measures = [
        *_paired_measures(comparison, several),
        *_unpaired_measures(comparison, several),
        *_size_and_latency(comparison.champion, comparison.challenger),
    ]
    return [x for x in measures if x.before is not None or x.after is not None]


def _paired_measures(comparison: Comparison, several: bool) -> list[Measure]:
    """Metrics whose difference is known with an interval."""
    metrics: list[tuple[str, Metric]] = [
        ("micro-F1", "micro_f1") if several else ("accuracy", "accuracy"),
        ("macro-F1", "macro_f1"),
    ]
    if comparison.paired is None:
        rows = len(comparison.rows.split)
        values = comparison.challenger.metrics
        return [_share(name, None, values[key], rows) for name, key in metrics]
    differences = [(name, comparison.paired.differences[key]) for name, key in metrics]
    return [
        Measure(name, x.before, x.after, f".{decimals(x.half_width)}f", x)
        for name, x in differences
    ]


def _unpaired_measures(comparison: Comparison, several: bool) -> list[Measure]:
    paths: list[tuple[str, tuple[str, ...]]] = [
        ("ECE", ("calibration", "ece")),
        ("Brier score", ("calibration", "brier")),
        ("answered", ("abstention", "coverage")),
        ("right of those", ("abstention", "precision")),
    ]
    if several:
        paths[:0] = [("all right", ("accuracy",)), ("avg. precision", ("average_precision",))]
    rows = len(comparison.rows.split)
    return [
        _share(name, _metric(comparison.champion, path), _metric(comparison.challenger, path), rows)
        for name, path in paths
    ]


def _size_and_latency(champion: Side | None, challenger: Side) -> list[Measure]:
    size = None if champion is None else champion.model_bytes / 1e6
    measures = [Measure("model, MB", size, challenger.model_bytes / 1e6, ".1f")]
    for length, milliseconds in challenger.cpu_ms.items():
        before = None if champion is None else champion.cpu_ms[length]
        measures.append(Measure(f"ms, {length} tokens", before, milliseconds, ".2f"))
    return measures


def _share(name: str, before: float | None, after: float | None, rows: int) -> Measure:
    """A share of so many rows, with the decimals that the less certain of both carries."""
    known = [value for value in (before, after) if value is not None]
    digits = min((decimals_of(value, rows) for value in known), default=FEWEST)
    return Measure(name, before, after, f".{digits}f")


def _metric(side: Side | None, path: tuple[str, ...]) -> float | None:
    if side is None:
        return None
    value: object = side.metrics
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None
