"""The gates: whether an exported candidate may ship in place of the checkpoint it came from.

    verdict = judge(truth, reference, candidate, labels, Gates())

The reference is the torch checkpoint on the validation rows, finished as a package is (calibrated,
thresholds chosen); the candidate is a package's own answers to them.

Where each rule comes from. All of them compare the same rows, so what is hard in a row cancels.

- *Drift*, the mean change of a probability: hardly noisy, so the plain bound decides.
- *Macro-F1 significantly lower*: the upper end of the 95 % paired bootstrap interval below zero.
  An equally good candidate is refused by this alone in about 2.5 % of cases.
- *A label significantly worse*: exact McNemar, one-sided, Holm-corrected at 5 % over the labels of
  which enough rows changed to tell (Tarone's rule).
  A fixed bound on every label's F1 refused equally good int8 models in 13 % of cases at 1,000 rows,
  since the worst of many noisy labels always looks bad.
- *Agreement and the drop of macro-F1*, point bounds: they catch what is large, and count only where
  there are rows enough to tell.
- *Rows enough*: half the paired interval at most 0.02. Otherwise nothing is refused by the point
  bounds and nothing ships by them either: the verdict is `inconclusive`.

How often each verdict falls is simulated by `benchmarks/gates.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import yaml

from service.decisions import FloatArray
from service.model_package import Behaviour, Task
from training.errors import RecipeError
from training.significance import (
    Difference,
    label_changes,
    label_f1,
    paired_difference,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Bounds = TypeVar("Bounds", bound=DataclassInstance)

SIGNIFICANCE = 0.05

Outcome = Literal["passed", "refused", "inconclusive"]
# What refused, or could not tell: a word for each of the rules above, and for equality of logits
# and independence of neighbours, which `training.candidates` sees to.
Rule = Literal[
    "drift", "significance", "label", "agreement", "drop", "rows", "logits", "neighbours"
]


@dataclass(frozen=True)
class Gates:
    """The bounds, each a key of the recipe's `gates:`."""

    min_agreement: float = 0.98
    max_drift: float = 0.02
    max_macro_f1_drop: float = 0.01
    max_half_width: float = 0.02


@dataclass(frozen=True)
class Answers:
    """What is compared: `probs` and `answered` (boolean), both of shape (rows, labels)."""

    probs: FloatArray
    answered: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What was found, and what follows from it; a sentence for each rule that spoke up."""

    outcome: Outcome
    by_rule: dict[Rule, str]
    agreement: float
    mean_drift: float
    largest_drift: float
    difference: Difference

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences alone."""
        return tuple(self.by_rule.values())


def parse_gates(value: str | None) -> Gates:
    """The recipe's key `gates` as bounds; what it does not name keeps its default.

    Raises:
        RecipeError: it is not a mapping of bounds to numbers from 0 to 1.
    """
    return parse_bounds("gates", value, Gates())


