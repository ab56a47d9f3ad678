"""A recipe's rows → the findings about them, with the tokenizer of its base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training.data.findings import Errors, Finding, Rows
from training.data.near_duplicates import Groups
from training.data.preflight import Preflight, preflight
from training.data.text_warnings import WholeTextTokenizer
from training.recipe.arguments import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def look_at(
    recipe: Recipe,
    rows: Mapping[str, Rows],
    errors: Errors,
    tokenizer: PreTrainedTokenizerFast,
    of_split: Sequence[Finding] = (),
    similar: Groups | None = None,
) -> Preflight:
    """Every finding about the rows of a recipe.

    Args:
        of_split: the findings about the validation split that was made.
        similar: groups of near-duplicates, where they are known.
    """
    model = recipe.model
    report = preflight(
        rows,
        errors,
        tokenizer=WholeTextTokenizer.of(tokenizer.backend_tokenizer, tokenizer.unk_token_id),
        cut_after=model.max_length if model.long_text == "truncate" else None,
        similar=similar,
    )
    return dataclasses.replace(report, findings=[*report.findings, *of_split])
