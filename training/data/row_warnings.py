"""Warnings about labels, and about rows that repeat or resemble others."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from training.data.findings import MIN_ROWS_OF_A_LABEL, Finding, Rows, make_finding
from training.data.near_duplicates import Groups, find_near_duplicates
from training.data.sound_rows import SoundRows, warn

FEW_ROWS_OF_A_LABEL = 10
# The most frequent label has so many times the rows of the rarest one.
IMBALANCE = 5
NAMED_LABELS = 3
# Characters without a width that are no letters.
NO_WIDTH = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]")
A_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d*)?")


def remarks(splits: Mapping[str, Rows]) -> Iterator[Finding]:
    """The remarks of the reader of the files."""
    for name, rows in splits.items():
        for remark in rows.remarks:
            yield make_finding(remark.code, "warning", name, rows, remark.rows, remark.message)


def label_variants(splits: Mapping[str, Rows]) -> Iterator[Finding]:
    """Labels that look alike; the most frequent spelling in training is right."""
    spellings: dict[str, Counter[str]] = {}
    for rows in splits.values():
        counts = Counter(label for labels in rows.labels for label in labels)
        of_split: dict[str, Counter[str]] = {}
        for label, count in counts.items():
            of_split.setdefault(_folded(label), Counter())[label] += count
        for folded, variants in of_split.items():
            # Training comes first: its spellings stand.
            spellings.setdefault(folded, variants)
    right = {folded: max(c, key=lambda x: (c[x], x)) for folded, c in spellings.items()}
    for name, rows in splits.items():
        wrong = {x for labels in rows.labels for x in labels if right[_folded(x)] != x}
        places = [row for row, labels in enumerate(rows.labels) if wrong & set(labels)]
        if places:
            example = next(x for x in rows.labels[places[0]] if x in wrong)
            message = (
                f"label {example!r} differs from {right[_folded(example)]!r} only by case, white "
                "space, the form of a character or of a number: write such labels alike"
            )
            yield from warn("label_variants", name, rows, places, message)


def _folded(label: str) -> str:
    """The form that labels share which people take for the same."""
    text = NO_WIDTH.sub("", unicodedata.normalize("NFKC", label))
    number = A_NUMBER.fullmatch(text.strip())
    if number:
        return f"{float(number[0]):g}"
    return " ".join(text.split()).casefold()


def repeated_texts(splits: Mapping[str, SoundRows]) -> Iterator[Finding]:
    """Duplicate rows, conflicting labels, and texts of a later split that an earlier one has."""
    earlier: dict[str, set[Any]] = {}
    for name, sound in splits.items():
        repeated = _repetitions(sound)
        yield from _duplicates(sound, repeated)
        yield from _conflicts(sound, repeated)
        for other, known in earlier.items():
            places = [row for row, text, _ in sound if text in known]
            message = f"the text stands in {other}, too: results on {name} flatter"
            yield from sound.warn("split_overlap", places, message)
        earlier[name] = set(sound.texts)


def _repetitions(sound: SoundRows) -> list[list[int]]:
    """The places of each text that stands in several rows."""
    places: dict[Any, list[int]] = {}
    for row, text, _ in sound:
        places.setdefault(text, []).append(row)
    return [rows for rows in places.values() if len(rows) > 1]


def _duplicates(sound: SoundRows, repeated: list[list[int]]) -> list[Finding]:
    duplicates: list[int] = []
    for group in repeated:
        seen: set[frozenset[str]] = set()
        for row in group:
            labels = frozenset(sound.rows.labels[row])
            if labels in seen:
                duplicates.append(row)
            seen.add(labels)
    message = "the same text with the same label stands there before: it counts several times"
    return sound.warn("duplicate_rows", sorted(duplicates), message)


def _conflicts(sound: SoundRows, repeated: list[list[int]]) -> list[Finding]:
    conflicting: list[int] = []
    for group in repeated:
        if len({frozenset(sound.rows.labels[row]) for row in group}) > 1:
            conflicting += group[1:]
    message = "the same text stands there before, and not always with the same label"
    return sound.warn("conflicting_labels", sorted(conflicting), message)


def near_duplicates(splits: Mapping[str, SoundRows], similar: Groups | None) -> Iterator[Finding]:
    """Texts that are nearly that of an earlier row."""
    texts = {name: (sound.kept, sound.rows.texts) for name, sound in splits.items()}
    for name, places in find_near_duplicates(texts, similar).items():
        sound = splits[name]
        message = "the text is, numbers apart, nearly that of an earlier row"
        if name != "train":
            message = (
                f"{len(places) / len(sound):.1%} of the texts are, numbers apart, nearly that of a "
                "row of an earlier split: results on them flatter"
            )
        yield from sound.warn("near_duplicates", places, message)


def group_overlap(splits: Mapping[str, SoundRows]) -> Iterator[Finding]:
    """Rows of a later split whose `group_column` has a value that training has, too."""
    train = splits["train"]
    if train.rows.groups is None:
        return
    known = {train.rows.groups[row] for row in train.kept} - {None}
    for name, sound in splits.items():
        groups = sound.rows.groups
        if name == "train" or groups is None:
            continue
        places = [row for row in sound.kept if groups[row] in known]
        message = "its group stands in train, too: results on it flatter"
        yield from sound.warn("group_overlap", places, message)


def label_counts(train: SoundRows, counts: Counter[str]) -> Iterator[Finding]:
    """Labels with few rows, and labels with few rows beside others."""

    def rows_with(labels: set[str]) -> list[int]:
        return [row for row, _, own in train if not labels.isdisjoint(own)]

    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    rare = [item for item in ranked if MIN_ROWS_OF_A_LABEL <= item[1] < FEW_ROWS_OF_A_LABEL]
    if rare:
        named = ", ".join(f"{label!r} {count}" for label, count in rare[:NAMED_LABELS])
        more = f" and {len(rare) - NAMED_LABELS} more" if len(rare) > NAMED_LABELS else ""
        message = f"labels with fewer than {FEW_ROWS_OF_A_LABEL} rows: {named}{more}: find more"
        yield from train.warn("rare_labels", rows_with({label for label, _ in rare}), message)
    if ranked and ranked[-1][1] > IMBALANCE * ranked[0][1]:
        (least, fewest), (most, many) = ranked[0], ranked[-1]
        message = (
            f"{most!r} has {many} rows, {least!r} {fewest}: where the rare labels matter, try "
            "`class_weights: balanced`"
        )
        few = {label for label, count in ranked if count * IMBALANCE < many}
        yield from train.warn("imbalance", rows_with(few), message)
