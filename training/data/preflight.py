"""What a practitioner would want to know of labelled text before training on it.

    whetstone check examples/support_tickets/recipe.yaml

`training.data.findings` finds the errors; here are the warnings.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from training.data.findings import MIN_ROWS_OF_A_LABEL, Errors, Finding, Rows, make_finding
from training.data.near_duplicates import Groups, find_near_duplicates
from training.data.shredding import count_shreds
from training.progress import progress

FEW_ROWS_OF_A_LABEL = 10
IMBALANCE = 5
UNKNOWN_SHARE = 0.01
# With the embedded base, English of every kind has at most 13 %, French 30 % and more
# (tests/test_shredding.py).
SHREDDED_SHARE = 0.2
MULTILINGUAL_BASE = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
COVERED_SHARE = 0.99
NAMED_LABELS = 3
TOKENIZED_AT_ONCE = 10_000

# Tags; entities, also those that lost their ampersand on the way; characters that do not print.
MARKUP = {
    "tags": re.compile(r"</?[A-Za-z][^<>]{0,200}>"),
    "entities": re.compile(
        r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});|(?:^|\s)(?:#\d{2,5}|quot|amp|lt|gt);"
    ),
    "control characters": re.compile(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffd]"
    ),
}

# What has no width and is no letter.
NO_WIDTH = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]")
A_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d*)?")

Sound = tuple[Rows, Sequence[int]]


@dataclass(frozen=True)
class Preflight:
    """What was found: errors, then warnings. Lengths are in tokens, special ones counted."""

    findings: list[Finding]
    rows: dict[str, int]
    token_lengths: dict[str, np.ndarray]
    label_counts: dict[str, Counter[str]]


def preflight(
    splits: Mapping[str, Rows],
    errors: Errors,
    *,
    tokenizer: Tokenizer,
    unknown_id: int | None,
    max_length: int,
    long_text: str = "truncate",
    similar: Groups | None = None,
) -> Preflight:
    """Look at every row that has no error, and at what the rows are together.

    Args:
        splits: train, validation, test, as far as there are any.
        errors: what `find_errors` says of them.
        tokenizer: the base model's; it is copied, not changed.
        unknown_id: its token for what it does not know, if it has one.
        similar: groups of near-duplicates among the rows without an error; found when None.
    """
    sound = {name: (rows, errors.kept[name]) for name, rows in splits.items()}
    counts = {
        name: Counter(label for row in kept for label in rows.labels[row])
        for name, (rows, kept) in sound.items()
    }
    warnings = [
        *_remarks(splits),
        *_label_variants(splits),
        *_repeated_texts(sound),
        *_near_duplicates(sound, similar),
        *_group_overlap(sound),
        *_label_counts(*sound["train"], counts["train"]),
    ]
    lengths = {}
    for name, (rows, kept) in sound.items():
        texts = [rows.texts[row] for row in kept]
        lengths[name], unknown = count_tokens(tokenizer, unknown_id, texts, name)
        if long_text == "truncate":
            warnings += _truncation(name, rows, kept, lengths[name], max_length)
        warnings += _unknown_tokens(name, rows, kept, lengths[name], unknown)
        warnings += _shredded_text(name, rows, kept, tokenizer)
        warnings += _markup(name, rows, kept)
        warnings += _label_in_text(name, rows, kept)
    return Preflight(
        [*errors.findings, *warnings],
        {name: len(rows) for name, rows in splits.items()},
        lengths,
        counts,
    )


def _warn(code: str, split: str, rows: Rows, found: Sequence[int], message: str) -> list[Finding]:
    """One warning about the 0-based rows `found`, or none."""
    return [make_finding(code, "warning", split, rows, found, message)] if found else []


def _remarks(splits: Mapping[str, Rows]) -> Iterator[Finding]:
    """What the reader of the files has to say of them."""
    for name, rows in splits.items():
        for remark in rows.remarks:
            yield make_finding(remark.code, "warning", name, rows, remark.rows, remark.message)


def _label_variants(splits: Mapping[str, Rows]) -> Iterator[Finding]:
    """Labels that look alike; training's commonest spelling is right."""
    spellings: dict[str, Counter[str]] = {}
    for rows in splits.values():
        counts = Counter(label for labels in rows.labels for label in labels)
        here: dict[str, Counter[str]] = {}
        for label, count in counts.items():
            here.setdefault(_folded(label), Counter())[label] += count
        for folded, found in here.items():
            # Training comes first, so its spellings stand.
            spellings.setdefault(folded, found)
    right = {folded: max(c, key=lambda x: (c[x], x)) for folded, c in spellings.items()}
    for name, rows in splits.items():
        wrong = {x for labels in rows.labels for x in labels if right[_folded(x)] != x}
        found_rows = [row for row, labels in enumerate(rows.labels) if wrong & set(labels)]
        if found_rows:
            example = next(x for x in rows.labels[found_rows[0]] if x in wrong)
            yield from _warn(
                "label_variants",
                name,
                rows,
                found_rows,
                f"label {example!r} differs from {right[_folded(example)]!r} only by case, white "
                "space, the form of a character or of a number: write such labels alike",
            )


