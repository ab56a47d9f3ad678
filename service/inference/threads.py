"""The threads of an engine: what they wait for, and how they give way to the event loop."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from service.inference.jobs import Stage

# The increase of an inference thread's nice value. At 15 its weight is a thirtieth of the other
# threads' where cores are short. At 5, a third, the event loop was late in an overload.
NICE_INCREMENT = 15
MAX_NICE = 19


@dataclass(slots=True)
class Pool:
    """Threads that take the same stages from the queue; the engine's lock guards it."""

    stages: tuple[Stage, ...]
    work_came: threading.Condition
    idle: int = 0

    def wake(self, parts: int) -> None:
        """Wake as many idle threads as there are new parts."""
        if self.idle:
            self.work_came.notify(min(self.idle, parts))

    def wait(self) -> None:
        """Wait until there is work, or the engine is closed."""
        self.idle += 1
        self.work_came.wait()
        self.idle -= 1


Pools: TypeAlias = Mapping[Stage, Pool]


def make_pools(lock: threading.Lock, *, apart: bool) -> Pools:
    """The pool of each stage; `apart` gives each stage a pool of its own."""
    stages: tuple[Stage, ...] = ("inference", "tokenizing")
    if apart:
        return {stage: Pool((stage,), threading.Condition(lock)) for stage in stages}
    return dict.fromkeys(stages, Pool(stages, threading.Condition(lock)))


def start_threads(
    pools: Pools, counts: Mapping[Stage, int], serve: Callable[[Pool], None]
) -> list[threading.Thread]:
    """Start a number of threads for each stage; each calls `serve` with its pool."""
    threads = [
        threading.Thread(target=serve, args=(pools[stage],), name=f"{stage}-{index}", daemon=True)
        for stage, count in counts.items()
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def lower_thread_priority() -> None:
    """Lower the priority of this thread; for threads that compute.

    In an overload every refusal is the event loop's work. With as many busy inference threads as
    cores, the loop would run late, and all answers and refusals with it.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may forbid the call, though it needs no privilege.
        with contextlib.suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(MAX_NICE, nice + NICE_INCREMENT))
