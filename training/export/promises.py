"""The precision that a threshold keeps on new rows: what validation rows prove, and in what words.

A wanted precision is promised where the rows prove it: of packages made so, at most one in ten
answers new rows of the same kind with less (`benchmarks/promises.py` simulates it).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.package.manifest import Manifest

logger = logging.getLogger(__name__)

# The confidence of a promise of precision: one promise in ten may be broken.
CONFIDENCE = 0.9
# A second start of the tests helps where it is at least so many times further down than the first.
LATER_START = 1.3
# Labels without the wanted precision that are named in the log.
LOGGED_LABELS = 3


@dataclass(frozen=True)
class Promise:
    """What validation rows say about the precision from a threshold on.

    Attributes:
        wanted: the precision that the recipe wants.
        rows: how many rows could be answered rightly.
        promised: whether the rows prove `wanted` for new rows.
        observed: the precision on these rows.
        lower_bound: of the precision at this threshold alone, with CONFIDENCE.
        of_another_model: the rows were answered by a model that was trained without them; the one
            that ships was trained on them, and nothing is proven of it.
    """

    wanted: float
    rows: int
    promised: bool
    observed: float
    lower_bound: float
    of_another_model: bool = False

    @property
    def at_most(self) -> float:
        """The highest precision that so many rows can prove, if all of them are right."""
        return most_promised(self.rows)


def most_promised(rows: int) -> float:
    """The highest precision that so many rows can prove, if all of them are right."""
    return float((1 - CONFIDENCE) ** (1 / rows)) if rows else 0.0


def rows_for(precision: float) -> int:
    """The fewest rows, all of them right, that prove a precision below 1."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(precision)))


def promise_of(
    truth: np.ndarray, answered: np.ndarray, wanted: float, *, promised: bool = False
) -> Promise:
    """What rows say about the precision of the answered ones; both booleans of shape (rows,)."""
    hits, count = int((truth & answered).sum()), int(answered.sum())
    bound = float(_lower_bounds(np.asarray([hits]), np.asarray([count]))[0])
    return Promise(wanted, int(truth.sum()), promised, hits / count if count else 0.0, bound)


def _lower_bounds(hits: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """The precision's lower bound with CONFIDENCE, for each of several counts.

    Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26(4), one-sided.
    """
    from scipy.special import betaincinv

    wrong = answered - hits
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), wrong + 1, 1 - CONFIDENCE), 0.0)


def last_proven_cut(hits: np.ndarray, answered: np.ndarray, wanted: float) -> int | None:
    """The last cut for which the rows prove the wanted precision; None where there is no such cut.

    The best of many lower bounds is too good. Cuts are therefore tested one after another, from the
    first that could pass on, until one fails. They are tested again from the cut that answers half
    as many rows as are true, where one wrong row among the first decides less. Each of the two
    starts has half of the error allowed (fixed-sequence testing with several starts: Angelopoulos
    et al. 2021, "Learn then Test", arXiv:2110.01052, section 3; binomial tests of each cut).

    Args:
        hits, answered: of all cuts, from the highest threshold down: rightly answered rows and
            answered rows.
    """
    from scipy.special import bdtrc

    allowed = 1 - CONFIDENCE
    starts = [int(np.ceil(np.log(allowed) / np.log(wanted)))]
    first, half = int(np.ceil(np.log(allowed / 2) / np.log(wanted))), int(hits[-1]) // 2
    if half >= LATER_START * first:
        starts = [first, half]
    # The p-values that the precision is below the wanted one: so many or more are right by chance.
    p_values = np.where(hits > 0, bdtrc(hits - 1, answered, wanted), 1.0)
    failed = np.append(p_values > allowed / len(starts), True)
    last_passed = [
        place + int(np.argmax(failed[place:])) - 1
        for place in np.searchsorted(answered, starts)
        if not failed[place]
    ]
    return max(last_passed, default=None)


def safest_cut(hits: np.ndarray, answered: np.ndarray, wanted: float) -> int:
    """The cut with the best lower bound among those with the wanted precision on these rows.

    Among all cuts where none has it.
    """
    bounds = _lower_bounds(hits, answered)
    reached = hits / answered >= wanted
    return int(np.argmax(np.where(reached, bounds, -1.0) if reached.any() else bounds))


def with_promises(manifest: Manifest, evidence: dict[str, Any]) -> Manifest:
    """The manifest with evidence of the precision that it promises."""
    if not any(evidence.values()):
        return manifest
    promises = {"confidence": CONFIDENCE, **manifest.calibration.get("promises", {}), **evidence}
    return manifest.model_copy(
        update={"calibration": manifest.calibration | {"promises": promises}}
    )


def without_promises(manifest: Manifest) -> Manifest:
    """The manifest whose evidence is of another model than the one that ships."""
    promises = manifest.calibration.get("promises")
    if not promises:
        return manifest
    changed = {"promised": False, "of_another_model": True}
    evidence = dict(promises)
    if labels := promises.get("labels"):
        evidence["labels"] = {name: promise | changed for name, promise in labels.items()}
    if abstention := promises.get("abstention"):
        evidence["abstention"] = abstention | changed
    return with_promises(manifest, evidence)


def broken_promises(manifest: Manifest) -> list[str]:
    """A sentence for each wanted precision that the validation rows do not prove."""
    evidence = manifest.calibration.get("promises", {})
    promises = [(f"label {name!r}", x) for name, x in evidence.get("labels", {}).items()]
    if abstention := evidence.get("abstention"):
        promises.append(("answers", abstention))
    return [f"{what}: {_unproven(Promise(**x))}" for what, x in promises if not x["promised"]]


def _unproven(promise: Promise) -> str:
    if promise.of_another_model:
        return (
            f"a precision of {promise.wanted:g} is not promised, as the model that ships was "
            "trained on the validation rows, too: train_on_all_rows: false leaves them to prove it"
        )
    rows = f"{promise.rows} validation row{'' if promise.rows == 1 else 's'}"
    proven = f"from its threshold on they prove {floored(promise.lower_bound)}"
    if promise.at_most < promise.wanted:
        most = floored(promise.at_most)
        return f"{rows} can promise a precision of {most} at most, not {promise.wanted:g}; {proven}"
    return f"{rows} do not prove a precision of {promise.wanted:g}; {proven}"


def floored(share: float) -> str:
    """Two decimals of a bound, which rounding must not raise."""
    return f"{np.floor(share * 100) / 100:.2f}"


def warn_of_promises(manifest: Manifest) -> None:
    """Log which wanted precisions the package that ships does not promise.

    Not while thresholds are chosen, which happens for every candidate.
    """
    sentences = broken_promises(manifest)
    for sentence in sentences[:LOGGED_LABELS]:
        logger.warning("%s", sentence)
    if (others := len(sentences) - LOGGED_LABELS) > 0:
        logger.warning("and so of %d labels more, which manifest.json names", others)
