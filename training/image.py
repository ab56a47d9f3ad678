"""Bento → container image, by docker, podman or buildah.

    whetstone image                                    # of the bento that was built last
    whetstone image text-classifier:<bento version> --engine podman --platform linux/arm64

The Dockerfile is the bento's own, rendered by `bentoml build` from service/Dockerfile.j2. The
engine is called here, not by `bentoml containerize`: labels and the bill of materials need the
model's manifest, all three engines get the same words, and a build that fails ends in the engine's
last lines instead of a traceback.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.model_package import MODEL_STORE_NAME, Manifest, verify_package
from training.errors import ImageError
from training.sbom import SBOM_FILE, write_sbom

if TYPE_CHECKING:
    from bentoml import Bento

ROOT = Path(__file__).resolve().parent.parent
# In the order in which they are looked for.
ENGINES = ("docker", "podman", "buildah")
# The first instruction of our own after those of the base image has it (service/Dockerfile.j2).
FIRST_OF_OURS = "BENTO_PATH="
LAST_LINES = 15


@dataclass(frozen=True)
class Layer:
    """What one instruction added, in bytes before compression."""

    made_by: str
    size: int


@dataclass(frozen=True)
class Image:
    """A built image; `layers` are those above the base image, `size` is of all."""

    name: str
    engine: str
    model: str
    layers: tuple[Layer, ...]
    size: int
    sbom: Path

    @property
    def size_above_base(self) -> int:
        """What comes on top of the base image, in bytes."""
        return sum(layer.size for layer in self.layers)


def find_engine(wanted: str | None = None) -> str:
    """The engine to build with: `wanted`, or the first that can be used.

    Raises:
        ImageError: why none can be.
    """
    if wanted and wanted not in ENGINES:
        raise ImageError(f"--engine {wanted} is not one of {', '.join(ENGINES)}")
    reasons = []
    for engine in [wanted] if wanted else ENGINES:
        reason = _why_not(engine)
        if reason is None:
            return engine
        reasons.append(reason)
    if wanted:
        raise ImageError(f"{reasons[0]}: install or start it, or choose another --engine")
    raise ImageError(
        f"there is no container engine ({', '.join(reasons)}): install one, such as buildah"
    )


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
        engine: what `find_engine` found.
        platform: such as linux/arm64 (default: the engine's own).
        repository: the image's name without a tag (default: the bento's name).
        sbom_folder: where the bill of materials goes that is inside the image, too.

    Raises:
        ImageError: no such bento, no model for it, or a build that failed.
        PackageError: the stored model is damaged.
    """
    bento = find_bento(bento_tag)
    model, manifest = stored_model(bento)
    name = f"{repository or bento.tag.name}:{bento.tag.version}"
    with tempfile.TemporaryDirectory(prefix="whetstone-image-") as folder:
        context = Path(folder)
        shutil.copytree(bento.path, context, dirs_exist_ok=True)
        shutil.copytree(model, context / "models" / model.parent.name / model.name)
        write_sbom(
            context / SBOM_FILE, context / "env" / "python" / "requirements.txt", name, manifest
        )
        _build(engine, context, name, labels_of(bento, manifest), platform)
        sbom_folder.mkdir(parents=True, exist_ok=True)
        sbom = sbom_folder / f"{bento.tag.name}-{bento.tag.version}.cdx.json"
        partial = sbom.with_suffix(".partial")
        shutil.copyfile(context / SBOM_FILE, partial)
        partial.replace(sbom)
    layers = _layers(engine, name)
    return Image(
        name=name,
        engine=engine,
        model=f"{manifest.name}:{manifest.version}",
        layers=tuple(_above_base(layers)),
        size=sum(layer.size for layer in layers),
        sbom=sbom,
    )


def find_bento(tag: str) -> Bento:
    """A bento of the store.

    Raises:
        ImageError: it is not there.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        return bentoml.bentos.get(tag)
    except BentoMLException:
        raise ImageError(
            f"there is no bento {tag} in the store: make one with bentoml build, or name one that "
            "bentoml list shows"
        ) from None


def stored_model(bento: Bento) -> tuple[Path, Manifest]:
    """Folder and manifest of the one model that a bento pins, verified.

    Raises:
        ImageError: it pins none, or the store no longer has it.
    """
    import bentoml
    from bentoml.exceptions import NotFound

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


def labels_of(bento: Bento, manifest: Manifest) -> dict[str, str]:
    """Labels of the image: those of the OCI that are known, and which model it holds."""
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


def revision_of(bento: Path, root: Path = ROOT) -> str | None:
    """The commit checked out at `root`, where its service/ is that of the bento, to the byte.

    A bento does not say which commit it was built from; anything else would be a guess.
    """
    listed = _git(root, "ls-tree", "-r", "HEAD", "service/")
    committed = {}
    for line in listed.splitlines():
        what, _, path = line.partition("\t")
        committed[path] = what.split()[-1]
    source = bento / "src"
    built = {
        path.relative_to(source).as_posix(): path
        for path in (source / "service").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    template = bento / "env" / "docker" / "Dockerfile.template"
    if template.is_file():
        built["service/Dockerfile.j2"] = template
    for name, path in built.items():
        content = path.read_bytes()
        # As git names a file's content.
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        if committed.get(name) != blob.hexdigest():
            return None
    return _git(root, "rev-parse", "HEAD") or None


def source_url(root: Path = ROOT) -> str | None:
    """Where the checkout was cloned from, without a user's name and password."""
    address = _git(root, "remote", "get-url", "origin")
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


