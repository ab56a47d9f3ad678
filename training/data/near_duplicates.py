"""Texts that are nearly the same: MinHash with locality-sensitive hashing, by `rensa`.

Broder 1997, "On the resemblance and containment of documents". Two texts that share a band of
their signatures are compared by the true Jaccard similarity of their shingles; near-duplicates of
near-duplicates are one group. Numbers do not count: a text with another ticket number is equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from training.common.progress import progress

SIMILARITY = 0.8
# Signatures of 64 numbers in 16 bands of 4: a pair of similarity 0.8 shares a band with
# probability 1 - (1 - 0.8 ** 4) ** 16 = 0.9998, one of 0.4 with 0.34.
PERMUTATIONS = 64
BANDS = 16
# Three standard deviations of a signature's estimate below SIMILARITY: such pairs are compared.
WORTH_COMPARING = SIMILARITY - 3 * (SIMILARITY * (1 - SIMILARITY) / PERMUTATIONS) ** 0.5
# Characters of a shingle, and characters of a text that are compared.
SHINGLE = 5
LOOKED_AT = 2_000
# Bounds on the time for many similar rows: a row is compared with the next few rows that share a
# band, and with no others after this many that are not similar enough.
NEIGHBORS = 3
MOST_CANDIDATES = 20
# Without numbers a shorter text says too little: `error 404` is not `error 500`.
LETTERS_WITHOUT_NUMBERS = 16
ROWS_AT_ONCE = 10_000
NOT_A_WORD = re.compile(r"\W+")
DIGIT = re.compile(r"\d")
# A word with a digit: a number, an identifier.
NUMBER = re.compile(r"(?<![a-z])[a-z]*\d[0-9a-z]*")
# Odd constants that spread the bits of a hash (Steele et al. 2014, "Fast splittable pseudorandom
# number generators").
SPREAD = np.uint64(0x9E3779B97F4A7C15)
MIX = np.uint64(0xBF58476D1CE4E5B9)

# For each split, the number of each row's group, of shape (rows,).
Groups = dict[str, np.ndarray]


def groups_of_splits(texts: Mapping[str, Sequence[Any]], seed: int = 0) -> Groups:
    """The groups of the texts of several splits together: equal numbers are one group."""
    groups = similar_groups([text for part in texts.values() for text in part], seed)
    ends = np.cumsum([len(part) for part in texts.values()])
    return dict(zip(texts, np.split(groups, ends[:-1]), strict=True))


def find_near_duplicates(
    splits: Mapping[str, tuple[Sequence[int], Sequence[Any]]], known: Groups | None = None
) -> dict[str, list[int]]:
    """Rows whose text is nearly, but not exactly, that of an earlier row.

    Args:
        splits: of each split the 0-based rows to look at, and the texts of all of its rows. In
            the first (train) a row may resemble an earlier one of its own; in a later split only
            one of the splits before it.
        known: the result of `groups_of_splits` for these rows; computed when None.
    """
    if known is None:
        known = groups_of_splits({n: [t[row] for row in rows] for n, (rows, t) in splits.items()})
    near: dict[str, list[int]] = {}
    known_groups: set[int] = set()
    exact: set[Any] = set()
    for position, (name, (rows, all_texts)) in enumerate(splits.items()):
        near[name] = []
        new_groups, new_texts = set(known_groups), set(exact)
        # The first split is compared with its own earlier rows, a later one with earlier splits.
        groups_before = new_groups if position == 0 else known_groups
        texts_before = new_texts if position == 0 else exact
        for row, group in zip(rows, known[name].tolist(), strict=True):
            # Exactly equal texts are counted elsewhere.
            if group in groups_before and all_texts[row] not in texts_before:
                near[name].append(row)
            new_groups.add(group)
            new_texts.add(all_texts[row])
        known_groups, exact = new_groups, new_texts
    return near


def similar_groups(texts: Sequence[Any], seed: int = 0) -> np.ndarray:
    """The group of each row, named by its first row: equal texts and near-duplicates.

    Args:
        texts: strings, or pairs of them.

    Returns:
        Integers of shape (rows,).
    """
    first: dict[Any, int] = {}
    leaders = np.asarray([first.setdefault(text, row) for row, text in enumerate(texts)], dtype=int)
    different = list(first.values())
    signatures, filled = _signatures([texts[row] for row in different], seed)
    groups = np.arange(len(texts))
    places = np.asarray(different, dtype=int)
    groups[places] = places[_linked([texts[row] for row in different], signatures, filled)]
    return np.asarray(groups[leaders])


def normalized(text: Any) -> str:
    """Words in lower case, one blank between them; a pair is its two texts, one after another.

    Every number and every word with a digit is `0`, unless few letters would be left.
    """
    whole = " ".join(map(str, text)) if isinstance(text, tuple) else str(text)
    words = NOT_A_WORD.sub(" ", whole[:LOOKED_AT].casefold()).strip()
    if DIGIT.search(words) is None:
        return words
    without = NUMBER.sub("0", words)
    letters = len(without) - without.count("0") - without.count(" ")
    return without if letters >= LETTERS_WITHOUT_NUMBERS else words


def shingles(text: str) -> frozenset[str]:
    """Every run of SHINGLE characters; a shorter text is one of its own."""
    padded = text.ljust(SHINGLE, "\0")
    return frozenset(padded[start : start + SHINGLE] for start in range(len(padded) - SHINGLE + 1))


def _signatures(texts: Sequence[Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures, of shape (rows, PERMUTATIONS), and which rows have any word at all."""
    import rensa

    signatures = np.zeros((len(texts), PERMUTATIONS), dtype=np.uint32)
    filled = np.zeros(len(texts), dtype=bool)
    with progress(len(texts), "near-duplicates", "row", leave=False) as bar:
        for start in range(0, len(texts), ROWS_AT_ONCE):
            words = [normalized(text) for text in texts[start : start + ROWS_AT_ONCE]]
            stop = start + len(words)
            filled[start:stop] = [bool(text) for text in words]
            hashes, offsets = _hashed_shingles(words)
            matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
                hashes, offsets, PERMUTATIONS, seed
            )
            signatures[start:stop] = matrix.to_rows()
            bar.update(len(words))
    return signatures, filled


