"""What the pods of a render refer to, looked up before anything is applied.

A pod whose Secret or ConfigMap does not exist never starts, and its Deployment only says that no
pod is available.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from release.cluster.kubectl import Cluster
from release.cluster.overlay import load_manifests
from training.common.errors import ClusterError, ClusterUnreachableError, ReleaseError

# The values of an API that `kubectl create` makes each kind with.
HOW_TO_MAKE = {
    "secret": "kubectl create secret",
    "configmap": "kubectl create configmap",
    "serviceaccount": "kubectl create serviceaccount",
}
NAMES = {"secret": "Secret", "configmap": "ConfigMap", "serviceaccount": "ServiceAccount"}


@dataclass(frozen=True)
class Reference:
    """A named object that pods need, and a key of it where only that is needed."""

    kind: str
    name: str
    namespace: str
    use: str
    key: str | None = None

    def __str__(self) -> str:
        key = f"key {self.key} of " if self.key else ""
        return f"{key}{NAMES[self.kind]} {self.name} ({self.use})"


def check_references(cluster: Cluster, render: str) -> list[str]:
    """Check that everything exists which the pods of a render need and the render does not hold.

    Returns:
        Warnings: what could not be looked up, because the user may not read it.

    Raises:
        ReleaseError: something is missing; the message names all of it.
        ClusterUnreachableError: the cluster cannot be asked.
    """
    objects = load_manifests(render)
    own = {_key(resource) for resource in objects}
    needed = [
        reference
        for reference in dict.fromkeys(references_of(objects))
        if (reference.kind, reference.namespace, reference.name) not in own
    ]
    missing, unknown = [], []
    for reference in needed:
        try:
            keys = cluster.keys_of(reference.kind, reference.name, reference.namespace)
        except ClusterUnreachableError:
            raise
        except ClusterError:
            unknown.append(f"whether {reference} exists is not known: it may not be read")
            continue
        if keys is None or (reference.key is not None and reference.key not in keys):
            missing.append(reference)
    if missing:
        _refuse(missing)
    return unknown


def references_of(objects: list[dict[str, Any]]) -> Iterator[Reference]:
    """Everything that the pod templates of some objects need, without what is optional."""
    for resource in objects:
        spec = (resource.get("spec") or {}).get("template", {}).get("spec")
        if spec is None:
            continue
        namespace = resource["metadata"].get("namespace", "")
        for kind, name, use, key in _references_of_pod(spec):
            yield Reference(kind, name, namespace, use, key)


def _references_of_pod(spec: dict[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    """Kind, name, use, and the key if one is named."""
    account = spec.get("serviceAccountName")
    if account and account != "default":
        yield "serviceaccount", account, "the pods' account", None
    for pull in spec.get("imagePullSecrets") or []:
        yield "secret", pull["name"], "to pull the image", None
    for volume in spec.get("volumes") or []:
        yield from _references_of_volume(volume)
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        yield from _references_of_container(container)


def _references_of_volume(volume: dict[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    use = f"volume {volume['name']}"
    projected = (volume.get("projected") or {}).get("sources") or []
    for source in [volume, *projected]:
        for kind, field in (("secret", "secret"), ("configmap", "configMap")):
            content = source.get(field)
            if not content or content.get("optional"):
                continue
            name = content.get("secretName") or content.get("name")
            items = content.get("items") or [{"key": None}]
            for item in items:
                yield kind, name, use, item["key"]


def _references_of_container(
    container: dict[str, Any],
) -> Iterator[tuple[str, str, str, str | None]]:
    for source in container.get("envFrom") or []:
        for kind, field in (("secret", "secretRef"), ("configmap", "configMapRef")):
            content = source.get(field)
            if content and not content.get("optional"):
                yield kind, content["name"], "environment", None
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom") or {}
        for kind, field in (("secret", "secretKeyRef"), ("configmap", "configMapKeyRef")):
            content = origin.get(field)
            if content and not content.get("optional"):
                yield kind, content["name"], f"environment {variable['name']}", content["key"]


def _key(resource: dict[str, Any]) -> tuple[str, str, str]:
    metadata = resource["metadata"]
    return resource["kind"].lower(), metadata.get("namespace", ""), metadata["name"]


def _refuse(missing: list[Reference]) -> None:
    listed = ", ".join(map(str, missing))
    namespace = missing[0].namespace
    verbs = " or ".join(dict.fromkeys(HOW_TO_MAKE[reference.kind] for reference in missing))
    raise ReleaseError(
        f"the pods need what {namespace} does not have: {listed}; make it ({verbs}, with "
        f"--namespace {namespace}), and release again"
    )
