"""The devices that ONNX Runtime can run a model on."""

from __future__ import annotations

from typing import Literal

import onnxruntime

Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceError(Exception):
    """The requested device is not available; the message says which ones are."""


def check_device(device: Device) -> None:
    """Refuse a device that this ONNX Runtime was not built for.

    Raises:
        DeviceError: the message says what is available and what to install.
    """
    available = onnxruntime.get_available_providers()
    if PROVIDERS[device] not in available:
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDERS[device]} here, only "
            f"{', '.join(available)}: install onnxruntime-gpu, or serve on the CPU"
        )
