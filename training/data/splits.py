"""The validation split of a recipe without validation rows, and the rows that stay together in it.

Equal texts, near-duplicates and rows with the same value in the recipe's `group_column` are one
group, and a group is on one side. Otherwise validation would measure what was learned by heart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from service.package.manifest import Text
from training.common.errors import DataError
from training.data.findings import Finding, Rows, make_finding
from training.data.near_duplicates import similar_groups
from training.data.times import parse_times
from training.data.validation_share import validation_share
from training.recipe.arguments import DataArguments


@dataclass(frozen=True)
class Split:
    """Rows of one split: texts, or pairs of them, and the names of each row's labels.

    `groups`, integers of shape (rows,), are equal where rows may not be parted; None where they are
    not known. They do not belong to the content: splits with equal rows are equal.
    """

    texts: list[Text]
    labels: list[tuple[str, ...]]
    groups: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, other: Split) -> Split:
        """These rows and then the others, without groups."""
        return Split([*self.texts, *other.texts], [*self.labels, *other.labels])

    def take(self, indices: np.ndarray) -> Split:
        """The rows at `indices`, in that order."""
        return Split(
            [self.texts[i] for i in indices],
            [self.labels[i] for i in indices],
            None if self.groups is None else self.groups[indices],
        )


class Division(NamedTuple):
    """Training and validation rows, and the findings about the split."""

    train: Split
    validation: Split
    findings: tuple[Finding, ...]


def divide(
    split: Split, rows: Rows, kept: Sequence[int], arguments: DataArguments, seed: int
) -> Division:
    """Set validation rows aside as a recipe says: random ones, or the newest.

    Args:
        split: the usable rows, those of `rows` at the 0-based places `kept`.

    Raises:
        DataError: no row can be set aside.
    """
    share = arguments.validation_share or validation_share(len(split)).value
    whole = with_groups(split, rows, kept)
    if rows.times is None:
        train, validation = stratified_split(whole, share, seed)
    else:
        times = parse_times([rows.times[row] for row in kept], rows.where)
        train, validation = time_split(whole, times, share)
    return Division(train, validation, _unmeasured_labels(whole, validation, rows, kept))


def with_groups(split: Split, rows: Rows, kept: Sequence[int]) -> Split:
    """The usable rows `kept` of `rows`, with the groups that may not be parted.

    Args:
        split: its groups are those of its texts, where they are known.
    """
    values = None if rows.groups is None else [rows.groups[row] for row in kept]
    return replace(split, groups=find_groups(split.texts, values, split.groups))


def _unmeasured_labels(
    whole: Split, validation: Split, rows: Rows, kept: Sequence[int]
) -> tuple[Finding, ...]:
    """A finding about the labels of which no row could be set aside."""
    measured = {label for labels in validation.labels for label in labels}
    missing_rows = [
        row for row, labels in enumerate(whole.labels) if not measured.issuperset(labels)
    ]
    missing = Counter(x for row in missing_rows for x in whole.labels[row] if x not in measured)
    if not missing:
        return ()
    first, count = max(missing.items(), key=lambda item: (item[1], item[0]))
    of_first = [row for row in missing_rows if first in whole.labels[row]]
    groups = np.unique(np.asarray(whole.groups)[of_first])
    why = (
        "are one text, near-duplicates or one group of group_column, which is on one side only"
        if len(groups) == 1
        else "hang together with those of other labels, or are all among the newest"
    )
    subject = (
        f"label {first!r} has"
        if len(missing) == 1
        else f"{len(missing)} labels have, such as {first!r},"
    )
    message = (
        f"{subject} no row in the validation split that is made: its {count} rows {why}. They are "
        "trained on, and nothing says how well the label is answered"
    )
    places = [kept[row] for row in missing_rows]
    return (make_finding("unmeasured_label", "warning", "train", rows, places, message),)


def find_groups(
    texts: Sequence[Text],
    values: Sequence[str | None] | None = None,
    similar: np.ndarray | None = None,
) -> np.ndarray:
    """The group of each row, named by the group's first row; shape (rows,).

    Args:
        values: the value of `group_column` of each row; a row with None is a group of its own.
        similar: a number for each text, equal for near-duplicates; computed when None.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if similar is None:
        groups = similar_groups(texts)
    else:
        _, first_rows, numbers = np.unique(similar, return_index=True, return_inverse=True)
        groups = first_rows[numbers]
    if values is None:
        return groups
    rows = np.arange(len(texts))
    first: dict[str, int] = {}
    same = [
        row if value is None else first.setdefault(value, row) for row, value in enumerate(values)
    ]
    ends = np.concatenate([groups, np.asarray(same, dtype=int)])
    links = coo_array((np.ones(len(ends)), (np.tile(rows, 2), ends)), shape=(len(rows), len(rows)))
    _, parts = connected_components(links, directed=False)
    _, firsts, places = np.unique(parts, return_index=True, return_inverse=True)
    return np.asarray(firsts[places])


