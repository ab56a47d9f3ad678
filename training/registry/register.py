"""Package → BentoML's model store, as `text-classifier:<version>`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import NotFound

from service.inference.classifier import Classifier
from service.package.files import PackageError
from service.package.manifest import MODEL_STORE_NAME, PACKAGE_FILES, Manifest
from service.package.package import verify_package

logger = logging.getLogger(__name__)


def register(package: Path) -> tuple[str, bool]:
    """Copy a verified package into the store.

    Returns:
        Its tag, and whether it is new there.

    Raises:
        PackageError: the folder does not verify.
        GoldenMismatchError: this copy does not answer as it did where it was made.
    """
    classifier = Classifier.load(package)
    classifier.check_golden(package)
    manifest = classifier.manifest
    tag = f"{MODEL_STORE_NAME}:{manifest.version}"
    if _is_stored(tag, manifest):
        return tag, False
    with bentoml.models.create(
        tag,
        labels={"name": manifest.name, "precision": manifest.precision, "task": manifest.task},
        metadata={
            "classes": list(manifest.labels),
            "created_at": manifest.created_at,
            "max_length": manifest.max_length,
            "metrics": _without_none(manifest.metrics),
        },
    ) as model:
        for name in PACKAGE_FILES:
            if (package / name).is_file():
                shutil.copyfile(package / name, model.path_of(name))
    return tag, True


def _is_stored(tag: str, manifest: Manifest) -> bool:
    """Whether the store has this very package; a damaged or another copy is deleted there."""
    try:
        stored = verify_package(Path(bentoml.models.get(tag).path))
    except NotFound:
        return False
    except PackageError:
        logger.warning("the stored copy of %s is damaged: replacing it", tag)
    else:
        if stored.files == manifest.files:
            return True
        # Golden texts are no part of the version.
        logger.warning("the stored copy of %s has other golden texts: replacing it", tag)
    bentoml.models.delete(tag)
    return False


def _without_none(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that could be measured: BentoML takes no None. The manifest keeps all."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in metrics.items()
        if value is not None
    }
