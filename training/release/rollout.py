"""What a release does in the cluster: save, apply, wait, ask every pod, watch, put back."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from service.classifier import GoldenMismatchError
from training.cluster import Cluster
from training.errors import ClusterError, ClusterUnreachableError, ReleaseError, VerifyError
from training.release.overlay import Workload, objects, written
from training.release.records import Previous, Record, Records
from training.release.watch import Sample, read_sample, trouble
from training.verify import VERSION, Service, verify_service

POLL_SECONDS = 2.0
SAMPLE_SECONDS = 5.0
# A cluster that does not answer for so long, once something was applied, is given up.
PATIENCE_SECONDS = 120.0
ATTEMPTS = 3
# Of a Deployment whose controller says nothing at all; else its progressDeadlineSeconds counts.
ROLLOUT_SECONDS = 1800.0
MAX_METRICS_BYTES = 8 * 2**20
# What the API server adds; applied again it would be refused, or be ours by mistake.
SERVERS_OWN = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
)
SERVERS_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
)

Say = Callable[[str], None]


class Pods:
    """The pods of a workload, asked one by one."""

    def __init__(self, cluster: Cluster, workload: Workload, key: str | None) -> None:
        self.cluster = cluster
        self.workload = workload
        self.key = key

    def names(self) -> list[str]:
        """Those that are there to stay."""
        found = self.cluster.list("pods", self.workload.namespace, self.workload.selector)
        return sorted(
            one["metadata"]["name"]
            for one in found
            if "deletionTimestamp" not in one["metadata"]
            and one.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        )

    def restarts(self) -> dict[str, int]:
        """How often the containers of each were started anew."""
        found = self.cluster.list("pods", self.workload.namespace, self.workload.selector)
        return {
            one["metadata"]["name"]: sum(
                status.get("restartCount", 0)
                for status in one.get("status", {}).get("containerStatuses") or []
            )
            for one in found
        }

    def ask_each(self, question: Callable[[str], Any]) -> dict[str, Any]:
        """What `question` finds at the address of every pod; one that left meanwhile is no fault.

        Raises:
            ReleaseError: no pod is there.
            ClusterError, VerifyError: a pod that is there could not be asked three times.
            GoldenMismatchError: it answers otherwise.
        """
        answers = {}
        for name in self.names():
            with suppress(_GoneError):
                answers[name] = self._ask(name, question)
        if not answers:
            raise ReleaseError(
                f"no pod of {self.workload.name} is there in {self.workload.namespace}"
            )
        return answers

    def versions(self) -> dict[str, str]:
        """What each says at `/info` that it serves."""

        def version(address: str) -> str:
            found = Service(address, self.key).ask("/info").get("version")
            if not isinstance(found, str) or not VERSION.fullmatch(found):
                raise VerifyError(f"{address}/info is not Whetstone's")
            return found

        return self.ask_each(version)

    def samples(self) -> dict[str, Sample]:
        """The counters of each."""
        return self.ask_each(_sample)

    def _ask(self, name: str, question: Callable[[str], Any]) -> Any:
        end = time.monotonic() + self.cluster.patience
        attempt = 0
        while True:
            attempt += 1
            try:
                with self.cluster.forward(
                    self.workload.namespace, name, self.workload.port
                ) as address:
                    return question(address)
            except (ClusterError, VerifyError, OSError) as error:
                if name not in self.names():
                    raise _GoneError from None
                away = isinstance(error, ClusterUnreachableError) and time.monotonic() < end
                if attempt >= ATTEMPTS and not away:
                    raise VerifyError(f"pod {name}: {error}") from None
                time.sleep(POLL_SECONDS)
            except GoldenMismatchError as error:
                raise GoldenMismatchError(f"pod {name}: {error}") from None


class _GoneError(Exception):
    """The pod was deleted while it was asked."""


def _sample(address: str) -> Sample:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:  # noqa: S310 - ours
        page = answer.read(MAX_METRICS_BYTES)
    try:
        return read_sample(page.decode())
    except ValueError:
        raise VerifyError(f"{address}/metrics is not Prometheus'") from None


def running_version(pods: Pods) -> str | None:
    """The one version that all pods serve; None where nothing is deployed.

    Raises:
        ReleaseError: a rollout is under way, or pods serve several versions.
        ClusterError, VerifyError: a pod cannot be asked.
    """
    one = pods.cluster.get("deployment", pods.workload.name, pods.workload.namespace)
    if one is None:
        return None
    settled, how = progress_of(one)
    if not settled:
        raise ReleaseError(
            f"a rollout of {pods.workload.name} in {pods.workload.namespace} is under way or stuck "
            f"({how}): wait for it, or undo it (whetstone rollback, kubectl rollout undo)"
        )
    versions = pods.versions()
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise ReleaseError(f"the pods serve several versions ({told}): let a rollout end first")
    return next(iter(versions.values()))


def save_previous(
    cluster: Cluster, records: Records, record: Record, render: str, workload: Workload
) -> Previous:
    """What is to come back if the release fails; written beside the record.

    The render of the last release of this overlay, if its image is the one that runs; else the
    objects as they are. What the release will create is noted, to be deleted.
    """
    live = cluster.live(render)
    there = {identity(one) for one in live}
    created = [
        {"apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": _named(one)}
        for one in objects(render)
        if identity(one) not in there
    ]
    deployment = cluster.get("deployment", workload.name, workload.namespace)
    image = None if deployment is None else image_of(deployment)
    common = {"image": image, "version": record.champion_version, "created": created}
    kept = [one for one in live if one["kind"] not in ("Secret", "Namespace")]
    if deployment is None and not kept:
        return Previous(kind="nothing", **{**common, "version": None})
    for earlier in reversed(records.of(record.overlay)):
        if earlier.outcome == "released" and earlier.image == image and earlier.render:
            records.read_render(earlier.render)
            return Previous(kind="release", release=earlier.id, render=earlier.render, **common)
    scaled = any(one["kind"] == "HorizontalPodAutoscaler" for one in objects(render))
    content = written([_as_applied(one, scaled) for one in kept])
    saved = records.save_render(f"{record.id}.previous.yaml", content)
    return Previous(kind="live", render=saved, **common)


def wait_for_rollout(pods: Pods, say: Say) -> None:
    """Until every pod is of the new template and available.

    Raises:
        ReleaseError: the Deployment's deadline passed; the sentence says what its pods wait for.
        ClusterUnreachableError: the cluster did not answer for as long as it has patience.
    """
    workload = pods.workload
    end = time.monotonic() + ROLLOUT_SECONDS
    while True:
        one = pods.cluster.get("deployment", workload.name, workload.namespace)
        if one is None:
            raise ReleaseError(f"the Deployment {workload.name} is gone from {workload.namespace}")
        done, how = progress_of(one)
        if done:
            return
        failed = _condition(one, "Progressing")
        current = one["status"].get("observedGeneration", 0) >= one["metadata"]["generation"]
        if current and failed.get("reason") == "ProgressDeadlineExceeded":
            raise ReleaseError(f"the rollout did not get on in time: {how}{_why(pods)}")
        if time.monotonic() > end:
            raise ReleaseError(f"the rollout did not end: {how}{_why(pods)}")
        say(how)
        time.sleep(POLL_SECONDS)


def progress_of(deployment: dict[str, Any]) -> tuple[bool, str]:
    """Whether a Deployment's rollout is complete, as `kubectl rollout status` counts; and how far.

    See k8s.io/kubectl, pkg/polymorphichelpers/rollout_status.go, and the API reference's
    DeploymentStatus.
    """
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False, "the cluster has not seen it yet"
    wanted = deployment["spec"].get("replicas", 1)
    new, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    if new < wanted:
        return False, f"{new} of {wanted} new pods are started"
    if total > new:
        return False, f"{total - new} old pods are still there"
    if available < new:
        return False, f"{available} of {new} new pods are available"
    return True, f"{new} pods are available"


def check_pods(pods: Pods, version: str, package: str | None, key_file: Any, say: Say) -> list[str]:
    """Every pod serves `version`, and answers the golden texts of `package` as recorded.

    Raises:
        ReleaseError: a pod serves something else.
        GoldenMismatchError, VerifyError, ClusterError: a pod answers otherwise, or not at all.
    """
    found = pods.versions()
    for name, serves in found.items():
        if serves != version:
            raise ReleaseError(f"pod {name} serves version {serves}, not {version}")
    if package is not None:
        say(f"asking {len(found)} pods the golden texts")
        pods.ask_each(lambda address: verify_service(address, package, key_file))
    return sorted(found)


def watch_pods(pods: Pods, before: Sample, seconds: float, say: Say) -> dict[str, Any]:
    """Look at the pods' metrics for some seconds; what was seen.

    Raises:
        ReleaseError: errors, refusals or p99 went up, a container was restarted, a pod is gone.
    """
    first = pods.samples()
    restarts = pods.restarts()
    end = time.monotonic() + seconds
    seen = Sample()
    while True:
        time.sleep(max(0.0, min(SAMPLE_SECONDS, end - time.monotonic())))
        latest = pods.samples()
        seen = sum(
            (one.since(first.setdefault(name, Sample())) for name, one in latest.items()), Sample()
        )
        reason = trouble(seen, before)
        if reason is not None:
            raise ReleaseError(f"while it was watched, {reason}")
        for name, count in pods.restarts().items():
            if count > restarts.setdefault(name, 0):
                raise ReleaseError(f"while it was watched, pod {name} was restarted")
        left = end - time.monotonic()
        if left <= 0:
            break
        say(f"{seen.requests:,} requests, {seen.errors} errors; {left:.0f} s left")
    one = pods.cluster.get("deployment", pods.workload.name, pods.workload.namespace)
    if one is None or one.get("status", {}).get("unavailableReplicas"):
        raise ReleaseError("while it was watched, pods became unavailable")
    return {
        "seconds": seconds,
        "requests": seen.requests,
        "errors": seen.errors,
        "refused": round(seen.refused, 4),
        "p99_ms": None if seen.p99 is None else round(seen.p99 * 1000, 1),
        "p99_ms_before": None if before.p99 is None else round(before.p99 * 1000, 1),
    }


def put_back(cluster: Cluster, records: Records, record: Record, pods: Pods, say: Say) -> None:
    """Make the cluster what it was before the release, and wait until it answers so.

    Raises:
        WhetstoneError: it does not; the release stays unfinished, and the next run tries again.
    """
    previous = record.previous
    if previous is None:
        return
    if previous.render is not None:
        say("applying what ran before")
        manifests = records.read_render(previous.render)
        cluster.apply(manifests)
        if previous.image is not None:
            wait_for_rollout(pods, say)
            if previous.version is not None:
                check_pods(pods, previous.version, None, None, say)
    if previous.created:
        say("deleting what the release created")
        _delete_created(cluster, previous.created, pods.workload.namespace)


def identity(one: dict[str, Any]) -> tuple[str, str, str]:
    """Group and kind, namespace, and name of an object; the version of an API may differ."""
    group = one["apiVersion"].rpartition("/")[0]
    meta = one["metadata"]
    return f"{group}/{one['kind']}", meta.get("namespace", ""), meta["name"]


def image_of(deployment: dict[str, Any]) -> str | None:
    """The image of a Deployment's first container."""
    image: str | None = deployment["spec"]["template"]["spec"]["containers"][0].get("image")
    return image


