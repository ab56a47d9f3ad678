"""Package → BentoML's model store, as `text-classifier:<version>`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import NotFound

from service.classifier import Classifier
from service.model_package import (
    MODEL_STORE_NAME,
    PACKAGE_FILES,
    PackageError,
    verify_package,
)

logger = logging.getLogger(__name__)


def register(package: Path) -> tuple[str, bool]:
    """Copy a verified package into the store; its tag, and whether it is new there.

    Raises:
        PackageError: the folder does not verify.
        GoldenMismatchError: this copy does not answer as it did where it was made.
    """
    classifier = Classifier.load(package)
    classifier.check_golden(package)
    manifest = classifier.manifest
    tag = f"{MODEL_STORE_NAME}:{manifest.version}"
    try:
        stored = verify_package(Path(bentoml.models.get(tag).path))
    except NotFound:
        pass
    except PackageError:
        logger.warning("the stored copy of %s is damaged: replacing it", tag)
        bentoml.models.delete(tag)
    else:
        if stored.files == manifest.files:
            return tag, False
        # Golden texts are no part of the version, and somebody may have asked for none.
        logger.warning("the stored copy of %s has other golden texts: replacing it", tag)
        bentoml.models.delete(tag)
    with bentoml.models.create(
        tag,
        labels={"name": manifest.name, "precision": manifest.precision, "task": manifest.task},
        metadata={
            "classes": list(manifest.labels),
            "created_at": manifest.created_at,
            "max_length": manifest.max_length,
            "metrics": _known(manifest.metrics),
        },
    ) as model:
        for name in PACKAGE_FILES:
            if (package / name).is_file():
                shutil.copyfile(package / name, model.path_of(name))
    return tag, True


def _known(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without what could not be measured, such as of a label without a row: BentoML takes no None.

    In the manifest it stays.
    """
    return {
        key: _known(value) if isinstance(value, dict) else value
        for key, value in metrics.items()
        if value is not None
    }
