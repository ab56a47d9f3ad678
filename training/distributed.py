"""Several processes that train one model: who writes, and where all wait for each other.

Started by `torchrun` or `accelerate launch`; a process alone is the first of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Set by torchrun, and by `accelerate launch`.
RANK = "RANK"
WORLD_SIZE = "WORLD_SIZE"


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get(WORLD_SIZE, "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get(RANK, "0") == "0"


def wait_for_all() -> None:
    """Return when every process has come here; the launcher ends those that wait for a dead one."""
    if processes() > 1:
        import torch

        # Not accelerate's: its state is made anew by every TrainingArguments.
        torch.distributed.barrier()


@contextmanager
def first_then_others() -> Iterator[None]:
    """The first process does what is in the block, then the others: they find what it left."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def any_of_all(flag: bool) -> bool:
    """Whether `flag` is true in any process; all have to ask, and get the same answer."""
    if processes() == 1:
        return flag
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(found)
    return bool(found.item())


def of_all(value: Any) -> list[Any]:
    """`value` as each process has it, in their order; all have to ask, and get the same answer."""
    if processes() == 1:
        return [value]
    import torch

    found: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(found, value)
    return found
