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

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.inference.decisions import FloatArray
from service.package.manifest import InferenceConfig, Task
from training.evaluation.reasons import drop_reason, label_reason, significance_reason
from training.evaluation.significance import Difference, paired_difference
from training.recipe.bounds import Gates

Outcome = Literal["passed", "refused", "inconclusive"]
# A word for each of the rules above, and for two that `training.export.candidates` checks: equal
# logits, and answers that do not depend on the other texts of a batch.
Rule = Literal["drift", "significance", "label", "agreement", "drop", "rows", "logits", "batch"]


@dataclass(frozen=True)
class Answers:
    """Answers to the same rows: `probs` and `answered` (boolean), both of shape (rows, labels)."""

    probs: FloatArray
    answered: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """The outcome, with a sentence for each rule that speaks against the candidate."""

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


def judge(
    truth: np.ndarray,
    reference: Answers,
    candidate: Answers,
    config: InferenceConfig,
    gates: Gates,
) -> Verdict:
    """Compare a candidate with the reference on the same rows.

    Args:
        truth: booleans of shape (rows, labels).
        config: its labels name the columns, and its task decides how drift is measured.
    """
    difference = paired_difference(truth, reference.answered, candidate.answered, "macro_f1")
    agreement = float((reference.answered == candidate.answered).all(axis=1).mean())
    drift = probability_drift(reference.probs, candidate.probs, config.task)
    enough = difference.half_width <= gates.max_half_width
    reasons: dict[Rule, str] = {}
    # `not <=` also refuses NaN.
    if not drift.mean() <= gates.max_drift:
        reasons["drift"] = (
            f"probabilities drift by {drift.mean():.4f} on average, more than {gates.max_drift:g}"
        )
    if difference.high < 0:
        reasons["significance"] = significance_reason(difference)
    if worse := label_reason(truth, reference.answered, candidate.answered, config.labels):
        reasons["label"] = worse
    if enough:
        reasons |= _large_losses(agreement, difference, gates)
    outcome: Outcome = "refused" if reasons else "passed" if enough else "inconclusive"
    if outcome == "inconclusive":
        reasons["rows"] = _too_few_rows(difference, gates.max_half_width)
    return Verdict(
        outcome=outcome,
        by_rule=reasons,
        agreement=agreement,
        mean_drift=float(drift.mean()),
        largest_drift=float(drift.max()),
        difference=difference,
    )


def _large_losses(agreement: float, difference: Difference, gates: Gates) -> dict[Rule, str]:
    """The point bounds, which count only where there are rows enough."""
    reasons: dict[Rule, str] = {}
    if agreement < gates.min_agreement:
        reasons["agreement"] = (
            f"{agreement:.2%} of the answers agree, fewer than {gates.min_agreement:g}"
        )
    if -difference.point > gates.max_macro_f1_drop:
        reasons["drop"] = drop_reason(difference, gates.max_macro_f1_drop)
    return reasons


def _too_few_rows(difference: Difference, half_width: float) -> str:
    needed = difference.rows_needed(half_width)
    return (
        f"{difference.rows} validation rows cannot tell: the macro-F1 difference is known to "
        f"±{difference.half_width:.3f}, {half_width:g} is needed, about {needed} rows"
    )


def probability_drift(before: FloatArray, after: FloatArray, task: Task) -> np.ndarray:
    """How far each row's probabilities moved, shape (rows,).

    Half the L1 distance of two distributions (total variation); of independent probabilities the
    mean change.
    """
    differences = np.abs(before - after)
    single = task == "single_label"
    return np.asarray(differences.sum(axis=1) / 2 if single else differences.mean(axis=1))


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