def stratified_split(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Set `share` of each label's rows aside, as nearly as groups allow.

    A label that has several groups is on both sides, and training keeps a row of every label. A
    group with several labels is counted with the rarest of them, so that rare labels are spread as
    common ones are (the first step of Sechidis et al. 2011, "On the Stratification of Multi-label
    Data").

    Returns:
        Training and validation rows, in the order they came.

    Raises:
        DataError: every label has one group only.
    """
    random = np.random.default_rng(seed)
    counts = Counter(label for labels in split.labels for label in labels)
    strata: dict[str, list[list[int]]] = {}
    for rows in _members(split):
        labels = {label for row in rows for label in split.labels[row]}
        rarest = min(labels, key=lambda label: (counts[label], label), default="")
        strata.setdefault(rarest, []).append(rows)
    aside: list[list[int]] = []
    for stratum in sorted(strata):
        groups = strata[stratum]
        aside += _filled([groups[index] for index in random.permutation(len(groups))], share)
    return _parted(split, _give_back_last_rows(split, counts, aside))


def time_split(split: Split, times: np.ndarray, share: float) -> tuple[Split, Split]:
    """Set the newest rows aside, as many as come nearest to `share` of all.

    A group is as new as its newest row, so that nothing in training is newer than the border: the
    older rows of a group that spans it are set aside with it. Rows of one time stay together. Of a
    label that only the newest rows have, the oldest group stays in training all the same.

    Args:
        times: of each row, larger is newer; shape (rows,).

    Returns:
        Training and validation rows, in the order they came.

    Raises:
        DataError: all rows have one time, or hang together.
    """
    groups = _members(split)
    newest = np.asarray([times[rows].max() for rows in groups])
    order = np.argsort(-newest, kind="stable")
    taken = np.cumsum([len(groups[index]) for index in order])
    borders = np.flatnonzero(np.diff(newest[order]))
    if not len(borders):
        raise DataError(
            "no validation rows can be set aside by time_column, all rows have one time or are one "
            "group: name a validation_file, or leave time_column out"
        )
    wanted = max(1, round(share * len(split)))
    border = borders[np.argmin(np.abs(taken[borders] - wanted))]
    counts = Counter(label for labels in split.labels for label in labels)
    # The oldest first: they are given back first.
    aside = [groups[index] for index in order[border::-1]]
    return _parted(split, _give_back_last_rows(split, counts, aside))


def _members(split: Split) -> list[list[int]]:
    """The rows of each group, in the order of their first rows."""
    groups = find_groups(split.texts) if split.groups is None else split.groups
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    return list(members.values())


def _filled(groups: list[list[int]], share: float) -> list[list[int]]:
    """The first groups with about `share` of all rows: at least one group, never all."""
    wanted = max(1, round(share * sum(map(len, groups))))
    chosen: list[list[int]] = []
    left: list[list[int]] = []
    for rows in groups:
        fits = len(rows) <= wanted and len(chosen) < len(groups) - 1
        (chosen if fits else left).append(rows)
        wanted -= len(rows) if fits else 0
    smallest = min(left, key=len)
    # A group that does not fit, where the share is nearer with it, or no group is chosen yet.
    if len(left) > 1 and (not chosen or len(smallest) < 2 * wanted):
        chosen.append(smallest)
    return chosen


def _give_back_last_rows(
    split: Split, counts: Counter[str], aside: list[list[int]]
) -> list[list[int]]:
    """`aside` without the groups that have all rows of some label."""
    left = counts.copy()
    left.subtract(label for rows in aside for row in rows for label in split.labels[row])
    kept = []
    for rows in aside:
        labels = [label for row in rows for label in split.labels[row]]
        if any(left[label] == 0 for label in labels):
            left.update(labels)
        else:
            kept.append(rows)
    return kept


def _parted(split: Split, aside: list[list[int]]) -> tuple[Split, Split]:
    if not aside:
        raise DataError(
            "no validation rows can be set aside, the rows of each label are a single text, "
            "near-duplicates or one group of group_column: add other rows, or name a "
            "validation_file"
        )
    held = np.sort(np.concatenate(aside))
    return split.take(np.setdiff1d(np.arange(len(split)), held)), split.take(held)
