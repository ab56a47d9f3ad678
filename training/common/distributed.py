"""Several processes that train one model: which one writes, and where all wait for each other.

`torchrun` or `accelerate launch` start them. A process alone is the main process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Variables that torchrun and `accelerate launch` set.
RANK = "RANK"
WORLD_SIZE = "WORLD_SIZE"


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get(WORLD_SIZE, "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and messages."""
    return os.environ.get(RANK, "0") == "0"


def barrier() -> None:
    """Wait until every process is here; the launcher ends processes that wait for a dead one."""
    if world_size() > 1:
        import torch

        # Not accelerate's: its state is made anew by every TrainingArguments.
        torch.distributed.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process, then in the others, which read the files that it wrote."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all have to call it, and get the same answer."""
    if world_size() == 1:
        return flag
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags)
    return bool(flags.item())


def all_gather(value: Any) -> list[Any]:
    """The `value` of each process, in their order; all have to call it, and get the same answer."""
    if world_size() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values
