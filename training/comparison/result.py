"""The result of a comparison, with all numbers that its table, its files and its page show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.inference.classifier import Prediction
from service.package.manifest import Manifest
from training.comparison.contenders import ComparedRows
from training.comparison.paired import Paired
from training.comparison.promotion import Outcome, Rule
from training.data.leakage import Leakage
from training.recipe.bounds import PromotionBounds


@dataclass(frozen=True)
class Side:
    """One of the two packages, measured on the rows compared.

    Attributes:
        name: the package as the user named it.
        cpu_ms: the CPU time of one text alone, in milliseconds, by its tokens.
        leakage: the rows that are among the package's own texts; None where it cannot tell.
    """

    name: str
    manifest: Manifest
    answers: list[Prediction]
    metrics: dict[str, Any]
    model_bytes: int
    cpu_ms: dict[str, float]
    leakage: Leakage | None


@dataclass(frozen=True)
class FloorMetrics:
    """What the floors are asked of: all rows whose labels the challenger knows."""

    rows: int
    macro_f1: float
    ece: float


@dataclass(frozen=True)
class Measurement:
    """Both sides on the same rows; `champion` and `paired` are None before a first release."""

    champion: Side | None
    challenger: Side
    paired: Paired | None
    floors: FloorMetrics

    @property
    def is_same_package(self) -> bool:
        """Whether both have the same version, and so the same answers to any row."""
        version = self.challenger.manifest.version
        return self.champion is not None and self.champion.manifest.version == version


@dataclass(frozen=True)
class Comparison:
    """The verdict, its reasons by rule, and what was measured."""

    outcome: Outcome
    reasons: dict[Rule, str]
    warnings: list[str]
    bounds: PromotionBounds
    rows: ComparedRows
    measurement: Measurement
    removed_labels: list[str]
    added_labels: list[str]
    allow_label_change: bool

    @property
    def champion(self) -> Side | None:
        """The champion's side."""
        return self.measurement.champion

    @property
    def challenger(self) -> Side:
        """The challenger's side."""
        return self.measurement.challenger

    @property
    def paired(self) -> Paired | None:
        """What changed on the same rows."""
        return self.measurement.paired

    @property
    def sentence(self) -> str:
        """The verdict and why."""
        if self.reasons:
            return f"{self.outcome}: {'; '.join(self.reasons.values())}"
        if self.paired is None:
            return f"{self.outcome}: there is no champion, and no floor is missed"
        if self.measurement.is_same_package:
            return f"{self.outcome}: both are version {self.challenger.manifest.version}"
        difference = self.paired.differences["macro_f1"]
        low, high = difference.ends
        return (
            f"{self.outcome}: macro-F1 {difference.point:+.4f} (95 % interval {low:+.4f} to "
            f"{high:+.4f}), and no rule speaks against it"
        )
