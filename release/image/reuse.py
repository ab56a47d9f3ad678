"""An image that an earlier try built: it is taken again if nothing that goes into it changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import bentoml
import yaml

from release.image.bento import ROOT
from release.image.engine import image_id
from release.image.push import is_in_registry
from release.image_name import ImageName
from release.records import BuiltImage, Record
from service.package.manifest import MANIFEST_FILE

# What `bentoml build` reads besides the model: see bentofile.yaml.
BUILD_FILES = ("bentofile.yaml", "README.md")
BUILD_FOLDER = "service"


def digest_of_inputs(
    model: str, *, engine: str, platform: str | None, repository: str, root: Path = ROOT
) -> str:
    """A SHA-256 of what an image is built from.

    That is the stored manifest (with the hash of each file of the package), the sources of the
    bento by content, and how it is built. The commit itself is not part of it: a commit that keeps
    the record of a release changes no image.

    Args:
        model: the tag of the package in the model store.
    """
    manifest = Path(bentoml.models.get(model).path) / MANIFEST_FILE
    files = [root / name for name in BUILD_FILES]
    files += [
        path
        for path in sorted((root / BUILD_FOLDER).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    inputs = {
        "model": _sha256(manifest),
        "files": {path.relative_to(root).as_posix(): _sha256(path) for path in files},
        "bentoml": bentoml.__version__,
        "engine": engine,
        "platform": platform,
        "repository": repository,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def find_built(records: Iterable[Record], inputs: str) -> tuple[Record, BuiltImage] | None:
    """The newest image, or begun image, of these inputs, and the release that built it."""
    for record in reversed(list(records)):
        if record.built is not None and record.built.inputs == inputs:
            return record, record.built
    return None


def is_usable(built: BuiltImage, *, here: bool) -> bool:
    """Whether exactly this image is still there, so that it need not be built again.

    Args:
        here: whether this machine must have it, to be loaded from here; else it is enough if it was
            tried and the registry has it.
    """
    if built.name is None or built.id is None:
        return False
    base = base_id(built.engine)
    if base is not None and base != built.base:
        # Somebody has pulled a newer one, to have its corrections.
        return False
    if image_id(built.engine, built.name) == built.id:
        return True
    return not here and built.tried and is_pushed(built)


def base_id(engine: str, root: Path = ROOT) -> str | None:
    """The engine's id of the base image that a build would take; None if it would pull one."""
    bentofile = yaml.safe_load((root / "bentofile.yaml").read_text(encoding="utf-8"))
    return image_id(engine, bentofile["docker"]["base_image"])


def is_pushed(built: BuiltImage) -> bool:
    """Whether the registry has exactly this image."""
    if built.name is None or built.digest is None:
        return False
    return is_in_registry(built.engine, by_digest(built.name, built.digest).reference)


def by_digest(name: str, digest: str | None) -> ImageName:
    """An image, with the digest that its registry gave it."""
    image = ImageName.parse(name)
    return ImageName(image.repository, image.tag, digest)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
