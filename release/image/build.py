"""Bento → container image, by docker, podman or buildah.

    whetstone image                                    # of the newest bento
    whetstone image text-classifier:<bento version> --engine podman --platform linux/arm64

The Dockerfile is the bento's own, rendered by `bentoml build` from service/Dockerfile.j2. The
engine is called here, not by `bentoml containerize`: labels and the bill of materials need the
model's manifest, all three engines get the same words, and a build that fails ends in the engine's
last lines instead of a traceback.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from release.image.bento import ROOT, find_bento, stored_model
from release.image.engine import Layer, build_with, layers_above_base, read_layers
from release.image.sbom import SBOM_FILE, write_sbom
from service.package.manifest import Manifest
from training.common.git import git_commit, run_git

if TYPE_CHECKING:
    from bentoml import Bento


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        layers: those above the base image.
        size: of all layers, in bytes before compression.
        sbom: the bill of materials.
    """

    name: str
    engine: str
    model: str
    layers: tuple[Layer, ...]
    size: int
    sbom: Path

    @property
    def size_above_base(self) -> int:
        """The size of the layers above the base image, in bytes."""
        return sum(layer.size for layer in self.layers)


def build_image(
    bento_tag: str,
    engine: str,
    *,
    platform: str | None = None,
    repository: str | None = None,
    sbom_folder: Path,
) -> Image:
    """Build the image of a stored bento; its tag is the bento's version.

    Args:
        engine: an engine that `find_engine` returned.
        platform: such as linux/arm64; the engine's own by default.
        repository: the image's name without a tag; the bento's name by default.
        sbom_folder: where a copy of the image's bill of materials is written.

    Raises:
        ImageError: there is no such bento, no model for it, or the build failed.
        PackageError: the stored model is damaged.
    """
    bento = find_bento(bento_tag)
    model, manifest = stored_model(bento)
    name = f"{repository or bento.tag.name}:{bento.tag.version}"
    with tempfile.TemporaryDirectory(prefix="whetstone-image-") as folder:
        context = Path(folder) / "context"
        shutil.copytree(bento.path, context)
        shutil.copytree(model, context / "models" / model.parent.name / model.name)
        requirements = context / "env" / "python" / "requirements.txt"
        write_sbom(context / SBOM_FILE, requirements, name, manifest)
        # Not in the context: its labels are of this build, and the context goes into a layer.
        dockerfile = Path(folder) / "Dockerfile"
        own = (context / "env" / "docker" / "Dockerfile").read_text(encoding="utf-8")
        dockerfile.write_text(own + label_instructions(labels_of(bento, manifest)), "utf-8")
        build_with(engine, context, dockerfile, name, platform)
        sbom = sbom_folder / f"{bento.tag.name}-{bento.tag.version}.cdx.json"
        _copy_whole(context / SBOM_FILE, sbom)
    layers = read_layers(engine, name)
    return Image(
        name=name,
        engine=engine,
        model=f"{manifest.name}:{manifest.version}",
        layers=tuple(layers_above_base(layers)),
        size=sum(layer.size for layer in layers),
        sbom=sbom,
    )


def labels_of(bento: Bento, manifest: Manifest) -> dict[str, str]:
    """The labels of the image: those of the OCI that are known, and the model it holds."""
    revision, source = revision_of(Path(bento.path)), source_url()
    labels = {
        "title": bento.tag.name,
        "version": str(bento.tag.version),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **({"revision": revision} if revision else {}),
        **({"source": source} if source else {}),
    }
    return {f"org.opencontainers.image.{key}": value for key, value in labels.items()} | {
        "whetstone.model.name": manifest.name,
        "whetstone.model.version": manifest.version,
    }


def label_instructions(labels: dict[str, str]) -> str:
    """The end of a Dockerfile that labels the image.

    Not the option `--label` of the build: podman and buildah label the first stage, too, with the
    time of the build, and so find no layer of an earlier build again.
    """
    quoted = {key: re.sub(r'(["\\$])', r"\\\1", value) for key, value in labels.items()}
    return "".join(f'\nLABEL {key}="{value}"' for key, value in quoted.items()) + "\n"


def revision_of(bento: Path, root: Path = ROOT) -> str | None:
    """The commit checked out at `root`, if its service/ is that of the bento, to the byte.

    A bento does not record the commit that it was built from; anything else would be a guess.
    """
    committed = {}
    for line in run_git("ls-tree", "-r", "HEAD", "service/", folder=root).splitlines():
        entry, _, name = line.partition("\t")
        committed[name] = entry.split()[-1]
    source = bento / "src"
    built = {
        path.relative_to(source).as_posix(): path
        for path in (source / "service").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    template = bento / "env" / "docker" / "Dockerfile.template"
    if template.is_file():
        built["service/Dockerfile.j2"] = template
    if any(committed.get(name) != _git_hash(path) for name, path in built.items()):
        return None
    return git_commit(root)


def source_url(root: Path = ROOT) -> str | None:
    """The address that the checkout was cloned from, without a user's name and password."""
    address = run_git("remote", "get-url", "origin", folder=root)
    parts = urlsplit(address)
    if parts.hostname:
        port = f":{parts.port}" if parts.port else ""
        address = parts._replace(netloc=f"{parts.hostname}{port}").geturl()
    return address or None


def describe(image: Image) -> str:
    """What was built, layer by layer, for the screen."""
    lines = [
        f"image: {image.name} ({image.engine})",
        f"model: {image.model}",
        *(f"{layer.size / 1e6:9.1f} MB  {layer.made_by}" for layer in image.layers),
        f"{image.size_above_base / 1e6:9.1f} MB  above the base image",
        f"{image.size / 1e6:9.1f} MB  in all, before compression",
        f"bill of materials: {image.sbom}",
    ]
    return "\n".join(lines)


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that a reader never sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _git_hash(path: Path) -> str:
    """The name that git gives to the content of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
