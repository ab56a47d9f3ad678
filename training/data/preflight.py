"""What a practitioner wants to know of labeled text before training on it.

    whetstone check examples/support_tickets/recipe.yaml

`training.data.findings` finds the errors. The warnings are in `training.data.row_warnings` and
`training.data.text_warnings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from training.data import row_warnings
from training.data.findings import Errors, Finding, Rows
from training.data.near_duplicates import Groups
from training.data.sound_rows import sound_rows
from training.data.text_warnings import WholeTextTokenizer, text_warnings


@dataclass(frozen=True)
class Preflight:
    """Errors, then warnings. Lengths are in tokens, special ones counted."""

    findings: list[Finding]
    rows: dict[str, int]
    token_lengths: dict[str, np.ndarray]
    label_counts: dict[str, Counter[str]]


def preflight(
    splits: Mapping[str, Rows],
    errors: Errors,
    *,
    tokenizer: WholeTextTokenizer,
    cut_after: int | None,
    similar: Groups | None = None,
) -> Preflight:
    """Look at every row that has no error, and at the rows together.

    Args:
        splits: train, validation, test, as far as there are any.
        errors: of `find_errors`.
        tokenizer: the base model's.
        cut_after: the tokens after which a text is cut off; None where all of it is read.
        similar: groups of near-duplicates among the rows without an error; computed when None.
    """
    sound = sound_rows(splits, errors)
    counts = {
        name: Counter(label for _, _, labels in rows for label in labels)
        for name, rows in sound.items()
    }
    warnings = [
        *row_warnings.remarks(splits),
        *row_warnings.label_variants(splits),
        *row_warnings.repeated_texts(sound),
        *row_warnings.near_duplicates(sound, similar),
        *row_warnings.group_overlap(sound),
        *row_warnings.label_counts(sound["train"], counts["train"]),
    ]
    lengths = {}
    for name, rows in sound.items():
        tokens = tokenizer.count(rows.texts, name)
        lengths[name] = tokens.lengths
        warnings += text_warnings(rows, tokenizer, tokens, cut_after)
    return Preflight(
        [*errors.findings, *warnings],
        {name: len(rows) for name, rows in splits.items()},
        lengths,
        counts,
    )
