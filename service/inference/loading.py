"""Load the tokenizer and the model of a verified package."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer

from service.inference.device import PROVIDERS, Device, DeviceError, check_device
from service.package.files import PackageFileError
from service.package.manifest import MODEL_FILE, TOKENIZER_FILE


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a package.

    Raises:
        PackageFileError: it cannot be loaded, or does not state its padding and truncation.
    """
    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises a plain Exception
        raise PackageFileError(
            f"{path} cannot be loaded as a tokenizer: export the package again"
        ) from error
    if tokenizer.padding is None or tokenizer.truncation is None:
        raise PackageFileError(
            f"{path} does not state its padding and truncation: export the package again"
        )
    return tokenizer


def load_session(folder: Path, device: Device) -> onnxruntime.InferenceSession:
    """The model of a package on `device`, with one thread for each call.

    Raises:
        DeviceError: ONNX Runtime does not run on `device` here.
        PackageFileError: ONNX Runtime cannot load the model.
    """
    check_device(device)
    provider = PROVIDERS[device]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = folder / MODEL_FILE
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise PackageFileError(
            f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: "
            "export the package again"
        ) from error
    # ONNX Runtime falls back to the CPU without an error (onnxruntime#23372).
    active = session.get_providers()[0]
    if active != provider:
        raise DeviceError(
            f"ONNX Runtime could not start {provider} and fell back to {active}: check the "
            "driver and the CUDA libraries"
        )
    return session
