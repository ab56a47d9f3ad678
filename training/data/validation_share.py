"""How many of the training rows are set aside where no validation rows are given."""

from __future__ import annotations

import math

from training.recipe.arguments import Default

# Validation rows that the gates need, and that calibration needs (`training.export.gates`,
# `training.export.calibration`), and some more, which rounding by label and equal texts take.
GATE_ROWS = 160
CALIBRATION_ROWS = 60
# The largest share of the rows that is set aside for that.
LARGEST_SHARE = 0.2
USUAL_SHARE = 0.1


def validation_share(rows: int) -> Default:
    """The share of `rows` training rows that is set aside.

    A tenth; more where that makes the gates, or else calibration, possible, up to LARGEST_SHARE.
    With fewer rows each is worth more in the training than beside it.
    """
    for needed, purpose in ((GATE_ROWS, "judge int8 by"), (CALIBRATION_ROWS, "calibrate by")):
        share = math.ceil(1000 * needed / rows) / 1000
        if share <= LARGEST_SHARE:
            reason = f"of {rows:,} rows at least {needed}, to {purpose}"
            return Default(max(USUAL_SHARE, share), reason)
    return Default(USUAL_SHARE, f"{rows:,} rows are few: each is worth more in the training")
