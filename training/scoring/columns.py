"""The columns that scoring adds to each row: their names, their types and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.inference.classifier import Prediction
from service.package.manifest import Manifest
from training.common.errors import DataError
from training.recipe.arguments import DataArguments
from training.scoring.tables import Row

LABEL, SCORE, LABELS, ABSTAINED, ERROR = "label", "score", "labels", "abstained", "error"
SCORE_PREFIX = "score_"
# Put before an added column whose name the input already has.
CLASH_PREFIX = "predicted_"


@dataclass(frozen=True)
class ScoringColumns:
    """The columns that scoring reads and adds.

    Attributes:
        text: the column of the text, or of the texts of a pair.
        added: the name of each added column, by its key.
        separator: joins several labels; None where a cell can be a list.
    """

    text: list[str]
    added: dict[str, str]
    separator: str | None = None


def text_columns(manifest: Manifest, arguments: DataArguments) -> list[str]:
    """The column of the text, or of the texts of a pair."""
    second = [arguments.text_pair_column or "text_pair"] if manifest.has_pairs else []
    return [arguments.text_column, *second]


def added_columns(columns: Sequence[str], manifest: Manifest, all_scores: bool) -> dict[str, str]:
    """The name of each added column, by its key; no name is one of `columns`.

    Raises:
        DataError: the input has both a column and its `predicted_` form.
    """
    keys = [LABEL, SCORE]
    keys += [LABELS] if manifest.task == "multi_label" else []
    keys += [ABSTAINED] if manifest.abstain_threshold is not None else []
    keys += [ERROR]
    keys += [f"{SCORE_PREFIX}{label}" for label in manifest.labels] if all_scores else []
    names = {key: f"{CLASH_PREFIX}{key}" if key in columns else key for key in keys}
    taken = [name for name in names.values() if name in columns]
    if taken:
        raise DataError(f"the input already has a column {taken[0]!r}: rename it first")
    return names


def values_of(answer: Prediction, labels: Sequence[str], separator: str | None) -> Row:
    """An answer by the keys of `added_columns`.

    Args:
        labels: of the package, in its order.
        separator: joins several labels where a cell cannot be a list.
    """
    several: Any = list(answer.labels or ())
    if separator is not None:
        several = separator.join(several)
    scores = zip(labels, answer.probs.tolist(), strict=True)
    return {
        LABEL: answer.label,
        SCORE: answer.score,
        LABELS: several,
        ABSTAINED: answer.abstained,
        ERROR: None,
    } | {f"{SCORE_PREFIX}{label}": score for label, score in scores}


def arrow_type(key: str) -> Any:
    """The Arrow type of an added column."""
    import pyarrow

    types = {
        LABEL: pyarrow.string(),
        ERROR: pyarrow.string(),
        LABELS: pyarrow.list_(pyarrow.string()),
        ABSTAINED: pyarrow.bool_(),
    }
    return types.get(key, pyarrow.float64())
