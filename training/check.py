"""Look at the data before any training: what `whetstone check` does, and `train` first of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.base_checks import refuse_misfit
from training.base_models import resolve_base_model
from training.config import Recipe, recipe_seed
from training.data.dataset import read_rows, usable_data
from training.data.encoding import usable_reading
from training.data.findings import Errors, Finding, Rows, find_errors, make_finding
from training.data.near_duplicates import Groups
from training.data.preflight import Preflight, preflight
from training.data.preflight_report import draw_data, print_findings, write_findings
from training.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check(recipe: Recipe, *, strict: bool, json_file: Path | None, plot_file: Path | None) -> bool:
    """Show what is wrong with a recipe's data; whether it can be trained on.

    Args:
        strict: warnings count as errors.
        json_file: where the findings go as JSON.
        plot_file: where the histograms go as PNG.

    Raises:
        WhetstoneError: a file or column cannot be read, or the tokenizer cannot be had.
    """
    rows = read_rows(recipe.data)
    errors = find_errors(rows)
    of_split, similar = _try_split(recipe, rows, errors)
    base = resolve_base_model(recipe.model)
    tokenizer, config = base.tokenizer(), base.config()
    found = look_at(recipe, rows, errors, tokenizer, of_split, similar)
    if strict:
        strictly = [dataclasses.replace(finding, severity="error") for finding in found.findings]
        found = dataclasses.replace(found, findings=strictly)
    print_findings(found)
    if json_file is not None:
        write_findings(found, json_file)
    if plot_file is not None:
        draw_data(found, plot_file, recipe.model.max_length)
    # After what there is to be said of the data.
    refuse_misfit(recipe, tokenizer, config)
    usable_reading(recipe, tokenizer, config)
    if errors.rows and recipe.data.drop_invalid:
        print(f"rows that cannot be used and will be dropped: {errors.rows}")
    if strict and found.findings:
        return False
    cannot_split = any(finding.severity == "error" for finding in of_split)
    return not cannot_split and not errors.fatal(recipe.data.drop_invalid)


def _try_split(
    recipe: Recipe, rows: Mapping[str, Rows], errors: Errors
) -> tuple[Sequence[Finding], Groups | None]:
    """What is to be said of the validation split that training would make, and what it found."""
    if errors.fatal(recipe.data.drop_invalid):
        return (), None
    try:
        data = usable_data(rows, errors, recipe.data, recipe_seed(recipe))
    except DataError as error:
        found = make_finding("no_validation", "error", "train", rows["train"], [], str(error))
        return (found,), None
    return data.findings, data.similar


def look_at(
    recipe: Recipe,
    rows: Mapping[str, Rows],
    errors: Errors,
    tokenizer: PreTrainedTokenizerFast,
    of_split: Sequence[Finding] = (),
    similar: Groups | None = None,
) -> Preflight:
    """Everything that is wrong with rows, as the base model's tokenizer reads them.

    Args:
        of_split: what was found when validation rows were set aside.
        similar: groups of near-duplicates, where they are known.
    """
    found = preflight(
        rows,
        errors,
        tokenizer=tokenizer.backend_tokenizer,
        unknown_id=tokenizer.unk_token_id,
        max_length=recipe.model.max_length,
        long_text=recipe.model.long_text,
        similar=similar,
    )
    return dataclasses.replace(found, findings=[*found.findings, *of_split])
