"""The rows of a split that have no error, as the warnings of a preflight look at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.findings import Errors, Finding, Rows, make_finding


@dataclass(frozen=True)
class SoundRows:
    """The rows at the 0-based places `kept` of a split; `name` is train, validation or test."""

    name: str
    rows: Rows
    kept: Sequence[int]

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[tuple[int, Any, tuple[str, ...]]]:
        """The 0-based place, the text or pair, and the labels of each row."""
        return ((row, self.rows.texts[row], self.rows.labels[row]) for row in self.kept)

    @property
    def texts(self) -> list[Any]:
        """The text or pair of each row."""
        return [self.rows.texts[row] for row in self.kept]

    def places(self, indices: Iterable[int]) -> list[int]:
        """The places, among all rows of the split, of the rows at `indices` of these."""
        return [self.kept[index] for index in indices]

    def warn(self, code: str, places: Sequence[int], message: str) -> list[Finding]:
        """One warning about the rows at these places; none where there are no such rows."""
        return warn(code, self.name, self.rows, places, message)


def warn(code: str, split: str, rows: Rows, places: Sequence[int], message: str) -> list[Finding]:
    """One warning about the rows of a split at these 0-based places; none where there are none."""
    return [make_finding(code, "warning", split, rows, places, message)] if places else []


def sound_rows(splits: Mapping[str, Rows], errors: Errors) -> dict[str, SoundRows]:
    """The rows of each split that have no error."""
    return {name: SoundRows(name, rows, errors.kept[name]) for name, rows in splits.items()}
