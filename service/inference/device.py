"""Where a model runs: which devices are there, and how many cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import onnxruntime

Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceError(Exception):
    """The device that was asked for is not there; the message says what is."""


def available_cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of cgroup v2 if there.

    ONNX Runtime sizes its pools from the host (onnxruntime#29510), so this is asked instead.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        quota, period = "max", "1"
    if quota != "max":
        cores = min(cores or 1, -(-int(quota) // int(period)))
    return max(1, cores or 1)


def check_device(device: Device) -> None:
    """Refuse a device that this ONNX Runtime was not built for.

    Raises:
        DeviceError: the message says what is there and what to install.
    """
    available = onnxruntime.get_available_providers()
    if PROVIDERS[device] not in available:
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDERS[device]} here, only "
            f"{', '.join(available)}: install onnxruntime-gpu, or serve on the CPU"
        )
