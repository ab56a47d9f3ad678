"""A window of production, counted: as many rows as there may be, in the memory of a few.

Answers that were kept with different probabilities count by their inverse (Horvitz and Thompson
1952, "A generalization of sampling without replacement from a finite universe"). A sum of unequal
weights says less than as many equal ones: the effective number of rows is (sum of weights) squared
through the sum of their squares (Kish 1965, "Survey Sampling", 11.7).

Texts of one request are often alike. A request is a cluster of that sample: the weights of its rows
are summed before they are squared. This is the bound for rows that say nothing new at all, so a
request of a hundred texts counts as one row in the tests, and as a hundred in the shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from service.capture.records import MOST_GROUPS, OTHER_GROUP, CapturedAnswer
from service.package.manifest import Manifest, Profile

Counts = NDArray[np.float64]


@dataclass
class Share:
    """A weighted share: `rows` are those that have it, of `of`.

    `squares` is the sum of the squared weights of the requests.
    """

    rows: float = 0.0
    of: float = 0.0
    squares: float = 0.0

    def add(self, weight: float, value: float, before: float = 0.0) -> None:
        """Count a row with this value from 0 to 1.

        Args:
            before: the weight of the rows of the same request that were counted before.
        """
        self.rows += weight * value
        self.of += weight
        # (before + weight) squared, less the square that was counted before.
        self.squares += weight * (2 * before + weight)

    @property
    def value(self) -> float:
        """NaN of no rows."""
        return self.rows / self.of if self.of else float("nan")

    @property
    def effective(self) -> float:
        """So many requests of one row and equal weight would say as much."""
        return self.of**2 / self.squares if self.squares else 0.0


@dataclass
class Window:
    """What a window of answers looks like.

    Attributes:
        label_weights: of each label the weight of the answers that have it, of shape (labels,).
        confidence, tokens: weighted counts in the bins of the package's profile, each of shape
            (bins,).
        expected: the expected share of right answers, by the calibrated probabilities; of several
            labels the expected F1 is made of `expected_right`, `answered_set` and `expected_set`.
    """

    names: tuple[str, ...]
    confidence_edges: Counts
    token_edges: Counts
    label_weights: Counts = field(default_factory=lambda: np.zeros(0))
    confidence: Counts = field(default_factory=lambda: np.zeros(0))
    tokens: Counts = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    every: Share = field(default_factory=Share)
    truncated: Share = field(default_factory=Share)
    abstained: Share = field(default_factory=Share)
    unknown: Share = field(default_factory=Share)
    continued: Share = field(default_factory=Share)
    expected: Share = field(default_factory=Share)
    expected_right: float = 0.0
    answered_set: float = 0.0
    expected_set: float = 0.0

    def __post_init__(self) -> None:
        self.label_weights = np.zeros(len(self.names))
        self.confidence = np.zeros(max(len(self.confidence_edges) - 1, 0))
        self.tokens = np.zeros(max(len(self.token_edges) - 1, 0))
        self._places = {name: place for place, name in enumerate(self.names)}
        # The request that is being counted, and the weight of its rows so far. The rows of a
        # request are neighbors, and no other request of its id has its time.
        self._request: tuple[str, datetime] | None = None
        self._before = 0.0

    def add(self, answer: CapturedAnswer) -> None:
        """Count an answer; a label that the package does not have is not counted."""
        weight, before = 1 / answer.rate, self._before_of(answer)
        self._before += weight
        self.rows += 1
        self.every.add(weight, 1.0, before)
        own = {answer.label} if answer.labels is None else set(answer.labels)
        for name in own:
            if name in self._places:
                self.label_weights[self._places[name]] += weight
        _put(self.confidence, self.confidence_edges, answer.score, weight)
        _put(self.tokens, self.token_edges, answer.tokens, weight)
        self.truncated.add(weight, float(answer.truncated), before)
        self.unknown.add(weight, answer.unknown / max(answer.tokens, 1), before)
        if answer.continued is not None:
            self.continued.add(weight, answer.continued / max(answer.tokens, 1), before)
        if answer.abstained is not None:
            self.abstained.add(weight, float(answer.abstained), before)
        if answer.expected_right is None:
            self.expected.add(weight, answer.score, before)
        else:
            self.expected_right += weight * answer.expected_right
            self.answered_set += weight * len(own)
            self.expected_set += weight * (answer.expected_set or 0.0)

    def _before_of(self, answer: CapturedAnswer) -> float:
        """The weight of the rows of this answer's request that were counted before."""
        request = answer.id, answer.time
        if request != self._request:
            self._request, self._before = request, 0.0
        return self._before

    @property
    def labels(self) -> list[Share]:
        """Of each label the share of answers that have it."""
        of, squares = self.every.of, self.every.squares
        return [Share(weight, of, squares) for weight in self.label_weights.tolist()]

    @property
    def most_frequent(self) -> str:
        """The label that most answers have."""
        return self.names[int(self.label_weights.argmax())]

    @property
    def expected_f1(self) -> float:
        """Of several labels, micro-F1 by the calibrated probabilities; NaN of no labels."""
        together = self.answered_set + self.expected_set
        return 2 * self.expected_right / together if together else float("nan")


def window_of(manifest: Manifest, answers: Iterable[CapturedAnswer]) -> Window:
    """The answers counted, in the bins of the package's profile."""
    return windows_of(manifest, answers, by_group=False)[None]


def windows_of(
    manifest: Manifest, answers: Iterable[CapturedAnswer], *, by_group: bool = True
) -> dict[str | None, Window]:
    """The answers counted: all of them under None and, by group, those that name one.

    Each worker bounds the groups that it captures. Those of all of them are bounded here again.
    """
    groups: dict[str | None, Window] = {None: _empty(manifest)}
    for answer in answers:
        groups[None].add(answer)
        if by_group and answer.group is not None:
            name = answer.group
            if name not in groups:
                name = name if len(groups) <= MOST_GROUPS else OTHER_GROUP
                groups.setdefault(name, _empty(manifest))
            groups[name].add(answer)
    return groups


def _empty(manifest: Manifest) -> Window:
    profile: Profile = manifest.profile
    return Window(
        manifest.labels,
        np.asarray(profile.confidence_edges, dtype=np.float64),
        np.asarray(profile.token_length_edges, dtype=np.float64),
    )


def _put(counts: Counts, edges: Counts, value: float, weight: float) -> None:
    """Count a value in its bin; what lies outside in the nearest one."""
    if len(counts):
        place = int(np.searchsorted(edges, value, side="right")) - 1
        counts[min(max(place, 0), len(counts) - 1)] += weight


def scaled(counts: Counts | Sequence[float], rows: float) -> Counts:
    """Weighted counts as those of `rows` rows."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum()
    return counts * (rows / total) if total else counts
