"""What scoring on a cluster prints."""

from __future__ import annotations

import sys

from training.scoring.tally import Tally


def print_page(engine: str, url: str) -> None:
    """Where the engine itself shows the work."""
    print(f"{engine} shows the work at {url}", file=sys.stderr)


def print_tally(tally: Tally, target: str) -> None:
    """The end: rows, reasons of those without an answer, the cost, and where the result is."""
    print(f"{tally.rows} rows, {tally.failures} of them without an answer (column error): {target}")
    for reason, count in sorted(tally.refused.items(), key=lambda pair: -pair[1]):
        print(f"  {count} {reason}")
    print(f"cost: {tally.core_hours:.4f} core-hours (CPU time of the workers)")
