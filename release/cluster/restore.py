"""What ran before a release: it is saved first, and restored if the release fails."""

from __future__ import annotations

from typing import Any

from release.cluster.kubectl import LAST_APPLIED, Cluster
from release.cluster.overlay import Workload, dump_manifests, load_manifests
from release.cluster.pods import Pods, Report, image_of
from release.cluster.rollout import apply_manifests, check_pods
from release.image_name import ImageName
from release.records import Previous, Record, Records
from training.common.errors import ClusterError, ClusterUnreachableError

# Added by the API server. Applied again they would be refused, or be taken for the overlay's.
SERVER_METADATA = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
)
SERVER_ANNOTATIONS = (
    LAST_APPLIED,
    "deployment.kubernetes.io/revision",
)
SERVER_SPEC = {"Service": ("clusterIP", "clusterIPs"), "Namespace": ("finalizers",)}
# A namespace that the release created is kept if somebody else has such an object in it.
KINDS_IN_USE = (
    "pods,services,configmaps,secrets,persistentvolumeclaims,deployments,statefulsets,jobs,cronjobs"
)
# Kubernetes itself puts these objects into every namespace.
NAMES_IN_EVERY_NAMESPACE = ("kube-root-ca.crt",)


def save_previous(
    cluster: Cluster, records: Records, record: Record, render: str, workload: Workload
) -> Previous:
    """Save beside the record what is restored if the release fails.

    It is the render of the last release of this overlay, if the cluster still holds exactly that;
    else the objects as they are. Objects that the release will create are listed, to be deleted.
    """
    live = cluster.live(render)
    created = _objects_to_create(render, live)
    deployment = cluster.get("deployment", workload.name, workload.namespace)
    kept = [resource for resource in live if resource["kind"] not in ("Secret", "Namespace")]
    if deployment is None and not kept:
        return Previous(kind="nothing", created=created)
    previous = Previous(
        kind="live",
        image=None if deployment is None else image_of(deployment, workload.container),
        version=record.champion_version,
        created=created,
    )
    earlier = _last_release_of(records, record, previous.image)
    # Somebody may have changed an object by hand since.
    if earlier and earlier.render and not cluster.diff(records.read_render(earlier.render)):
        previous.kind, previous.release = "release", earlier.id
        previous.render = earlier.render
        return previous
    states_replicas = any(
        "replicas" in resource["spec"]
        for resource in load_manifests(render)
        if resource["kind"] == "Deployment"
    )
    content = dump_manifests([as_applied(resource, states_replicas) for resource in kept])
    previous.render = records.save_render(f"{record.id}.previous.yaml", content)
    return previous


def restore_previous(
    cluster: Cluster, records: Records, record: Record, pods: Pods, report: Report
) -> None:
    """Restore what ran before the release, and wait until every pod serves it.

    Raises:
        WhetstoneError: that failed; the release stays unfinished, and the next run tries again.
    """
    previous = record.previous
    if previous is None:
        return
    if previous.render is not None:
        report("applying what ran before")
        apply_manifests(cluster, records.read_render(previous.render), pods.workload)
        # A version that served nobody before is not waited for.
        if previous.image is not None and previous.version is not None:
            check_pods(pods, previous.version, None, None, report)
    if previous.created:
        report("deleting what the release created")
        _delete_created(cluster, previous.created, pods.workload.namespace)


def _identity(resource: dict[str, Any]) -> tuple[str, str, str]:
    """Group and kind, namespace, and name of an object, whatever the version of its API."""
    group = resource["apiVersion"].rpartition("/")[0]
    metadata = resource["metadata"]
    return f"{group}/{resource['kind']}", metadata.get("namespace", ""), metadata["name"]


def _objects_to_create(render: str, live: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects of `render` that do not exist, each by kind, name and namespace."""
    existing = {_identity(resource) for resource in live}
    # An object without a namespace is created in that of the context.
    existing |= {(kind, "", name) for kind, _, name in existing}
    return identities_of(
        [resource for resource in load_manifests(render) if _identity(resource) not in existing]
    )


def identities_of(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kind, name and namespace of objects, enough to delete them."""
    return [
        {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "metadata": {
                key: resource["metadata"][key]
                for key in ("name", "namespace")
                if key in resource["metadata"]
            },
        }
        for resource in objects
    ]


def _last_release_of(records: Records, record: Record, image: str | None) -> Record | None:
    """The last successful release of this overlay and image that has a render."""
    for earlier in reversed(records.of(record.overlay)):
        if not earlier.released_in(record.context) or not earlier.image or not earlier.render:
            continue
        if ImageName.parse(earlier.image).reference == image:
            return earlier
    return None


def as_applied(resource: dict[str, Any], states_replicas: bool) -> dict[str, Any]:
    """A live object as it could be applied again.

    Args:
        states_replicas: whether the release states the number of replicas; else it is left alone.
    """
    manifest = {key: value for key, value in resource.items() if key != "status"}
    metadata = {
        key: value for key, value in resource["metadata"].items() if key not in SERVER_METADATA
    }
    annotations = {
        key: value
        for key, value in (metadata.pop("annotations", None) or {}).items()
        if key not in SERVER_ANNOTATIONS
    }
    manifest["metadata"] = {**metadata, **({"annotations": annotations} if annotations else {})}
    spec = dict(manifest.get("spec") or {})
    for key in SERVER_SPEC.get(resource["kind"], ()):
        spec.pop(key, None)
    if resource["kind"] == "Deployment" and not states_replicas:
        spec.pop("replicas", None)
    if "spec" in manifest:
        manifest["spec"] = spec
    if resource["kind"] == "ServiceAccount":
        manifest.pop("secrets", None)
    return manifest


def _delete_created(cluster: Cluster, created: list[dict[str, Any]], namespace: str) -> None:
    """Delete the objects; a namespace only if nobody else has put something into it."""
    inner = [resource for resource in created if resource["kind"] != "Namespace"]
    if inner:
        cluster.delete(dump_manifests(inner))
    for resource in created:
        if resource["kind"] == "Namespace" and not _is_used(cluster, namespace):
            cluster.delete(dump_manifests([resource]))


def _is_used(cluster: Cluster, namespace: str) -> bool:
    """Whether somebody else has an object in a namespace, as far as that can be seen."""
    try:
        objects = cluster.get_all(KINDS_IN_USE, namespace)
    except ClusterUnreachableError:
        raise
    except ClusterError:
        # Without the right to look, nothing is deleted.
        return True
    return any(
        resource["metadata"]["name"] not in NAMES_IN_EVERY_NAMESPACE
        and not {"ownerReferences", "deletionTimestamp"} & set(resource["metadata"])
        for resource in objects
    )
