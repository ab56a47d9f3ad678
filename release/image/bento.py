"""Bentos of BentoML's store: find one, build one, and the model that it pins."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from release.image.commands import reason_in, run_command
from service.package.manifest import MODEL_STORE_NAME, Manifest, read_manifest, write_manifest
from service.package.package import verify_package
from training.common.errors import ImageError, ReleaseError

if TYPE_CHECKING:
    from bentoml import Bento

    from release.records import ChangedLabels

# The checkout: bentofile.yaml and service/ are there.
ROOT = Path(__file__).resolve().parents[2]


def find_bento(tag: str) -> Bento:
    """A bento of the store.

    Raises:
        ImageError: the store does not have it.
    """
    try:
        return bentoml.bentos.get(tag)
    except BentoMLException:
        raise ImageError(
            f"there is no bento {tag} in the store: make one with bentoml build, or name one that "
            "bentoml list shows"
        ) from None


def has_bento(tag: str) -> bool:
    """Whether the store still has a bento."""
    try:
        find_bento(tag)
    except ImageError:
        return False
    return True


def build_bento(tag: str) -> str:
    """`bentoml build` with exactly this model; the bento's tag.

    Raises:
        ReleaseError: the build failed.
    """
    words = ["-m", "bentoml", "build", "--output", "tag", "--arg", f"model={tag}"]
    environment = {key: value for key, value in os.environ.items() if key != "WHETSTONE_PACKAGE"}
    done = run_command([sys.executable, *words], folder=ROOT, environment=environment)
    if done.returncode != 0:
        raise ReleaseError(f"bentoml build failed: {reason_in(done.stderr or done.stdout)}")
    return done.stdout.strip().splitlines()[-1].removeprefix("__tag__:")


def stored_model(bento: Bento) -> tuple[Path, Manifest]:
    """Folder and manifest of the one model that a bento pins, verified.

    Raises:
        ImageError: the bento pins no model, or the store no longer has it.
        PackageError: the stored model is damaged.
    """
    tags = [model.tag for model in bento.info.all_models if model.tag.name == MODEL_STORE_NAME]
    if len(tags) != 1:
        raise ImageError(
            f"{bento.tag} pins {len(tags)} models named {MODEL_STORE_NAME}, not one: build the "
            "bento again, with WHETSTONE_PACKAGE unset"
        )
    try:
        folder = Path(bentoml.models.get(tags[0]).path)
    except NotFound:
        raise ImageError(
            f"{bento.tag} needs the model {tags[0]}, which is not in the store: register its "
            "package again (whetstone register)"
        ) from None
    return folder, verify_package(folder)


def record_label_change(tag: str, change: ChangedLabels | None) -> None:
    """Write into the stored manifest which labels changed: the service shows it at `/info`.

    No answer depends on it, so the version stays.
    """
    folder = Path(bentoml.models.get(tag).path)
    manifest = read_manifest(folder)
    content = None if change is None else change.model_dump(by_alias=True)
    if manifest.provenance.get("label_change") != content:
        provenance = {**manifest.provenance, "label_change": content}
        write_manifest(folder, manifest.model_copy(update={"provenance": provenance}))
