"""Which precision a threshold keeps on new rows: what validation rows prove, and in what words.

A wanted precision is promised where the rows prove it: of packages made so, at most one in ten
answers new rows of the same kind with less (`benchmarks/promises.py` simulates it).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.model_package import Manifest

logger = logging.getLogger(__name__)

# How sure a promise of precision is: one in ten may be broken.
CONFIDENCE = 0.9
# A second start of the tests is of use where it is so many times further down than the first.
LATER_START = 1.3
# Sentences about labels of which the wanted precision is not promised, on screen.
SAID = 3


@dataclass(frozen=True)
class Promise:
    """What validation rows say of the precision from a threshold on.

    Attributes:
        wanted: the precision that the recipe wants.
        rows: how many rows could be answered rightly.
        promised: whether the rows prove `wanted` for new rows.
        observed: the precision on these rows.
        lower_bound: at this threshold alone, what precision is above with CONFIDENCE.
    """

    wanted: float
    rows: int
    promised: bool
    observed: float
    lower_bound: float

    @property
    def at_most(self) -> float:
        """The highest precision that so many rows could prove, were all of them right."""
        return most_promised(self.rows)


def most_promised(rows: int) -> float:
    """The precision that so many rows prove if all are right: lower ones are likely too."""
    return float((1 - CONFIDENCE) ** (1 / rows)) if rows else 0.0


def rows_for(precision: float) -> int:
    """The fewest rows, all of them right, that prove a precision below 1."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(precision)))


def promise_of(
    truth: np.ndarray, answered: np.ndarray, wanted: float, *, promised: bool = False
) -> Promise:
    hits, count = int((truth & answered).sum()), int(answered.sum())
    bound = float(_lower_bounds(np.asarray([hits]), np.asarray([count]))[0])
    return Promise(wanted, int(truth.sum()), promised, hits / count if count else 0.0, bound)


def _lower_bounds(hits: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """What precision is above, of each of several counts, with CONFIDENCE.

    Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26(4), one-sided.
    """
    from scipy.special import betaincinv

    wrong = answered - hits
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), wrong + 1, 1 - CONFIDENCE), 0.0)


def most_proven(hits: np.ndarray, answered: np.ndarray, wanted: float) -> int | None:
    """The last cut of which the rows prove the wanted precision; None where they prove it of none.

    The best of many lower bounds is too good. So cuts are tested one after another, from the first
    that could pass on, until one fails; and again from the one that answers half as many rows as
    are true, where one wrong row among the first decides less. Each of the two starts has half of
    the error allowed (fixed-sequence testing with several starts: Angelopoulos et al. 2021, "Learn
    then Test", arXiv:2110.01052, section 3; binomial tests of each cut).

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
    # How likely so many or more are right by chance, if the precision is just below the wanted one.
    p_values = np.where(hits > 0, bdtrc(hits - 1, answered, wanted), 1.0)
    failed = np.append(p_values > allowed / len(starts), True)
    found = [
        place + int(np.argmax(failed[place:])) - 1
        for place in np.searchsorted(answered, starts)
        if not failed[place]
    ]
    return max(found, default=None)


def surest(hits: np.ndarray, answered: np.ndarray, wanted: float) -> int:
    """Of the cuts that have the wanted precision on these rows, the one with the best lower bound.

    Of all cuts where none has it.
    """
    bounds = _lower_bounds(hits, answered)
    reached = hits / answered >= wanted
    return int(np.argmax(np.where(reached, bounds, -1.0) if reached.any() else bounds))


def promising(manifest: Manifest, found: dict[str, Any]) -> Manifest:
    """The manifest with evidence of what precision it promises."""
    if not any(found.values()):
        return manifest
    promises = {"confidence": CONFIDENCE, **manifest.calibration.get("promises", {}), **found}
    return manifest.model_copy(
        update={"calibration": manifest.calibration | {"promises": promises}}
    )


def broken_promises(manifest: Manifest) -> list[str]:
    """A sentence for each wanted precision that the validation rows do not prove."""
    promises = manifest.calibration.get("promises", {})
    found = [(f"label {name!r}", one) for name, one in promises.get("labels", {}).items()]
    if abstention := promises.get("abstention"):
        found.append(("answers", abstention))
    return [f"{whose}: {_unproven(Promise(**one))}" for whose, one in found if not one["promised"]]


def _unproven(promise: Promise) -> str:
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
    """Log what is not promised of a package.

    Once, of what ships: thresholds are chosen for every candidate.
    """
    said = broken_promises(manifest)
    for sentence in said[:SAID]:
        logger.warning("%s", sentence)
    if len(said) > SAID:
        logger.warning("and so of %d labels more, which manifest.json names", len(said) - SAID)
