"""A kustomize overlay: the image it names, how to change it, and what the overlay renders to."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from release.cluster.kubectl import Cluster
from release.image_name import ImageName
from service.package.files import write_text
from training.common.errors import ReleaseError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

KUSTOMIZATION_NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
# The name of the image in the base; an overlay replaces it by name and tag.
IMAGE = "text-classifier"
# The keys of an image by which a kustomization says which one of the repository it is.
TAG_KEY, DIGEST_KEY = "newTag", "digest"
# The comment behind a digest that a release wrote.
TAG_NOTE = re.compile(r"# tag \S+ ?")
# The keys of a kustomization that name folders.
FOLDER_KEYS = ("resources", "components", "bases")
DEFAULT_PORT = 3000
# The label of a canary's pods (see `release.cluster.variant`). They are not the workload's.
TRACK, CANARY = "track", "canary"


@dataclass(frozen=True)
class Workload:
    """The Deployment that runs the classifier.

    Attributes:
        selector: the labels of its pods, as kubectl selects by them.
        container: the name of the container that is the classifier; there may be others beside it.
    """

    namespace: str
    name: str
    selector: str
    port: str
    container: str


def kustomization_of(folder: Path) -> Path:
    """The file that makes `folder` an overlay.

    Raises:
        ReleaseError: there is none.
    """
    for name in KUSTOMIZATION_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ReleaseError(
        f"{folder} is not an overlay, because it has no {KUSTOMIZATION_NAMES[0]}: name one such as "
        "k8s/overlays/production"
    )


def record_name(folder: Path) -> Path:
    """The path by which records know an overlay, however the user wrote it."""
    path, here = folder.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def read_kustomization(file: Path) -> str:
    """Read the file and keep its line ends."""
    return file.read_bytes().decode()


def write_kustomization(file: Path, content: str) -> None:
    """Write the whole file; a link stays a link, and the file mode stays."""
    target = file.resolve()
    mode = target.stat().st_mode
    write_text(target, content)
    target.chmod(mode)


def repository_of(content: str) -> str:
    """The name of the image without a tag, as the overlay has it."""
    entry = _image_entry(yaml.safe_load(content) or {})
    return str(entry.get("newName") or IMAGE)


def image_of_content(content: str) -> str | None:
    """The image that the overlay names, as manifests have it; None if it names none."""
    entry = _image_entry(yaml.safe_load(content) or {})
    tag, digest = entry.get(TAG_KEY), entry.get(DIGEST_KEY)
    if not tag and not digest:
        return None
    return ImageName(repository_of(content), str(tag), digest).reference


def with_image(content: str, image: str) -> str:
    """The kustomization with this image; comments, order and quotes stay.

    An image whose digest is known is named by it, and the tag becomes a comment. kustomize would
    take both, but what it makes of both differs between its versions.

    Raises:
        ReleaseError: the image has neither a tag nor a digest.
    """
    name = ImageName.parse(image)
    windows = "\r\n" in content
    content = content.replace("\r\n", "\n")
    editor = _editor_for(content)
    document = editor.load(content)
    _set_image(document, name)
    edited = io.StringIO()
    editor.dump(document, edited)
    return edited.getvalue().replace("\n", "\r\n" if windows else "\n")


def render_overlay(cluster: Cluster, overlay: Path, content: str) -> str:
    """What the overlay renders to with this kustomization, in a temporary folder.

    Raises:
        ClusterError: it does not render.
    """
    folders = _kustomization_folders(overlay.resolve())
    top = Path(os.path.commonpath(folders))
    with tempfile.TemporaryDirectory(prefix="whetstone-render-") as temporary:
        for folder in folders:
            copy = Path(temporary) / folder.relative_to(top)
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        place = Path(temporary) / overlay.resolve().relative_to(top)
        kustomization_of(place).write_bytes(content.encode())
        return cluster.render(place)


def workload_of(manifests: str, image: str) -> Workload:
    """The Deployment that runs `image`.

    Args:
        image: with a tag, a digest, or both; the manifests have one of them.

    Raises:
        ReleaseError: not exactly one Deployment runs it, or it has no namespace.
    """
    reference = ImageName.parse(image).reference
    matches = [
        (deployment, container)
        for deployment in load_manifests(manifests)
        if deployment["kind"] == "Deployment"
        for container in deployment["spec"]["template"]["spec"]["containers"]
        if container.get("image") == reference
    ]
    if len(matches) != 1:
        raise ReleaseError(
            f"the render has {len(matches)} containers of Deployments with the image {image}, not "
            f"one: does the overlay's base name its image {IMAGE}?"
        )
    deployment, container = matches[0]
    if "namespace" not in deployment["metadata"]:
        raise ReleaseError(
            "the overlay names no namespace, so it would be applied to whichever kubectl points "
            "to: add `namespace:` to its kustomization"
        )
    ports = container.get("ports") or [{"containerPort": DEFAULT_PORT}]
    port = next((port for port in ports if port.get("name") == "http"), ports[0])
    labels = deployment["spec"]["selector"]["matchLabels"]
    return Workload(
        namespace=deployment["metadata"]["namespace"],
        name=deployment["metadata"]["name"],
        selector=f"{selector_of(labels)},{TRACK}!={CANARY}",
        port=str(port["containerPort"]),
        container=container.get("name", ""),
    )


def selector_of(labels: Mapping[str, str]) -> str:
    """Labels as kubectl selects by them."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def load_manifests(manifests: str) -> list[dict[str, Any]]:
    """The objects of manifests."""
    return [document for document in yaml.safe_load_all(manifests) if document]