def _why_not(engine: str) -> str | None:
    """Why an engine cannot be used; None where it can."""
    if shutil.which(engine) is None:
        return f"{engine} is not installed"
    if engine == "docker":
        try:
            # The client is often there without its daemon.
            done = _run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout=30)
        except subprocess.TimeoutExpired:
            return "docker's daemon does not answer within 30 seconds"
        if done.returncode != 0 or not done.stdout.strip():
            return f"docker's daemon does not answer ({_last_lines(done.stdout, 1) or 'no reason'})"
    return None


def _build(
    engine: str, context: Path, name: str, labels: dict[str, str], platform: str | None
) -> None:
    words = [engine, "build", "--file", str(context / "env" / "docker" / "Dockerfile")]
    words += ["--tag", name]
    for key, value in labels.items():
        words += ["--label", f"{key}={value}"]
    if platform:
        words += ["--platform", platform]
    environment = dict(os.environ)
    if engine == "buildah":
        # A layer for each instruction, kept for the next build, as the other engines do. Chroot
        # needs no privileges, and what runs inside is our own Dockerfile.
        words += ["--layers"]
        environment.setdefault("BUILDAH_ISOLATION", "chroot")
    done = _run([*words, str(context)], env=environment)
    if done.returncode != 0:
        raise ImageError(
            f"{engine} could not build {name} (status {done.returncode}); it ended with:\n"
            f"{_last_lines(done.stdout, LAST_LINES)}"
        )


def _layers(engine: str, name: str) -> list[Layer]:
    """Every layer with something in it, from the base image's first on."""
    if engine == "buildah":
        found = json.loads(_answer([engine, "inspect", "--type", "image", name]))
        sizes = iter([layer["size"] for layer in json.loads(found["Manifest"])["layers"]])
        steps = found["OCIv1"]["history"]
        layers = [
            Layer(step.get("created_by", ""), 0 if step.get("empty_layer") else next(sizes))
            for step in steps
        ]
    elif engine == "podman":
        newest_first = json.loads(_answer([engine, "history", "--format", "json", name]))
        layers = [Layer(step["CreatedBy"], step["size"]) for step in reversed(newest_first)]
    else:
        words = [engine, "history", "--no-trunc", "--human=false", "--format", "{{json .}}", name]
        steps = [json.loads(line) for line in _answer(words).splitlines()]
        layers = [Layer(step["CreatedBy"], int(step["Size"])) for step in reversed(steps)]
    return layers


def _above_base(layers: Sequence[Layer]) -> list[Layer]:
    """Those that our own instructions made and that hold something, each with a short name."""
    first = next((place for place, layer in enumerate(layers) if FIRST_OF_OURS in layer.made_by), 0)
    return [Layer(_short(layer.made_by), layer.size) for layer in layers[first:] if layer.size > 0]


def _short(made_by: str) -> str:
    """An instruction without what the engines write around it, on one line of the screen."""
    words = re.sub(r"^/bin/sh -c (#\(nop\) )?|^\|\d+ .*?/bin/sh -c ", "", made_by)
    words = re.sub(r"\b(file|dir|multi):\w{12,}", "…", " ".join(words.split()))
    return words if len(words) <= 78 else f"{words[:77]}…"


def _answer(words: Sequence[str]) -> str:
    done = _run(words, apart=True)
    if done.returncode != 0:
        raise ImageError(f"`{' '.join(words[:2])}` failed: {_last_lines(done.stderr, LAST_LINES)}")
    return done.stdout


def _git(root: Path, *words: str) -> str:
    """What git answers; nothing where there is no git, or `root` is no checkout."""
    if shutil.which("git") is None:
        return ""
    done = _run(["git", "-C", str(root), *words], apart=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(
    words: Sequence[str],
    *,
    apart: bool = False,
    timeout: float | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A command whose output is for us; with `apart` warnings are not part of an answer."""
    return subprocess.run(  # noqa: S603 - programs and arguments of ours
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        env=env,
    )


def _last_lines(output: str, count: int) -> str:
    return "\n".join(line for line in output.strip().splitlines()[-count:] if line.strip())
