"""Whether two samples look like samples of one population: two shares, or two histograms.

The chi-squared test of homogeneity (Pearson 1900; see Agresti, "Categorical Data Analysis", chapter
3), and Fisher's exact test where counts are small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, fisher_exact

Counts = NDArray[np.float64]

# Below it the chi-squared test is not sound: bins are joined, and shares are compared exactly.
LEAST_EXPECTED = 5


def p_of_shares(first: float, first_rows: float, second: float, second_rows: float) -> float:
    """The p-value of two shares being equal; 1 where nothing can be said.

    Args:
        first, second: how many rows have what is counted; rounded to whole rows.
        first_rows, second_rows: of how many.
    """
    counts = [
        [round(hits), max(round(rows) - round(hits), 0)]
        for hits, rows in ((first, first_rows), (second, second_rows))
    ]
    table = np.array(counts)
    if not table.sum(axis=0).all() or not table.sum(axis=1).all():
        return 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    if expected.min() < LEAST_EXPECTED:
        return float(fisher_exact(table).pvalue)
    return float(chi2_contingency(table).pvalue)


def p_of_histograms(first: Counts, second: Counts) -> float:
    """The p-value of two histograms being of one population; 1 where nothing can be said.

    Args:
        first, second: counts, each of shape (bins,).
    """
    joined = _joined(first, second)
    if joined.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(joined, correction=False).pvalue)


def total_variation(first: Counts, second: Counts) -> float:
    """Half the sum of the differences of the bins' shares, from 0 to 1.

    Args:
        first, second: counts, each of shape (bins,), not all of them 0.
    """
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _joined(first: Counts, second: Counts) -> Counts:
    """Both histograms with neighboring bins joined until each is expected to hold enough rows."""
    whole = first + second
    smaller = min(first.sum(), second.sum()) / whole.sum()
    columns: list[list[float]] = []
    pending = [0.0, 0.0]
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        pending = [pending[0] + one, pending[1] + other]
        if sum(pending) * smaller >= LEAST_EXPECTED:
            columns.append(pending)
            pending = [0.0, 0.0]
    if columns:
        columns[-1] = [columns[-1][0] + pending[0], columns[-1][1] + pending[1]]
    return np.array(columns, dtype=np.float64).T if columns else np.zeros((2, 0))
