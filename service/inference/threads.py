"""The threads of an engine: what they wait for, and how they give way to the event loop."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.inference.jobs import Stage

# By so much less than others of the process an inference thread weighs where cores are short: at 5
# a third.
NICER = 5
MOST_NICENESS = 19


@dataclass(slots=True)
class Pool:
    """Threads that take the same stages out of the queue; the engine's lock guards it."""

    stages: tuple[Stage, ...]
    work_came: threading.Condition
    idle: int = 0

    def wake(self, parts: int) -> None:
        """Wake as many threads as there are parts, of those that wait."""
        if self.idle:
            self.work_came.notify(min(self.idle, parts))

    def wait(self) -> None:
        """Wait until there is work, or the engine is closed."""
        self.idle += 1
        self.work_came.wait()
        self.idle -= 1


def make_pools(lock: threading.Lock, *, apart: bool) -> dict[Stage, Pool]:
    """The pool of each stage; one for both unless they are to be apart."""
    stages: tuple[Stage, ...] = ("inference", "tokenizing")
    if apart:
        return {stage: Pool((stage,), threading.Condition(lock)) for stage in stages}
    return dict.fromkeys(stages, Pool(stages, threading.Condition(lock)))


def start_threads(
    pools: Mapping[Stage, Pool], counts: Mapping[Stage, int], serve: Callable[[Pool], None]
) -> list[threading.Thread]:
    """Start so many threads for each stage, which do what `serve` does with their pool."""
    threads = [
        threading.Thread(target=serve, args=(pools[stage],), name=f"{stage}-{index}", daemon=True)
        for stage, count in counts.items()
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def yield_to_others() -> None:
    """Let this thread wait for others where cores are short; for threads that compute.

    In an overload every refusal is the event loop's work. With as many busy inference threads as
    cores it gets its turns late, and then everything is late: refusals, and answers that are ready.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may forbid what needs no privilege.
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(MOST_NICENESS, niceness + NICER))