def _folded(label: str) -> str:
    """What labels that people take for the same have in common."""
    text = NO_WIDTH.sub("", unicodedata.normalize("NFKC", label))
    number = A_NUMBER.fullmatch(text.strip())
    if number:
        return f"{float(number[0]):g}"
    return " ".join(text.split()).casefold()


def _repeated_texts(sound: Mapping[str, Sound]) -> Iterator[Finding]:
    """Duplicate rows, conflicting labels, and texts of a later split that an earlier one has."""
    earlier: dict[str, set[Any]] = {}
    for name, (rows, kept) in sound.items():
        first: dict[Any, int] = {}
        repeated: dict[Any, list[int]] = {}
        for row in kept:
            text = rows.texts[row]
            if first.setdefault(text, row) != row:
                repeated.setdefault(text, [first[text]]).append(row)
        duplicates: list[int] = []
        conflicting: list[int] = []
        for group in repeated.values():
            seen: set[frozenset[str]] = set()
            for row in group:
                labels = frozenset(rows.labels[row])
                if labels in seen:
                    duplicates.append(row)
                seen.add(labels)
            if len(seen) > 1:
                conflicting += group[1:]
        message = "the same text with the same label stands there before: it counts several times"
        yield from _warn("duplicate_rows", name, rows, sorted(duplicates), message)
        message = "the same text stands there before, and not always with the same label"
        yield from _warn("conflicting_labels", name, rows, sorted(conflicting), message)
        for other, known in earlier.items():
            overlap = [row for row in kept if rows.texts[row] in known]
            message = f"the text stands in {other}, too: results on {name} flatter"
            yield from _warn("split_overlap", name, rows, overlap, message)
        earlier[name] = set(first)


def _near_duplicates(sound: Mapping[str, Sound], similar: Groups | None) -> Iterator[Finding]:
    texts = {name: (kept, rows.texts) for name, (rows, kept) in sound.items()}
    found = find_near_duplicates(texts, similar)
    for name, near in found.items():
        rows, kept = sound[name]
        message = "the text is, numbers apart, nearly that of an earlier row"
        if name != "train":
            message = (
                f"{len(near) / len(kept):.1%} of the texts are, numbers apart, nearly that of a "
                "row of an earlier split: results on them flatter"
            )
        yield from _warn("near_duplicates", name, rows, near, message)


def _group_overlap(sound: Mapping[str, Sound]) -> Iterator[Finding]:
    """Rows of a later split whose `group_column` has a value that training has, too."""
    train, kept_in_train = sound["train"]
    if train.groups is None:
        return
    known = {train.groups[row] for row in kept_in_train} - {None}
    for name, (rows, kept) in sound.items():
        if name == "train" or rows.groups is None:
            continue
        found = [row for row in kept if rows.groups[row] in known]
        message = "its group stands in train, too: results on it flatter"
        yield from _warn("group_overlap", name, rows, found, message)


def _label_counts(rows: Rows, kept: Sequence[int], counts: Counter[str]) -> Iterator[Finding]:
    """Labels with few rows, and labels with few rows beside others."""

    def rows_with(labels: set[str]) -> list[int]:
        return [row for row in kept if not labels.isdisjoint(rows.labels[row])]

    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    rare = [item for item in ranked if MIN_ROWS_OF_A_LABEL <= item[1] < FEW_ROWS_OF_A_LABEL]
    if rare:
        named = ", ".join(f"{label!r} {count}" for label, count in rare[:NAMED_LABELS])
        more = f" and {len(rare) - NAMED_LABELS} more" if len(rare) > NAMED_LABELS else ""
        message = f"labels with fewer than {FEW_ROWS_OF_A_LABEL} rows: {named}{more}: find more"
        yield from _warn("rare_labels", "train", rows, rows_with({x for x, _ in rare}), message)
    if ranked and ranked[-1][1] > IMBALANCE * ranked[0][1]:
        (least, fewest), (most, many) = ranked[0], ranked[-1]
        message = (
            f"{most!r} has {many} rows, {least!r} {fewest}: where the rare labels matter, try "
            "`class_weights: balanced`"
        )
        few = {label for label, count in ranked if count * IMBALANCE < many}
        yield from _warn("imbalance", "train", rows, rows_with(few), message)


