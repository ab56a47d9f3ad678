"""A second Deployment beside the workload, made of the same render.

`variant_of` is for the first pod of a new version, which is in no Service's endpoints. It is a
Deployment of its own and not a readiness gate: a gate would stand in the template of every pod, and
each pod that the autoscaler starts later, when no release runs, would wait for somebody to open it.
The labels of the workload's selector get other values. So no Service, autoscaler or disruption
budget counts these pods. A NetworkPolicy that selects the workload's pods is repeated for them:
the new version must not reach more than the old one.

`canary_of` is for pods that get requests. They have the labels of the workload's pods and one more.
So Services, policies and disruption budgets select them as well. The selectors of both Deployments
overlap, and yet neither takes the other's pods: a ReplicaSet has its pods by a pod-template-hash of
its own, and a Deployment adopts no ReplicaSet that has an owner (k8s.io/kubernetes,
pkg/controller/controller_ref_manager.go).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from release.cluster.kubectl import Cluster
from release.cluster.overlay import (
    CANARY,
    TRACK,
    Workload,
    dump_manifests,
    load_manifests,
    selector_of,
)
from training.common.errors import ClusterError, ReleaseError

# What a pod needs to start, in the order in which it must exist.
PREREQUISITES = ("Namespace", "ServiceAccount", "Secret", "ConfigMap", "PersistentVolumeClaim")
# The longest value of a label, and the longest name of a pod's owner.
LONGEST_NAME = 63


@dataclass(frozen=True)
class Variant:
    """A second Deployment of a workload, with what belongs to it.

    Attributes:
        workload: the pods of the variant.
        prerequisites: objects of the render that its pods need; they stay.
        objects: the variant's own objects; they are deleted after use.
    """

    workload: Workload
    prerequisites: list[dict[str, Any]]
    objects: list[dict[str, Any]]

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        labels: dict[str, str] = self._deployment["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def selector(self) -> dict[str, str]:
        """The labels by which the Deployment selects its pods."""
        labels: dict[str, str] = self._deployment["spec"]["selector"]["matchLabels"]
        return labels

    @property
    def _deployment(self) -> dict[str, Any]:
        return next(each for each in self.objects if each["kind"] == "Deployment")

    def with_replicas(self, replicas: int) -> Variant:
        """The same variant of so many pods."""
        objects = copy.deepcopy(self.objects)
        for resource in objects:
            if resource["kind"] == "Deployment":
                resource["spec"]["replicas"] = replicas
        return replace(self, objects=objects)

    def with_object(self, resource: dict[str, Any]) -> Variant:
        """The same variant with one more object of its own."""
        return replace(self, objects=[resource, *self.objects])

    @property
    def manifests(self) -> str:
        """Everything that is applied."""
        return dump_manifests([*self.prerequisites, *self.objects])

    @property
    def own_manifests(self) -> str:
        """What is deleted."""
        return dump_manifests(self.objects)


def variant_of(render: str, workload: Workload, suffix: str) -> Variant:
    """The variant `<name>-<suffix>` of a workload, of one pod.

    Raises:
        ReleaseError: a name would be too long.
    """
    objects = load_manifests(render)
    deployment = copy.deepcopy(_deployment_in(objects, workload))
    template, spec = deployment["spec"]["template"], deployment["spec"]
    before = dict(template["metadata"].get("labels") or {})
    changed = {
        key: _suffixed(value, suffix) for key, value in spec["selector"]["matchLabels"].items()
    }
    name = _suffixed(workload.name, suffix)
    deployment["metadata"] = _metadata(deployment, name, changed)
    template["metadata"]["labels"] = {**before, **changed}
    spec["selector"] = {"matchLabels": changed}
    spec["replicas"] = 1
    # The constraints count the pods of the workload, which these are not.
    template["spec"].pop("topologySpreadConstraints", None)
    policies = [
        _policy_for(policy, changed, suffix)
        for policy in objects
        if policy["kind"] == "NetworkPolicy" and _selects(policy["spec"]["podSelector"], before)
    ]
    return Variant(
        replace(workload, name=name, selector=selector_of(changed)),
        _prerequisites(objects),
        [*policies, deployment],
    )


def canary_of(render: str, workload: Workload) -> Variant:
    """The canary `<name>-canary` of a workload, of one pod that gets requests as the others do.

    Raises:
        ReleaseError: no Service of the render selects its pods, or a name would be too long.
    """
    objects = load_manifests(render)
    deployment = copy.deepcopy(_deployment_in(objects, workload))
    template, spec = deployment["spec"]["template"], deployment["spec"]
    own = {TRACK: CANARY}
    name = _suffixed(workload.name, CANARY)
    deployment["metadata"] = _metadata(deployment, name, own)
    template["metadata"]["labels"] = {**(template["metadata"].get("labels") or {}), **own}
    selector = {**spec["selector"]["matchLabels"], **own}
    spec["selector"], spec["replicas"] = {"matchLabels": selector}, 1
    if not any(_is_service_of(each, template["metadata"]["labels"]) for each in objects):
        raise ReleaseError(
            f"no Service of the overlay selects the pods of a canary, whose labels are those of "
            f"{workload.name} and {TRACK}: {CANARY}: release without --canary"
        )
    return Variant(
        replace(workload, name=name, selector=selector_of(selector)),
        _prerequisites(objects),
        [deployment],
    )


def _prerequisites(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [resource for kind in PREREQUISITES for resource in objects if resource["kind"] == kind]


def refuse_endpoints(cluster: Cluster, variant: Variant, render: str) -> None:
    """Refuse a variant that a Service would send requests to.

    Raises:
        ReleaseError: a Service of the render, or of the namespace, selects its pods.
    """
    services = [each for each in load_manifests(render) if each["kind"] == "Service"]
    # Without the right to list them, those of the render must do.
    with suppress(ClusterError):
        services += cluster.get_all("services", variant.workload.namespace)
    labels = variant.labels
    for service in services:
        selector = service["spec"].get("selector")
        if selector and _contains(labels, selector):
            name = service["metadata"]["name"]
            raise ReleaseError(
                f"Service {name} selects pods by {selector}, so callers would get answers of a pod "
                "that was not asked first: let it select a label of the Deployment's selector"
            )


def service_of(render: str, workload: Workload) -> dict[str, Any] | None:
    """The first Service of the render that selects the workload's pods; None if there is none."""
    objects = load_manifests(render)
    template = _deployment_in(objects, workload)["spec"]["template"]
    labels = template["metadata"].get("labels") or {}
    return next((each for each in objects if _is_service_of(each, labels)), None)


