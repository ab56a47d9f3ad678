"""Render the manifests with kustomize: an overlay, with or without added components."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

K8S = ROOT / "k8s"
# The parts of an overlay; k8s/training is applied separately.
PARTS = ("base", "components", "overlays")
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())

Resource = dict[str, Any]


class Manifests(list[Resource]):
    """Rendered resources."""

    def of(self, *kinds: str) -> Iterator[Resource]:
        """The resources of these kinds."""
        return (resource for resource in self if resource["kind"] in kinds)

    def find(self, kind: str, name: str) -> Resource | None:
        """The resource of this kind and name."""
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    def pods(self) -> Iterator[tuple[Resource, Resource]]:
        """Each resource that creates pods, and its pod template."""
        return ((resource, resource["spec"]["template"]) for resource in self.of("Deployment"))

    def containers(self) -> Iterator[tuple[Resource, Resource]]:
        """Each pod's `spec`, and each container in it."""
        for _, template in self.pods():
            for kind in ("initContainers", "containers"):
                for container in template["spec"].get(kind, []):
                    yield template["spec"], container


def label(resource: Resource) -> str:
    """The name of a resource in messages."""
    return f"{resource['kind']}/{resource['metadata']['name']}"


def kustomize(folder: Path) -> Manifests:
    """The output of `kubectl kustomize` for a folder; a warning fails the test."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.fail(
            "kubectl is not on the PATH: install 1.28 or newer, which renders the manifests"
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, f"{folder}: {done.stderr}"
    return Manifests(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


class Renderer:
    """Renders overlays in a copy of the tree, each combination once."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "k8s"
        for part in PARTS:
            shutil.copytree(K8S / part, self.tree / part)
        self._rendered: dict[tuple[str, ...], Manifests] = {}

    def __call__(
        self, overlay: str, *components: str, more: dict[str, Any] | None = None
    ) -> Manifests:
        """`overlay` with these additional components; the caller may change the result.

        Args:
            more: lists that are added to those of the overlay's kustomization.
        """
        key = overlay, *components, str(more)
        if key not in self._rendered:
            self._rendered[key] = kustomize(self._with(overlay, components, more or {}))
        return copy.deepcopy(self._rendered[key])

    def _with(self, overlay: str, components: tuple[str, ...], more: dict[str, Any]) -> Path:
        """A new overlay beside the first one, so that relative paths stay valid."""
        text = (self.tree / "overlays" / overlay / "kustomization.yaml").read_text("utf-8")
        content = yaml.safe_load(text)
        listed = content.setdefault("components", [])
        for component in components:
            path = f"../../components/{component}"
            if path not in listed:
                listed.append(path)
        for name, items in more.items():
            content[name] = [*content.get(name, []), *items]
        folder = self.tree / "overlays" / f"{overlay}-{len(self._rendered)}"
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), "utf-8")
        return folder