def _named(one: dict[str, Any]) -> dict[str, str]:
    meta = one["metadata"]
    return {key: meta[key] for key in ("name", "namespace") if key in meta}


def _as_applied(one: dict[str, Any], scaled: bool) -> dict[str, Any]:
    """A live object as it could be applied again.

    Args:
        scaled: by an autoscaler; then the number of replicas is its own, and an apply without
            them after one with them would set them to 1.
    """
    found = {key: value for key, value in one.items() if key != "status"}
    meta = {key: value for key, value in one["metadata"].items() if key not in SERVERS_OWN}
    annotations = {
        key: value
        for key, value in (meta.pop("annotations", None) or {}).items()
        if key not in SERVERS_ANNOTATIONS
    }
    found["metadata"] = {**meta, **({"annotations": annotations} if annotations else {})}
    spec = dict(found.get("spec") or {})
    left_out = {"Service": ("clusterIP", "clusterIPs"), "Namespace": ("finalizers",)}
    for key in left_out.get(one["kind"], ()):
        spec.pop(key, None)
    if one["kind"] == "Deployment" and scaled:
        spec.pop("replicas", None)
    if "spec" in found:
        found["spec"] = spec
    if one["kind"] == "ServiceAccount":
        found.pop("secrets", None)
    return found


def _delete_created(cluster: Cluster, created: list[dict[str, Any]], namespace: str) -> None:
    """Delete what was created; a namespace only where nobody else has put something into it."""
    inner = [one for one in created if one["kind"] != "Namespace"]
    if inner:
        cluster.delete(written(inner))
    spaces = [one for one in created if one["kind"] == "Namespace"]
    if spaces:
        kinds = "configmaps,secrets,services,deployments,statefulsets,persistentvolumeclaims"
        others = [
            one for one in cluster.list(kinds, namespace) if one["metadata"]["name"] not in OWN
        ]
        if not others:
            cluster.delete(written(spaces))


# What Kubernetes itself puts into every namespace.
OWN = ("kube-root-ca.crt",)


def _condition(one: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = one.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), {})


def _why(pods: Pods) -> str:
    """What a pod that is not ready says it waits for, with a comma before it."""
    with ExitStack() as stack:
        stack.enter_context(suppress(ClusterError))
        for one in pods.cluster.list("pods", pods.workload.namespace, pods.workload.selector):
            name = one["metadata"]["name"]
            for status in one.get("status", {}).get("containerStatuses") or []:
                waiting = status.get("state", {}).get("waiting")
                if waiting and waiting.get("reason") != "ContainerCreating":
                    said = waiting.get("message") or ""
                    return f"; pod {name}: {waiting['reason']} {said}".rstrip()[:300]
                if not status.get("ready") and status.get("restartCount"):
                    return f"; pod {name} was restarted {status['restartCount']} times"
            unscheduled = _condition(one, "PodScheduled")
            if unscheduled.get("status") == "False":
                said = unscheduled.get("message") or unscheduled.get("reason")
                return f"; pod {name}: {said}"[:300]
    return ""