class _Quoting(yaml.SafeDumper):
    """Quotes every text: kubectl takes more of them for numbers and booleans than PyYAML knows."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def dump_manifests(objects: list[dict[str, Any]]) -> str:
    """Objects as manifests."""
    return yaml.dump_all(objects, Dumper=_Quoting, sort_keys=False, width=10**9)


def without_secrets(manifests: str) -> str:
    """The manifests that may be saved and shown."""
    objects = load_manifests(manifests)
    public = [resource for resource in objects if resource["kind"] != "Secret"]
    return manifests if len(public) == len(objects) else dump_manifests(public)


def _editor_for(content: str) -> YAML:
    """A YAML editor that keeps the indentation of `content`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.util import load_yaml_guess_indent

    _, indent, offset = load_yaml_guess_indent(content)
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    return editor


def _set_image(document: Any, image: ImageName) -> None:
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    images = document.setdefault("images", [])
    if not _image_entry(document):
        images.append(CommentedMap(name=IMAGE))
    entry = _image_entry(document)
    key = DIGEST_KEY if image.digest else TAG_KEY
    _replace_pin(entry, key)
    if image.repository == IMAGE:
        entry.pop("newName", None)
    elif "newName" in entry:
        entry["newName"] = image.repository
    else:
        entry.insert(list(entry).index(key), "newName", image.repository)
    # Without quotes a tag of digits, or one such as 1e5, would be read as a number.
    entry[key] = image.digest or DoubleQuotedScalarString(image.tag or "")
    _note_tag(entry, key, image.tag if image.digest else None)


def _replace_pin(entry: Any, key: str) -> None:
    """Let `key` stand where tag or digest stood, with the comments that stand there."""
    place, comment = len(entry), None
    for old in (DIGEST_KEY, TAG_KEY):
        if old != key and old in entry:
            place = list(entry).index(old)
            comment = entry.ca.items.pop(old, None)
            del entry[old]
    if key not in entry:
        entry.insert(place, key, None)
    if comment is not None:
        entry.ca.items.setdefault(key, comment)


def _note_tag(entry: Any, key: str, tag: str | None) -> None:
    """Write the tag behind the digest; a comment that somebody else wrote there stays."""
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    comments = entry.ca.items.get(key) or [None, None, None, None]
    # A comment token goes on to the next key: the lines below belong to it, too.
    line, _, below = (comments[2].value if comments[2] else "").partition("\n")
    note = "" if tag is None or entry.fa.flow_style() else f"# tag {tag}"
    changed = " ".join(filter(None, (note, TAG_NOTE.sub("", line))))
    if changed == line:
        return
    comments[2] = CommentToken(f"{changed}\n{below}", CommentMark(0), None)
    entry.ca.items[key] = comments
    if not changed and not below:
        del entry.ca.items[key]


def _image_entry(document: Any) -> Any:
    images = document.get("images") or []
    return next((entry for entry in images if entry.get("name") == IMAGE), {})


def _kustomization_folders(folder: Path) -> list[Path]:
    """The folder of a kustomization and those that it names, without those inside of another."""
    folders: list[Path] = []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if current in folders:
            continue
        folders.append(current)
        content = yaml.safe_load(kustomization_of(current).read_text(encoding="utf-8")) or {}
        names = [str(name) for key in FOLDER_KEYS for name in content.get(key) or []]
        waiting += [(current / name).resolve() for name in names if (current / name).is_dir()]
    return [path for path in folders if not any(other in path.parents for other in folders)]