def count_tokens(
    tokenizer: Tokenizer, unknown_id: int | None, texts: Sequence[Any], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text or pair, special ones counted, and how many of them are unknown."""
    own = _reading_all(tokenizer)
    lengths = np.zeros(len(texts), dtype=np.int32)
    unknown = np.zeros(len(texts), dtype=np.int32)
    with progress(len(texts), f"tokenize {name}", "row", leave=False) as bar:
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            chunk = [_as_text(text) for text in texts[start : start + TOKENIZED_AT_ONCE]]
            for row, encoding in enumerate(own.encode_batch_fast(chunk), start=start):
                ids = encoding.ids
                lengths[row] = len(ids)
                unknown[row] = 0 if unknown_id is None else ids.count(unknown_id)
            bar.update(len(chunk))
    return lengths, unknown


def _reading_all(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts off nor pads."""
    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    return own


def _as_text(text: Any) -> str | tuple[str, str]:
    return (str(text[0]), str(text[1])) if isinstance(text, tuple) else str(text)


def _truncation(
    name: str, rows: Rows, kept: Sequence[int], lengths: np.ndarray, max_length: int
) -> list[Finding]:
    cut = [kept[index] for index in np.flatnonzero(lengths > max_length)]
    if not cut:
        return []
    covering = int(np.quantile(lengths, COVERED_SHARE, method="higher"))
    message = (
        f"{len(cut) / len(lengths):.1%} of the texts are longer than max_length {max_length} and "
        f"would be cut off: {covering} tokens cover {COVERED_SHARE:.0%} of them, and "
        "`long_text: window` reads all"
    )
    return _warn("truncation", name, rows, cut, message)


def _unknown_tokens(
    name: str, rows: Rows, kept: Sequence[int], lengths: np.ndarray, unknown: np.ndarray
) -> list[Finding]:
    share = unknown.sum() / max(1, lengths.sum())
    if share < UNKNOWN_SHARE:
        return []
    found = [kept[index] for index in np.flatnonzero(unknown)]
    message = (
        f"{share:.1%} of all tokens are unknown to the base model: choose one made for this "
        "language and these characters"
    )
    return _warn("unknown_tokens", name, rows, found, message)


def _shredded_text(
    name: str, rows: Rows, kept: Sequence[int], tokenizer: Tokenizer
) -> list[Finding]:
    texts = [_as_text(rows.texts[row]) for row in kept]
    found = count_shreds(_reading_all(tokenizer), texts)
    if found.share < SHREDDED_SHARE:
        return []
    cut = found.continuations >= SHREDDED_SHARE * np.maximum(1, found.tokens)
    sample = "" if len(found.places) == len(texts) else f" of {len(found.places)} rows looked at"
    message = (
        f"{found.share:.1%} of all tokens{sample} continue a word that the base model does not "
        "know as a whole: it was made for other languages or texts. Choose a base made for this "
        f"one, or a multilingual one, such as `{MULTILINGUAL_BASE}`"
    )
    return _warn("shredded_text", name, rows, [kept[place] for place in found.places[cut]], message)


def _markup(name: str, rows: Rows, kept: Sequence[int]) -> list[Finding]:
    found: dict[str, list[int]] = {}
    for row in kept:
        text = rows.texts[row]
        whole = "\n".join(map(str, text)) if isinstance(text, tuple) else str(text)
        for kind, pattern in MARKUP.items():
            if pattern.search(whole):
                found.setdefault(kind, []).append(row)
    kinds = ", ".join(f"{kind} in {len(places)}" for kind, places in found.items())
    message = (
        f"mark-up or characters that do not print ({kinds}): clean it if requests will not have it"
    )
    return _warn("markup", name, rows, sorted(set().union(*found.values())), message)


def _label_in_text(name: str, rows: Rows, kept: Sequence[int]) -> list[Finding]:
    """Rows whose text holds the name of their own label, as words of their own."""
    finders: dict[str, Callable[[str], Any]] = {}
    found = []
    for row in kept:
        text = rows.texts[row]
        whole = "\n".join(map(str, text)) if isinstance(text, tuple) else str(text)
        for label in rows.labels[row]:
            if label not in finders:
                words = re.split(r"[\W_]+", label.strip())
                pattern = r"[\W_]+".join(re.escape(word) for word in words if word)
                finders[label] = re.compile(
                    rf"(?<!\w){pattern}(?!\w)" if pattern else r"(?!)", re.IGNORECASE
                ).search
            if finders[label](whole):
                found.append(row)
                break
    message = "the name of the label stands in the text: is that so where the model will be asked?"
    return _warn("label_in_text", name, rows, found, message)
