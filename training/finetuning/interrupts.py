"""Ctrl-C and SIGTERM during a training."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm
from transformers import (
    Trainer,
)
from transformers.trainer_utils import get_last_checkpoint

from training.common.errors import (
    InterruptedRunError,
)
from training.finetuning.callbacks import StopOnRequest


@contextmanager
def graceful_interrupt(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C ends the step, saves a checkpoint and stops; a second Ctrl-C stops at once.

    Raises:
        InterruptedRunError: the run was interrupted before its last step.
    """
    stop = StopOnRequest()
    trainer.add_callback(stop)

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        tqdm.write("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    state = trainer.state
    if stop.requested and state.global_step < state.max_steps:
        raise InterruptedRunError(
            f"stopped after step {state.global_step} of {state.max_steps}, which is saved in "
            f"{get_last_checkpoint(str(trainer.args.output_dir))}: give the same command again, "
            "without --overwrite, to continue"
        )
