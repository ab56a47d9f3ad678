"""Compare a classifier's answers to the golden texts with the recorded ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.inference.decisions import Decision, margin
from service.package.golden import (
    GOLDEN_MARGIN,
    GOLDEN_SCORE_TOLERANCE,
    GoldenAnswer,
    GoldenMismatchError,
)
from service.package.manifest import InferenceConfig


def compare_golden(
    golden: Sequence[GoldenAnswer],
    answers: Sequence[Decision],
    config: InferenceConfig,
    source: str,
) -> None:
    """Refuse answers that differ from those recorded when the package was made.

    Another label is an error where the recorded margin exceeds `GOLDEN_MARGIN`. Every probability
    must be within `GOLDEN_SCORE_TOLERANCE` of the recorded one.

    Args:
        source: the folder or the service that gave the answers, for the message.

    Raises:
        GoldenMismatchError: the message names `source` and the number of the text, never the text.
    """
    for number, (expected, answer) in enumerate(zip(golden, answers, strict=True), start=1):
        recorded = np.asarray(expected.probs, dtype=np.float32)
        drift = float(np.abs(answer.probs - recorded).max())
        flipped = answer.answer != expected.answer and margin(recorded, config) > GOLDEN_MARGIN
        # `not <=` also refuses NaN.
        if flipped or not drift <= GOLDEN_SCORE_TOLERANCE:
            raise GoldenMismatchError(
                f"{source}: golden text {number} no longer gets the answer recorded when the "
                f"package was made (score drift {drift:.3f}): do not serve this copy; "
                "export the package again"
            )