def parse_bounds(key: str, value: object, defaults: Bounds) -> Bounds:
    """A recipe's mapping of bounds; what it does not name stays as in `defaults`, a dataclass.

    Raises:
        RecipeError: it is not a mapping of these bounds to numbers from 0 to 1.
    """
    if value is None:
        return defaults
    known = [bound.name for bound in dataclasses.fields(defaults)]
    try:
        given = yaml.safe_load(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        given = None
    if not isinstance(given, dict):
        raise RecipeError(f"{key} is {value!r}: give a mapping such as {{{known[0]}: 0.01}}")
    bounds = {}
    for name, bound in given.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{key} has no bound {name!r}: did you mean {nearest!r}?")
        bounds[name] = parse_bound(key, name, bound)
    return dataclasses.replace(defaults, **bounds)


def parse_bound(key: str, name: str, value: object) -> float:
    """One bound, a number from 0 to 1.

    Raises:
        RecipeError: it is not.
    """
    try:
        # YAML reads 1e-2 as text; float() reads true as 1.
        bound = float("" if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RecipeError(f"{key}: {name} is {value!r}, which is no number") from None
    if not 0 <= bound <= 1:
        raise RecipeError(f"{key}: {name} is {value!r}: it lies between 0 and 1")
    if name == "max_half_width" and bound == 0:
        raise RecipeError(f"{key}: {name} is 0, which no number of rows reaches")
    return bound


def judge(
    truth: np.ndarray, reference: Answers, candidate: Answers, behaviour: Behaviour, gates: Gates
) -> Verdict:
    """Compare a candidate with the reference on the same rows.

    Args:
        truth: booleans of shape (rows, labels).
        behaviour: whose labels are the columns, and whose task says what drift is.
    """
    difference = paired_difference(truth, reference.answered, candidate.answered, "macro_f1")
    agreement = float((reference.answered == candidate.answered).all(axis=1).mean())
    drift = probability_drift(reference.probs, candidate.probs, behaviour.task)
    enough = difference.half_width <= gates.max_half_width
    reasons: dict[Rule, str] = {}
    # `not <=` also refuses NaN.
    if not drift.mean() <= gates.max_drift:
        reasons["drift"] = (
            f"probabilities drift by {drift.mean():.4f} on average, more than {gates.max_drift:g}"
        )
    if difference.high < 0:
        reasons["significance"] = significance_reason(difference)
    if worse := label_reason(truth, reference.answered, candidate.answered, behaviour.labels):
        reasons["label"] = worse
    if enough and agreement < gates.min_agreement:
        reasons["agreement"] = (
            f"{agreement:.2%} of the answers agree, fewer than {gates.min_agreement:g}"
        )
    if enough and -difference.point > gates.max_macro_f1_drop:
        reasons["drop"] = drop_reason(difference, gates.max_macro_f1_drop)
    outcome: Outcome = "refused" if reasons else "passed" if enough else "inconclusive"
    if outcome == "inconclusive":
        needed = difference.rows_needed(gates.max_half_width)
        reasons["rows"] = (
            f"{len(truth)} validation rows cannot tell: the macro-F1 difference is known to "
            f"±{difference.half_width:.3f}, {gates.max_half_width:g} is needed, about {needed} rows"
        )
    return Verdict(
        outcome,
        reasons,
        agreement,
        float(drift.mean()),
        float(drift.max()),
        difference,
    )


def probability_drift(before: FloatArray, after: FloatArray, task: Task) -> np.ndarray:
    """How far each row's probabilities moved, shape (rows,).

    Half the L1 distance of two distributions (total variation); of independent probabilities the
    mean change.
    """
    differences = np.abs(before - after)
    single = task == "single_label"
    return np.asarray(differences.sum(axis=1) / 2 if single else differences.mean(axis=1))


def significance_reason(difference: Difference) -> str:
    """Why a difference of macro-F1 that is surely below zero refuses."""
    return (
        f"macro-F1 is significantly lower: {difference.point:+.4f}, 95 % interval "
        f"{difference.low:+.4f} to {difference.high:+.4f}"
    )


def drop_reason(difference: Difference, bound: float) -> str:
    """Why a difference of macro-F1 below the bound refuses."""
    return f"macro-F1 drops by {-difference.point:.4f}, more than {bound:g}"


def label_reason(
    truth: np.ndarray, before: np.ndarray, after: np.ndarray, labels: Sequence[str]
) -> str | None:
    """A sentence for the labels that became significantly worse; None where none did."""
    p_values = label_changes(truth, before, after, SIGNIFICANCE)
    worse = [int(index) for index in np.flatnonzero(p_values < SIGNIFICANCE)]
    if not worse:
        return None
    first = min(worse, key=lambda index: p_values[index])
    old, new = (
        "none" if np.isnan(f1 := label_f1(truth, given)[first]) else f"{f1:.3f}"
        for given in (before, after)
    )
    others = f" (and {len(worse) - 1} more)" if len(worse) > 1 else ""
    return (
        f"label {labels[first]!r}{others} is significantly worse: F1 {old} to {new}, "
        f"p = {p_values[first]:.2g}"
    )


def evidence(verdict: Verdict) -> dict[str, Any]:
    """The verdict for the manifest."""
    return {
        "verdict": verdict.outcome,
        "reasons": list(verdict.reasons),
        "label_agreement": verdict.agreement,
        "mean_probability_drift": verdict.mean_drift,
        "largest_probability_drift": verdict.largest_drift,
        "macro_f1_difference": {
            "point": verdict.difference.point,
            "low": verdict.difference.ends[0],
            "high": verdict.difference.ends[1],
        },
    }
