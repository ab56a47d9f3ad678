"""An overlay of kustomize: which image it names, how that is changed, and what it renders to."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.model_package import write_text
from training.cluster import Cluster
from training.errors import ReleaseError

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
# What the base names its image; an overlay gives it name and tag.
IMAGE = "text-classifier"
# Keys of a kustomization under which folders stand.
FOLDERS = ("resources", "components", "bases")


def kustomization_of(folder: Path) -> Path:
    """The file that makes `folder` an overlay.

    Raises:
        ReleaseError: there is none.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ReleaseError(
        f"{folder} is no overlay: it has no {NAMES[0]}; name one such as k8s/overlays/production"
    )


def named(folder: Path) -> Path:
    """The one name by which records know an overlay, however it was given."""
    found, here = folder.resolve(), Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


def read_kustomization(file: Path) -> str:
    """Its content, with the line ends that it has."""
    return file.read_bytes().decode()


def write_kustomization(file: Path, content: str) -> None:
    """Write it whole; a link stays a link, and its rights stay."""
    place = file.resolve()
    mode = place.stat().st_mode
    write_text(place, content)
    place.chmod(mode)


def repository_of(content: str) -> str:
    """The image's name without a tag, as the overlay has it."""
    entry = _entry(yaml.safe_load(content) or {})
    return str(entry.get("newName") or IMAGE)


def with_image(content: str, image: str) -> str:
    """The kustomization with this image; comments, order and quotes stay.

    Raises:
        ReleaseError: the image has no tag.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString
    from ruamel.yaml.util import load_yaml_guess_indent

    repository, separator, tag = image.rpartition(":")
    if not separator or "/" in tag or "@" in image:
        raise ReleaseError(f"{image} has no tag: name an image as NAME:TAG")
    windows = "\r\n" in content
    content = content.replace("\r\n", "\n")
    _, indent, offset = load_yaml_guess_indent(content)
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    indent = indent or 2
    editor.indent(mapping=2, sequence=indent, offset=offset or 0)
    document = editor.load(content)
    images = document.setdefault("images", [])
    entry = _entry(document)
    if not entry:
        entry = {"name": IMAGE}
        images.append(entry)
        entry = images[-1]
    if repository == IMAGE:
        entry.pop("newName", None)
    else:
        entry["newName"] = repository
    # Quoted: a tag of digits, or one such as 1e5, would else be read as a number.
    entry["newTag"] = DoubleQuotedScalarString(tag)
    entry.pop("digest", None)
    written = io.StringIO()
    editor.dump(document, written)
    return written.getvalue().replace("\n", "\r\n" if windows else "\n")


def rendered(cluster: Cluster, overlay: Path, content: str) -> str:
    """What the overlay renders to with this kustomization, in a temporary folder.

    Raises:
        ClusterError: it does not render.
    """
    folders = _closure(overlay.resolve())
    top = Path(os.path.commonpath(folders))
    with tempfile.TemporaryDirectory(prefix="whetstone-render-") as temporary:
        for folder in folders:
            copy = Path(temporary) / folder.relative_to(top)
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        place = Path(temporary) / overlay.resolve().relative_to(top)
        kustomization_of(place).write_bytes(content.encode())
        return cluster.render(place)


@dataclass(frozen=True)
class Workload:
    """The Deployment of a render that runs the classifier."""

    namespace: str
    name: str
    selector: str
    port: str


def workload_of(manifests: str, image: str) -> Workload:
    """The Deployment that runs `image`.

    Raises:
        ReleaseError: not exactly one does, or it has no namespace.
    """
    found = []
    for one in objects(manifests):
        if one["kind"] != "Deployment":
            continue
        for container in one["spec"]["template"]["spec"]["containers"]:
            if container.get("image") == image:
                found.append((one, container))
    if len(found) != 1:
        raise ReleaseError(
            f"the render has {len(found)} containers of Deployments with the image {image}, not "
            f"one: does the overlay's base name its image {IMAGE}?"
        )
    one, container = found[0]
    ports = container.get("ports") or [{"containerPort": 3000}]
    port = next((port for port in ports if port.get("name") == "http"), ports[0])
    labels = one["spec"]["selector"]["matchLabels"]
    if "namespace" not in one["metadata"]:
        raise ReleaseError(
            "the overlay names no namespace, so it would land wherever kubectl points: add "
            "`namespace:` to its kustomization"
        )
    return Workload(
        one["metadata"]["namespace"],
        one["metadata"]["name"],
        ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        str(port["containerPort"]),
    )


def objects(manifests: str) -> list[dict[str, Any]]:
    """The objects of a render."""
    return [one for one in yaml.safe_load_all(manifests) if one]


class _Quoting(yaml.SafeDumper):
    """Quotes every text: kubectl takes more of them for numbers and booleans than PyYAML knows."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def written(found: list[dict[str, Any]]) -> str:
    """Objects as manifests."""
    return yaml.dump_all(found, Dumper=_Quoting, sort_keys=False, width=10**9)


def without_secrets(manifests: str) -> str:
    """What may be kept and shown."""
    found = objects(manifests)
    kept = [one for one in found if one["kind"] != "Secret"]
    return manifests if len(kept) == len(found) else written(kept)


def _entry(document: Any) -> Any:
    return next((one for one in document.get("images") or [] if one.get("name") == IMAGE), {})


def _closure(folder: Path) -> list[Path]:
    """A kustomization's folder and those that it names, one in another left out."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.append(one)
        content = yaml.safe_load(kustomization_of(one).read_text(encoding="utf-8")) or {}
        named = [str(name) for key in FOLDERS for name in content.get(key) or []]
        waiting += [(one / name).resolve() for name in named if (one / name).is_dir()]
    return [one for one in found if not any(other in one.parents for other in found)]
