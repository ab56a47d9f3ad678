"""The progress bar of every long step."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# A log file gets a line now and then instead of a moving bar.
SECONDS_BETWEEN_LOG_LINES = 10.0


def progress(
    total: int | None,
    description: str,
    unit: str,
    initial: int = 0,
    leave: bool = True,
    delay: float = 0.0,
) -> tqdm[Any]:
    """A bar on standard error, with few lines where that is not a terminal.

    Args:
        delay: seconds before it is shown, so that a quick step shows none.
    """
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_LINES
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=total is not None and total >= 10_000,
        initial=initial,
        leave=leave,
        delay=delay,
        mininterval=interval,
        dynamic_ncols=True,
    )
