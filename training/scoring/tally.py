"""What scoring has done so far: rows, reasons of those without an answer, and what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

# Reasons that are counted one by one: some hold a part of the row that they are about.
MOST_REASONS = 20
OTHER_REASONS = "other reasons"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Tally:
    """Counts of some parts; `+` adds those of others.

    Attributes:
        pieces: of the input, read to their end.
        refused: the rows without an answer, by reason.
        cpu_seconds: of the workers' processes, from their start on.
    """

    pieces: int = 0
    parts: int = 0
    rows: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.pieces + other.pieces,
            self.parts + other.parts,
            self.rows + other.rows,
            _few(
                {
                    key: self.refused.get(key, 0) + other.refused.get(key, 0)
                    for key in (*self.refused, *other.refused)
                }
            ),
            self.cpu_seconds + other.cpu_seconds,
        )

    @property
    def failures(self) -> int:
        """How many rows have no answer."""
        return sum(self.refused.values())

    @property
    def core_hours(self) -> float:
        """The CPU time of the workers."""
        return self.cpu_seconds / SECONDS_PER_HOUR

    def to_json(self) -> str:
        """All counts."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Tally:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def count_reasons(problems: Iterable[str | None]) -> dict[str, int]:
    """How many rows have no answer, by reason."""
    return _few(dict(Counter(problem for problem in problems if problem is not None)))


def _few(counts: dict[str, int]) -> dict[str, int]:
    """The first reasons by themselves and all others together: a bounded number."""
    kept = {key: count for key, count in counts.items() if key != OTHER_REASONS}
    first = dict(list(kept.items())[:MOST_REASONS])
    rest = sum(counts.values()) - sum(first.values())
    return {**first, **({OTHER_REASONS: rest} if rest else {})}
