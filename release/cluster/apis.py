"""Whether the cluster knows what a render is made of, asked before anything is built or applied.

kubectl would refuse an unknown kind after the image was built, in words about REST mappings. An
autoscaler without metrics is refused by nobody, and never adds a pod.
"""

from __future__ import annotations

from typing import Any

from release.cluster.kubectl import Cluster
from release.cluster.overlay import load_manifests
from training.common.errors import ClusterError, ClusterUnreachableError, ReleaseError

# Of pods' CPU and memory; metrics-server has it.
METRICS = "metrics.k8s.io/v1beta1"
RESOURCE_TRIGGERS = ("cpu", "memory")


def check_apis(cluster: Cluster, render: str) -> list[str]:
    """Check that the cluster knows every kind, and has the metrics that an autoscaler needs.

    Returns:
        Warnings: an autoscaler that will add no pods, and what could not be looked up.

    Raises:
        ReleaseError: a kind is unknown, or Argo Rollouts has the pods; the message says what to do.
    """
    objects = load_manifests(render)
    _refuse_rollouts(objects)
    try:
        _refuse_unknown(cluster, objects)
    except ClusterError as error:
        return [f"whether the cluster knows every kind of the overlay is not known: {error}"]
    return [
        f"{each['kind']} {each['metadata']['name']} adds no pods, because the cluster {lack}: "
        "install metrics-server, or mend it"
        for each in objects
        if _needs_metrics(each) and (lack := _lack_of_metrics(cluster))
    ]


def _refuse_rollouts(objects: list[dict[str, Any]]) -> None:
    for resource in objects:
        workload = (resource.get("spec") or {}).get("workloadRef")
        if resource["kind"] == "Rollout" and workload:
            raise ReleaseError(
                f"Argo Rollouts has the pods of {workload['kind']} {workload['name']}, and this "
                "command rolls out Deployments: apply the overlay with kubectl apply -k, or take "
                "the component argo-rollouts out of it"
            )


def _refuse_unknown(cluster: Cluster, objects: list[dict[str, Any]]) -> None:
    """Refuse kinds that the cluster does not know.

    Groups without a dot are Kubernetes' own, such as `apps`.
    """
    versions = {each["apiVersion"] for each in objects}
    asked = sorted(each for each in versions if "." in each.partition("/")[0])
    known = {version: cluster.kinds_of(version) or set() for version in asked}
    unknown = dict.fromkeys(
        f"{each['kind']} ({each['apiVersion']})"
        for each in objects
        if each["kind"] not in known.get(each["apiVersion"], {each["kind"]})
    )
    if unknown:
        raise ReleaseError(
            f"the cluster does not know {', '.join(unknown)}: install what defines it, or take its "
            "component out of the overlay, and release again"
        )


def _needs_metrics(resource: dict[str, Any]) -> bool:
    """Whether it is an autoscaler, of Kubernetes or of KEDA, by CPU or memory."""
    spec = resource.get("spec") or {}
    if resource["kind"] == "HorizontalPodAutoscaler":
        kinds = {each["type"] for each in spec.get("metrics") or []}
        return bool(kinds & {"Resource", "ContainerResource"})
    if resource["kind"] == "ScaledObject":
        return any(each["type"] in RESOURCE_TRIGGERS for each in spec["triggers"])
    return False


def _lack_of_metrics(cluster: Cluster) -> str | None:
    """What is wrong with the cluster's metrics; None if nothing is, or if it may not be asked."""
    try:
        return None if cluster.kinds_of(METRICS) else "has no metrics of pods' CPU and memory"
    except ClusterUnreachableError:
        # The API is registered, and its server does not answer.
        return "does not answer for metrics of pods' CPU and memory"
    except ClusterError:
        return None
