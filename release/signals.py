"""SIGTERM and SIGHUP during a release."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


def signals_interrupt() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP act as Ctrl-C, so that a canceled job or a lost terminal is undone."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _handled_by(interrupt)


def signals_ignored() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP do nothing while a release is undone; Ctrl-C still ends it."""

    # Not SIG_IGN: child processes would inherit it, and kubectl could not be told to end.
    def ignore(_number: int, _frame: FrameType | None) -> None:
        return None

    return _handled_by(ignore)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
