"""How many cores this process may use. The module imports nothing large."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use, by its affinity and the quotas of its cgroups.

    ONNX Runtime and torch size their pools from the host or the affinity alone (onnxruntime#29510).
    A fraction of a core counts as a whole one.

    Args:
        root: the folder of `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cores or 1, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """The quota, in cores, of every cgroup of this process, from its own cgroup to the topmost.

    In a container its own cgroup is the topmost visible one. With cgroup v1, `/proc` names it by a
    path of the host, and this path does not exist in the container.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        own = mount / path.lstrip("/")
        for group in (own, *own.parents):
            quota, period = _quota(group)
            if quota > 0 and period > 0:
                yield -(-quota // period)
            if group == mount:
                break


def _quota(group: Path) -> tuple[int, int]:
    """Microseconds of CPU time, and the period for them; 0 or less where there is no quota."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        return (0 if quota == "max" else int(quota)), int(period)
    except (OSError, ValueError):
        return 0, 0
