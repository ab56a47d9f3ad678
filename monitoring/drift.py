"""Whether production still looks like what a package was made from.

    checks = drift(Reference.of_package(manifest), window)

Every check compares one share, or one histogram, with the reference: the share of each label, all
labels together, confidence, tokens, truncation, abstention, unknown tokens, and tokens that
continue a word. It is `drift` where two things hold.

- The difference is no chance: its p value, corrected for all checks together (Holm 1979), is below
  SIGNIFICANCE. Shares and histograms are compared by the chi-squared test of
  homogeneity, shares of few rows by Fisher's exact test.
- It is large enough to matter: at least FLOOR. Of a million rows every difference is significant.

Below LEAST_ROWS nothing is decided. Rows of one request count as one (see `monitoring.window`).
How often each verdict falls is simulated by `benchmarks/drift.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from monitoring.window import Counts, Share, Window, scaled
from service.package.manifest import Manifest
from training.common.exit_status import EXIT_OF_VERDICT
from training.evaluation.homogeneity import p_of_histograms, p_of_shares, total_variation
from training.evaluation.significance import holm, wilson

Verdict = Literal["drift", "steady", "too few rows"]

SIGNIFICANCE = 0.01
# Of shares, and of histograms: half the sum of the differences of their shares (total variation).
FLOOR = 0.03
HISTOGRAM_FLOOR = 0.1
LEAST_ROWS = 200
# As of a comparison: a script can tell a drift from an error.
EXIT_OF_DRIFT: dict[Verdict, int] = {
    "steady": EXIT_OF_VERDICT["promote"],
    "drift": EXIT_OF_VERDICT["refuse"],
    "too few rows": EXIT_OF_VERDICT["inconclusive"],
}


@dataclass(frozen=True)
class Reference:
    """What a window is compared with: a package's profile, or an earlier window.

    Attributes:
        labels: the share of each label, of shape (labels,); `label_rows` is of how many rows.
        confidence, tokens: counts by bin; empty where they are not known.
        shares: of rows that are truncated or abstained, and of tokens that are unknown or continue
            a word, each with its number of rows; the profile of an older package has none.
    """

    name: str
    names: tuple[str, ...]
    labels: Counts
    label_rows: float
    confidence: Counts
    tokens: Counts
    shares: dict[str, tuple[float, float]]

    @classmethod
    def of_package(cls, manifest: Manifest) -> Reference:
        """The profile of the training data: tokens of training, answers and confidence of the
        validation rows.

        Answers are compared with answers: a model gives a rare label less often than people do.
        The profile of an older package has no answers. Its label shares are those of the training
        rows.
        """
        profile = manifest.profile
        shares = profile.label_shares
        tokens = np.asarray(profile.token_length_counts, dtype=np.float64)
        confidence = np.asarray(profile.confidence_counts, dtype=np.float64)
        validated, trained = float(confidence.sum()), float(tokens.sum())
        known = {
            "truncated": (profile.truncated_share, trained),
            "abstained": (profile.abstained_share, validated),
            "unknown tokens": (profile.unknown_share, trained),
            "continuation pieces": (profile.continued_share, trained),
        }
        return cls(
            name=f"training of {manifest.name}:{manifest.version}",
            names=manifest.labels,
            labels=np.asarray([shares.get(name, 0.0) for name in manifest.labels]),
            label_rows=validated if profile.answer_shares else trained,
            confidence=confidence,
            tokens=tokens,
            shares={name: (share, of) for name, (share, of) in known.items() if share is not None},
        )

    @classmethod
    def of_window(cls, window: Window) -> Reference:
        """An earlier window."""
        rows = window.every.effective
        return cls(
            name="the reference window",
            names=window.names,
            labels=np.array([share.value for share in window.labels]),
            label_rows=rows,
            confidence=scaled(window.confidence, rows),
            tokens=scaled(window.tokens, rows),
            shares={
                name: (share.value, share.effective)
                for name, share in _shares(window).items()
                if share.of
            },
        )


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        before, after: shares; None of a histogram.
        effect: the difference of the shares, or the total variation of the histograms.
        p: corrected for all checks together.
    """

    name: str
    before: float | None
    after: float | None
    effect: float
    floor: float
    p: float
    verdict: Verdict


def drift(reference: Reference, window: Window) -> list[Check]:
    """Every check, those that found a drift first, the largest effect first."""
    rows = window.every.effective
    checks = [
        _compare_shares(f"label {name!r}", before, reference.label_rows, share)
        for name, before, share in zip(
            reference.names, reference.labels.tolist(), window.labels, strict=True
        )
    ]
    histograms = [
        ("confidence", reference.confidence, window.confidence),
        ("tokens", reference.tokens, window.tokens),
    ]
    # Of several labels a row the shares are no histogram: they do not add up to one.
    if math.isclose(reference.labels.sum(), 1):
        before = scaled(reference.labels, reference.label_rows)
        histograms.append(("labels together", before, window.label_weights))
    checks += [
        _compare_histograms(name, before, scaled(after, rows))
        for name, before, after in histograms
        if before.sum() and after.sum()
    ]
    own = _shares(window)
    for name, (value, of) in reference.shares.items():
        if own[name].of:
            checks.append(_compare_shares(name, value, of, own[name]))
    decided = [
        replace(check, p=p, verdict=_verdict(p, check, rows))
        for check, p in zip(checks, holm([check.p for check in checks]), strict=True)
    ]
    return sorted(decided, key=lambda check: (check.verdict != "drift", -abs(check.effect)))


def overall(checks: Sequence[Check]) -> Verdict:
    """`drift` where any check found one."""
    verdicts = {check.verdict for check in checks}
    if "drift" in verdicts:
        return "drift"
    return "too few rows" if "too few rows" in verdicts or not verdicts else "steady"


def mean_interval(share: Share) -> tuple[float, float]:
    """The 95 % interval of a weighted share or mean of values from 0 to 1.

    Wilson's with the effective number of rows. Values between 0 and 1 vary less than zeros and
    ones: of them it is wider than it has to be.
    """
    rows = share.effective
    return wilson(share.value * rows, rows) if rows else (0.0, 1.0)


def _shares(window: Window) -> dict[str, Share]:
    return {
        "truncated": window.truncated,
        "abstained": window.abstained,
        "unknown tokens": window.unknown,
        "continuation pieces": window.continued,
    }


def _verdict(p: float, check: Check, rows: float) -> Verdict:
    if rows < LEAST_ROWS:
        return "too few rows"
    return "drift" if p < SIGNIFICANCE and abs(check.effect) >= check.floor else "steady"


def _compare_shares(name: str, before: float, of: float, share: Share) -> Check:
    """Two shares, of as many rows as their weights are worth."""
    rows = share.effective
    p = p_of_shares(before * of, of, share.value * rows if rows else 0.0, rows)
    return Check(name, before, share.value, share.value - before, FLOOR, p, "steady")


def _compare_histograms(name: str, before: Counts, after: Counts) -> Check:
    effect, p = total_variation(before, after), p_of_histograms(before, after)
    return Check(name, None, None, effect, HISTOGRAM_FLOOR, p, "steady")
