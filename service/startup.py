"""What the service does before it answers: find and verify its model, and start the engine.

Every error is a BentoMLException, which `bentoml serve` prints as one sentence.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from bentoml.exceptions import BentoMLException
from bentoml.models import BentoModel

from service.http.probes import ProbesError, listen
from service.inference.capacity import BATCH_TOKENS, Capacity
from service.inference.classifier import Classifier
from service.inference.cores import available_cores
from service.inference.device import Device, DeviceError, check_device
from service.inference.engine import Engine
from service.package.files import PackageError
from service.package.golden import GoldenMismatchError, read_golden
from service.package.manifest import MODEL_STORE_NAME, TargetDevice
from service.package.package import verify_package
from service.settings import Settings

# The device that a package must be made for, by WHETSTONE_DEVICE.
TARGET_DEVICES: dict[Device, TargetDevice] = {"cpu": "cpu", "cuda": "gpu"}
BENTO_FILE = Path(__file__).resolve().parents[2] / "bento.yaml"


def pinned_model(bento_file: Path = BENTO_FILE) -> str | None:
    """The tag of the model that the surrounding bento was built with; None outside a bento.

    BentoML evaluates `…:latest` anew at every start, so a bento would serve any model that was
    registered since. Its bento.yaml names the model that it was built and tested with.

    Raises:
        BentoMLException: this is a bento, but it does not pin exactly one text classifier.
    """
    if not bento_file.is_file():
        return None
    content = yaml.safe_load(bento_file.read_text(encoding="utf-8"))
    services = [content, *(content.get("services") or [])]
    tags = {str(model["tag"]) for service in services for model in (service.get("models") or [])}
    classifiers = [tag for tag in tags if tag.startswith(f"{MODEL_STORE_NAME}:")]
    if len(classifiers) != 1:
        raise BentoMLException(
            f"{bento_file} pins {len(classifiers)} models named {MODEL_STORE_NAME}, not one: build "
            "the bento again, with WHETSTONE_PACKAGE unset"
        )
    return classifiers[0]


def refuse_unsound(package: Path, device: Device) -> None:
    """Refuse a folder that is not a sound package for `device`, before a worker is started.

    BentoML would restart a worker whose `__init__` fails again and again.

    Raises:
        BentoMLException: the folder does not verify, or was made for another device.
    """
    try:
        manifest = verify_package(package)
    except PackageError as error:
        raise BentoMLException(str(error)) from None
    if manifest.target_device != TARGET_DEVICES[device]:
        raise BentoMLException(
            f"{package} was made and proven for a {manifest.target_device.upper()}, and "
            f"WHETSTONE_DEVICE is {device}: change that, or export the model again with "
            f"target_device: {TARGET_DEVICES[device]}"
        )


def sound_model(tag: str, device: Device) -> BentoModel:
    """A model of the store. Its package is verified, if it is there already."""
    model = BentoModel(tag)
    stored = model.stored
    if stored is not None:
        refuse_unsound(Path(stored.path), device)
    return model


def check_machine(settings: Settings) -> None:
    """Refuse to start where ONNX Runtime lacks the device, or the probe port is taken.

    Raises:
        BentoMLException: the message says what is missing.
    """
    try:
        check_device(settings.device)
        if settings.probe_port is not None:
            listen(settings.probe_port, shared=settings.workers > 1).close()
    except DeviceError as error:
        raise BentoMLException(str(error)) from None
    except ProbesError as error:
        raise BentoMLException(f"WHETSTONE_PROBE_PORT: {error}") from None


def load_classifier(folder: Path, device: Device) -> tuple[Classifier, int]:
    """The classifier of a package, and how many golden texts it answers as recorded.

    Raises:
        BentoMLException: the package cannot be loaded, or answers differently.
    """
    # Requests are tokenized one by one. Threads of the tokenizer would only compete with those of
    # the engine.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        # One thread computes a batch; batches run side by side, not their parts.
        classifier = Classifier.load(folder, threads=1, device=device)
        golden = classifier.check_golden(folder)
    except (PackageError, GoldenMismatchError, DeviceError) as error:
        raise BentoMLException(str(error)) from None
    return classifier, golden


def start_engine(classifier: Classifier, folder: Path, settings: Settings) -> Engine:
    """An engine of the size that the settings ask for, warmed up with the golden texts."""
    on_gpu = settings.device == "cuda"
    cores = max(1, available_cores() // settings.workers)
    capacity = Capacity(
        threads=settings.threads or (1 if on_gpu else cores),
        # The cores can tokenize while a GPU computes.
        tokenizer_threads=cores if on_gpu else 0,
        batch_tokens=settings.batch_tokens or BATCH_TOKENS[settings.device],
        queue_tokens=settings.queue_tokens,
    )
    engine = Engine(classifier, capacity, answers=classifier.row_answers)
    # Admission then decides about the first requests by a measured time per token.
    stand_in = ("warm", "up") if classifier.manifest.has_pairs else "warm up"
    for text in [answer.input for answer in read_golden(folder)] or [stand_in]:
        engine.run(classifier.encode([text]))
    return engine
