"""How many cores this process may use; imports nothing large, so that it can be asked first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: its affinity, and the quotas of its cgroups.

    ONNX Runtime and torch size their pools from the host or the affinity alone (onnxruntime#29510),
    so this is asked instead. A part of a core counts as a whole one.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cores or 1, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """The quota in cores of every cgroup that this process is in, from its own to the topmost.

    In a container its own cgroup is the topmost that can be seen, and with cgroup v1 `/proc` names
    it by a path of the host's, of which nothing is there.
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
    """Microseconds of computing in so many microseconds; 0 or less where there is no quota."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        return (0 if quota == "max" else int(quota)), int(period)
    except (OSError, ValueError):
        return 0, 0
