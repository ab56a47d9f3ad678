"""The number of threads that compute: the cores of this process, not those of the host."""

from __future__ import annotations

import os

from service.inference.cores import available_cores

# The processes of one job on this machine, as torchrun and `accelerate launch` set it.
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"


def own_cores() -> int:
    """The CPU cores for this process: its share of those of the machine or container."""
    return max(1, available_cores() // int(os.environ.get(LOCAL_WORLD_SIZE, "1")))


def limit_threads() -> None:
    """Give OpenMP that many threads; to be called before torch and numpy are imported.

    torch would take all cores that it may be scheduled on, which in a container are the host's: the
    quota then stops its threads in turn, and those that run wait for the others. OMP_NUM_THREADS of
    one's own wins; torchrun gives 1 to each of several processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(own_cores()))
    # Threads that spin while they wait cost 15 % less time on an idle machine and twice as much
    # on a shared one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
