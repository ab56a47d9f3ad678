"""Which graph ships: the candidates that the recipe allows are measured, and one is chosen.

On a CPU: int8, or where the gates refuse it one of its fallbacks; then the fp32 graph as exported.
On a GPU: fp16, then fp32. The fp32 graph with fused operators is measured only where the recipe
asks for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from training.common.errors import ExportError
from training.evaluation.latency import cpu_milliseconds
from training.export.candidates import Candidate, CandidateEvaluation
from training.export.variants import FALLBACKS, VARIANTS, Family

logger = logging.getLogger(__name__)

# The best verdict first.
OUTCOMES = ("passed", "inconclusive", "refused")


@dataclass(frozen=True)
class Choice:
    """The candidate that ships, whether the gates were overruled, and why in a sentence."""

    candidate: Candidate
    forced: bool
    reason: str


def choose(evaluation: CandidateEvaluation) -> tuple[Candidate, dict[str, Any]]:
    """Measure the candidates that the recipe allows, and choose one.

    Returns:
        The candidate that ships, and the evidence for the manifest's `selection`.

    Raises:
        ExportError: the fp32 graph does not answer as the checkpoint does, or the precision that
            the recipe asks for cannot be made.
    """
    wanted = _wanted_family(evaluation)
    _measure_fp32(evaluation)
    _measure_others(evaluation, wanted or _automatic_family(evaluation))
    if wanted is not None and not _of_family(evaluation, wanted):
        reason = evaluation.unavailable[VARIANTS[wanted].name]
        raise ExportError(f"precision {wanted} cannot be had: {reason}")
    _measure_latency(evaluation)
    choice = _automatic_choice(evaluation) if wanted is None else _forced_choice(evaluation, wanted)
    return choice.candidate, _selection(evaluation, choice)


def _wanted_family(evaluation: CandidateEvaluation) -> Family | None:
    """The family that the recipe names; None where the gates decide."""
    precision = evaluation.arguments.precision
    if precision == "auto":
        return None
    # The old name of `optimized` is accepted for a version.
    return "optimized" if precision == "optimised" else precision


def _automatic_family(evaluation: CandidateEvaluation) -> Family:
    return "fp16" if evaluation.arguments.target_device == "gpu" else "int8"


def _measure_fp32(evaluation: CandidateEvaluation) -> None:
    """Measure the graph as exported.

    Raises:
        ExportError: it does not answer as the checkpoint does.
    """
    fp32 = evaluation.measure(VARIANTS["fp32"])
    if fp32 is None or not fp32.passed:
        unavailable = evaluation.unavailable.get(VARIANTS["fp32"].name)
        reason = "; ".join(fp32.verdict.reasons) if fp32 else unavailable
        raise ExportError(f"the fp32 graph does not answer as the checkpoint does: {reason}")


def _measure_others(evaluation: CandidateEvaluation, family: Family) -> None:
    """Measure the first variant of a family, then its fallbacks until one passes."""
    if family == "fp32":
        return
    first = evaluation.measure(VARIANTS[family])
    if first is not None and first.verdict.outcome != "refused":
        return
    for fallback in FALLBACKS.get(family, ()):
        candidate = evaluation.measure(fallback)
        if candidate is not None and candidate.passed:
            return


def _of_family(evaluation: CandidateEvaluation, family: Family) -> list[Candidate]:
    return [x for x in evaluation.candidates.values() if x.variant.family == family]


def _measure_latency(evaluation: CandidateEvaluation) -> None:
    """Add to each candidate's evidence what one text costs."""
    candidates = evaluation.candidates
    latency = cpu_milliseconds({name: x.classifier for name, x in candidates.items()})
    for name, milliseconds in latency.items():
        candidates[name].evidence["cpu_ms_per_text"] = milliseconds


def _forced_choice(evaluation: CandidateEvaluation, family: Family) -> Choice:
    """The candidate with the best verdict of the family that the recipe asks for."""
    candidates = _of_family(evaluation, family)
    chosen = min(candidates, key=lambda x: OUTCOMES.index(x.verdict.outcome))
    name = chosen.variant.name
    if chosen.passed:
        return Choice(chosen, False, f"{name}, which was asked for and passes")
    reasons = "; ".join(chosen.verdict.reasons)
    logger.warning("%s ships because it was asked for, against the gates: %s", family, reasons)
    return Choice(chosen, True, f"{name}, which was asked for, against the gates: {reasons}")


def _automatic_choice(evaluation: CandidateEvaluation) -> Choice:
    """The first candidate in reduced precision that passes the gates; else the fp32 graph.

    Latency does not decide: the same recipe should give the same package, and on a busy machine
    two equal graphs were seen 6 % apart.
    """
    reduced = [x for x in evaluation.candidates.values() if x.variant.precision != "fp32"]
    chosen = next((x for x in reduced if x.passed), None)
    if chosen is None:
        fp32 = VARIANTS["fp32"].name
        reason = f"{fp32}, since {_why_not_reduced(evaluation, reduced)}"
        return Choice(evaluation.candidates[fp32], False, reason)
    first = VARIANTS[chosen.variant.family]
    reason = f"{chosen.variant.name}, which passes the gates"
    if chosen.variant is not first:
        outcome = "not available" if first.name in evaluation.unavailable else "refused"
        reason += f", after {first.name} was {outcome}"
    return Choice(chosen, False, reason)


def _why_not_reduced(evaluation: CandidateEvaluation, reduced: list[Candidate]) -> str:
    """Why no graph in reduced precision ships, and what the user can do about it."""
    reasons = [f"{x.variant.name} is {x.verdict.outcome}" for x in reduced]
    reasons += [f"{name} is not available" for name in evaluation.unavailable]
    undecided = any(x.verdict.outcome == "inconclusive" for x in reduced)
    hint = " (more validation rows would decide; `precision` overrules it)" if undecided else ""
    return f"{' and '.join(reasons)}{hint}"


def _selection(evaluation: CandidateEvaluation, choice: Choice) -> dict[str, Any]:
    """The evidence for the manifest."""
    unavailable = [
        {"name": name, "verdict": "unavailable", "reasons": [reason]}
        for name, reason in evaluation.unavailable.items()
    ]
    return {
        "rows": len(choice.candidate.answers),
        # Also for graphs of a GPU: they give the same numbers, with another latency.
        "measured_on": "cpu",
        "gates": vars(evaluation.gates),
        "chosen": choice.candidate.variant.name,
        "forced": choice.forced,
        "reason": choice.reason,
        "candidates": [x.evidence for x in evaluation.candidates.values()] + unavailable,
    }