def _is_service_of(resource: dict[str, Any], labels: dict[str, str]) -> bool:
    if resource["kind"] != "Service":
        return False
    selector = resource["spec"].get("selector")
    return bool(selector) and _contains(labels, selector)


def takes_one_more_pod(render: str, workload: Workload) -> bool:
    """Whether the Deployment's strategy starts a new pod before it ends an old one.

    If it does not, the nodes perhaps have no room for one more, such as a second GPU.
    """
    strategy = _deployment_in(load_manifests(render), workload)["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return False
    return str((strategy.get("rollingUpdate") or {}).get("maxSurge", "25%")) not in ("0", "0%")


def _deployment_in(objects: Iterable[dict[str, Any]], workload: Workload) -> dict[str, Any]:
    return next(
        resource
        for resource in objects
        if resource["kind"] == "Deployment" and resource["metadata"]["name"] == workload.name
    )


def _suffixed(value: str, suffix: str) -> str:
    name = f"{value}-{suffix}"
    if len(name) > LONGEST_NAME:
        raise ReleaseError(
            f"{name} is longer than {LONGEST_NAME} characters: give the Deployment and the labels "
            "of its selector shorter names"
        )
    return name


def _metadata(resource: dict[str, Any], name: str, labels: dict[str, str]) -> dict[str, Any]:
    metadata = resource["metadata"]
    own = {"name": name, "labels": {**(metadata.get("labels") or {}), **labels}}
    return {**own, "namespace": metadata["namespace"]} if "namespace" in metadata else own


def _policy_for(policy: dict[str, Any], labels: dict[str, str], suffix: str) -> dict[str, Any]:
    """A NetworkPolicy that allows the variant's pods what `policy` allows the workload's."""
    content = copy.deepcopy(policy)
    name = _suffixed(policy["metadata"]["name"], suffix)
    content["metadata"] = _metadata(policy, name, labels)
    content["spec"]["podSelector"] = {"matchLabels": labels}
    return content


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; one with expressions counts as if it did."""
    return _contains(labels, selector.get("matchLabels") or {})


def _contains(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