def _hashed_shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashed shingles of all texts, one text after another, and where each text begins."""
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    whole = "".join(padded).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(whole, dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(letters) - SHINGLE + 1, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = hashes * SPREAD + letters[place : place + len(hashes)]
    ends = np.cumsum([len(text) for text in padded])
    inside = np.ones(len(hashes), dtype=bool)
    # Shingles that begin at a text's last letters would reach into the next text.
    for place in range(1, SHINGLE):
        inside[ends[:-1] - place] = False
    hashes = (hashes[inside] ^ (hashes[inside] >> np.uint64(30))) * MIX
    offsets = np.append(0, ends - (SHINGLE - 1) * np.arange(1, len(ends) + 1)).astype(np.uint64)
    return hashes ^ (hashes >> np.uint64(31)), offsets


def _linked(texts: Sequence[Any], signatures: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The first row of each row's group; a row without a word is a group of its own."""
    parents = np.arange(len(texts))
    refused = np.zeros(len(texts), dtype=np.int16)
    words = np.flatnonzero(filled)
    # Equal signatures need no comparison: of texts of similarity 0.8 one pair in a million has one.
    _, firsts, places = np.unique(_keys(signatures[words]), return_index=True, return_inverse=True)
    rows = words[firsts]
    parents[words] = rows[places]

    @lru_cache(maxsize=4096)
    def pieces(row: int) -> frozenset[str]:
        return shingles(normalized(texts[row]))

    with progress(BANDS, "near-duplicates", "band", leave=False) as bar:
        for band in np.split(signatures[rows], BANDS, axis=1):
            keys = _keys(band)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            for distance in range(1, NEIGHBORS + 1):
                places = np.flatnonzero(keys[distance:] == keys[:-distance])
                pairs = np.stack([rows[order[places]], rows[order[places + distance]]])
                for first, second in _worth_comparing(pairs, parents, refused, signatures):
                    first_root, second_root = _root(parents, first), _root(parents, second)
                    if first_root == second_root:
                        continue
                    if _similar(pieces(first), pieces(second)):
                        parents[max(first_root, second_root)] = min(first_root, second_root)
                    else:
                        refused[[first, second]] += 1
            bar.update()
    return _roots(parents)


def _keys(columns: np.ndarray) -> np.ndarray:
    """One number for each row of a matrix of numbers."""
    keys = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        keys = keys * SPREAD + column
    return keys


def _worth_comparing(
    pairs: np.ndarray, parents: np.ndarray, refused: np.ndarray, signatures: np.ndarray
) -> list[list[int]]:
    """The pairs, of shape (2, pairs), that may be similar and are not in one group yet."""
    parents[:] = _roots(parents)
    pairs = pairs[:, parents[pairs[0]] != parents[pairs[1]]]
    pairs = pairs[:, (refused[pairs] < MOST_CANDIDATES).all(axis=0)]
    likely = [
        (signatures[part[0]] == signatures[part[1]]).mean(axis=1) >= WORTH_COMPARING
        for start in range(0, pairs.shape[1], ROWS_AT_ONCE)
        for part in [pairs[:, start : start + ROWS_AT_ONCE]]
    ]
    chosen: list[list[int]] = pairs[:, np.concatenate(likely)].T.tolist() if likely else []
    return chosen


def _similar(first: frozenset[str], second: frozenset[str]) -> bool:
    common = len(first & second)
    return common >= SIMILARITY * (len(first) + len(second) - common)


def _root(parents: np.ndarray, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row


def _roots(parents: np.ndarray) -> np.ndarray:
    """The root of every row."""
    while True:
        higher: np.ndarray = parents[parents]
        if np.array_equal(higher, parents):
            return higher
        parents = higher
