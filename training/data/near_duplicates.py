"""Texts that are nearly the same: MinHash with locality-sensitive hashing, by `rensa`.

Broder 1997, "On the resemblance and containment of documents"; candidates that share a band of
their signatures are compared by the true Jaccard similarity of their shingles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.progress import progress

SAMPLED_ROWS = 200_000
SIMILARITY = 0.8
# Signatures of 64 numbers in 16 bands of 4: a pair of similarity 0.8 shares a band with
# probability 1 - (1 - 0.8 ** 4) ** 16 = 0.9998, one of 0.4 with 0.34.
PERMUTATIONS = 64
BANDS = 16
# Characters of a shingle, and of a text that are looked at.
SHINGLE = 5
LOOKED_AT = 2_000
# So that a heap of look-alikes that are not alike enough costs bounded time.
MOST_CANDIDATES = 20
NOT_A_WORD = re.compile(r"\W+")


@dataclass(frozen=True)
class NearDuplicates:
    """`rows` of each split that are nearly an earlier row; `looked_at` of how many rows `of`."""

    rows: dict[str, list[int]]
    looked_at: int
    of: int


def find_near_duplicates(
    splits: dict[str, tuple[Sequence[int], Sequence[Any]]], seed: int = 0
) -> NearDuplicates:
    """Rows whose text is nearly, but not exactly, that of an earlier row.

    Args:
        splits: of each split the 0-based rows to look at, and the texts of all of its rows. In
            the first (train) a row may resemble an earlier one of its own; in a later split only
            one of the splits before it.
    """
    import rensa

    chosen = _sample({name: rows for name, (rows, _) in splits.items()}, seed)
    total = sum(len(rows) for rows in chosen.values())
    index = rensa.RMinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, num_bands=BANDS)
    kept: list[str] = []
    exact: set[Any] = set()
    found: dict[str, list[int]] = {}
    with progress(total, "near-duplicates", "row", leave=False) as bar:
        for position, (name, rows) in enumerate(chosen.items()):
            found[name] = []
            new: list[tuple[str, Any]] = []
            for row in rows:
                bar.update()
                raw = splits[name][1][row]
                text = normalised(raw)
                # What is equal to the letter is counted elsewhere.
                if raw in exact or len(text) < SHINGLE:
                    continue
                exact.add(raw)
                signature = rensa.RMinHash(num_perm=PERMUTATIONS, seed=seed)
                signature.update(list(shingles(text)))
                if _resembles(text, index.query(signature), kept):
                    # Not kept: what is like it is like the earlier one, too, or nearly so. A heap
                    # of look-alikes stays one entry.
                    found[name].append(row)
                elif position == 0:
                    index.insert(len(kept), signature)
                    kept.append(text)
                else:
                    new.append((text, signature))
            for text, signature in new:
                index.insert(len(kept), signature)
                kept.append(text)
    of = sum(len(rows) for rows, _ in splits.values())
    return NearDuplicates(found, total, of)


def normalised(text: Any) -> str:
    """Words in lower case, one blank between them; a pair is its two texts, one after another."""
    whole = " ".join(map(str, text)) if isinstance(text, tuple) else str(text)
    return NOT_A_WORD.sub(" ", whole[:LOOKED_AT].casefold()).strip()


def shingles(text: str) -> set[str]:
    """Every run of SHINGLE characters."""
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


def _resembles(text: str, candidates: Sequence[int], kept: list[str]) -> bool:
    mine: set[str] | None = None
    for candidate in sorted(candidates)[:MOST_CANDIDATES]:
        other = kept[candidate]
        # Texts whose lengths differ so much are not that similar.
        if not SIMILARITY * 0.8 <= len(other) / len(text) <= 1.25 / SIMILARITY:
            continue
        mine = mine or shingles(text)
        theirs = shingles(other)
        if len(mine & theirs) >= SIMILARITY * len(mine | theirs):
            return True
    return False


def _sample(splits: dict[str, Sequence[int]], seed: int) -> dict[str, Sequence[int]]:
    """At most SAMPLED_ROWS rows: the smaller splits whole before the largest gets what is left."""
    random = np.random.default_rng(seed)
    left = SAMPLED_ROWS
    chosen: dict[str, Sequence[int]] = {}
    for name, rows in sorted(splits.items(), key=lambda item: len(item[1])):
        if len(rows) > left:
            picked = random.choice(len(rows), size=left, replace=False)
            chosen[name] = [rows[index] for index in np.sort(picked)]
        else:
            chosen[name] = rows
        left -= len(chosen[name])
    return {name: chosen[name] for name in splits}
