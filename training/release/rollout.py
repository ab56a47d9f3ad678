"""What a release does in the cluster: save, apply, wait, ask every pod, watch, put back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

from service.classifier import GoldenMismatchError
from training.cluster import Cluster
from training.errors import ClusterError, ClusterUnreachableError, ReleaseError, VerifyError
from training.release.overlay import Workload, objects, written
from training.release.records import Previous, Record, Records
from training.release.watch import Sample, between, read_sample, trouble
from training.verify import VERSION, Service, verify_service

POLL_SECONDS = 2.0
SAMPLE_SECONDS = 5.0
# A cluster that does not answer for so long, once something was applied, is given up.
PATIENCE_SECONDS = 120.0
# How long a pod that is there and does not answer is asked again.
ATTEMPT_SECONDS = 20.0
# A rollout may be passing, such as an autoscaler's: so long it is waited for.
SETTLE_SECONDS = 60.0
# The controller leaves what it said of the rollout before standing for a moment.
DEADLINE_HOLDS_SECONDS = 15.0
# What the API server puts where a Deployment names no progressDeadlineSeconds.
DEADLINE_SECONDS = 600.0
# Of a Deployment whose controller says nothing at all; else its progressDeadlineSeconds counts.
ROLLOUT_SECONDS = 1800.0
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
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
SERVERS_ANNOTATIONS = (
    LAST_APPLIED,
    "deployment.kubernetes.io/revision",
)

Say = Callable[[str], None]


class Pods:
    """The pods of a workload, asked one by one."""

    def __init__(self, cluster: Cluster, workload: Workload, key: str | None) -> None:
        self.cluster = cluster
        self.workload = workload
        self.key = key

    def present(self) -> list[str]:
        """Those that are there to stay, whether they are ready or not."""
        return sorted(one["metadata"]["name"] for one in self._pods())

    def ready(self) -> list[str]:
        """Those of them that get requests; an autoscaler may have started others just now."""
        return sorted(one["metadata"]["name"] for one in self._pods() if _is(one, "Ready"))

    def starting(self) -> list[str]:
        """Those that have a node and get no requests: not yet, or no more."""
        return sorted(
            one["metadata"]["name"]
            for one in self._pods()
            if _is(one, "PodScheduled") and not _is(one, "Ready")
        )

    def _pods(self) -> list[dict[str, Any]]:
        return [
            one
            for one in self.cluster.list("pods", self.workload.namespace, self.workload.selector)
            if "deletionTimestamp" not in one["metadata"]
            and one.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            and not _lost(one)
        ]

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

    def ask_each(
        self, question: Callable[[str], Any], names: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """What `question` finds at the address of each pod; one that left meanwhile is no fault.

        Args:
            names: which pods; else those that are ready.

        Raises:
            ReleaseError: no pod is there.
            ClusterError, VerifyError: a pod that is there could not be asked for some time.
            GoldenMismatchError: it answers otherwise.
        """
        answers = {}
        for name in self.ready() if names is None else names:
            with suppress(_GoneError):
                answers[name] = self._ask(name, question)
        if not answers and names is None:
            raise ReleaseError(
                f"no pod of {self.workload.name} is ready in {self.workload.namespace}"
            )
        return answers

    def versions(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """What each says at `/info` that it serves."""

        def version(address: str) -> str:
            found = Service(address, self.key).ask("/info").get("version")
            if not isinstance(found, str) or not VERSION.fullmatch(found):
                raise VerifyError(f"{address}/info is not Whetstone's")
            return found

        return self.ask_each(version, names)

    def samples(self) -> dict[str, Sample]:
        """The counters of each."""

        def sample(address: str) -> Sample:
            page = Service(address, self.key).read("/metrics")
            try:
                return read_sample(page.decode())
            except ValueError:
                raise VerifyError(f"{address}/metrics is not Prometheus'") from None

        return self.ask_each(sample)

    def _ask(self, name: str, question: Callable[[str], Any]) -> Any:
        began = time.monotonic()
        while True:
            try:
                with self.cluster.forward(
                    self.workload.namespace, name, self.workload.port
                ) as address:
                    return question(address)
            except (ClusterError, VerifyError, OSError) as error:
                if name not in self.present():
                    raise _GoneError from None
                away = isinstance(error, ClusterUnreachableError)
                limit = max(ATTEMPT_SECONDS, self.cluster.patience if away else 0.0)
                if time.monotonic() - began > limit:
                    raise VerifyError(f"pod {name}: {error}") from None
                time.sleep(POLL_SECONDS)
            except GoldenMismatchError as error:
                raise GoldenMismatchError(f"pod {name}: {error}") from None


class _GoneError(Exception):
    """The pod was deleted while it was asked."""


def running_version(pods: Pods) -> str | None:
    """The one version that all pods serve; None where nothing is deployed, or none is available.

    Raises:
        ReleaseError: a rollout is under way, or pods serve several versions.
        ClusterError, VerifyError: a pod cannot be asked.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        one = pods.cluster.get("deployment", pods.workload.name, pods.workload.namespace)
        if one is None or not one.get("status", {}).get("availableReplicas"):
            return None
        settled, how = progress_of(one)
        if settled:
            break
        if time.monotonic() > end:
            raise ReleaseError(
                f"a rollout of {pods.workload.name} in {pods.workload.namespace} is under way or "
                f"stuck ({how}): wait for it, or undo it (whetstone rollback where a release was "
                "abandoned, else kubectl rollout undo)"
            )
        time.sleep(POLL_SECONDS)
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
    # An object without a namespace lands in that of the context.
    there = {identity(one) for one in live}
    there |= {(kind, "", name) for kind, _, name in there}
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
        if earlier.released_in(record.context) and earlier.image == image and earlier.render:
            # Only if nobody has changed anything by hand since.
            if not cluster.diff(records.read_render(earlier.render)):
                return Previous(kind="release", release=earlier.id, render=earlier.render, **common)
            break
    counted = any(
        "replicas" in one["spec"] for one in objects(render) if one["kind"] == "Deployment"
    )
    content = written([_as_applied(one, counted) for one in kept])
    saved = records.save_render(f"{record.id}.previous.yaml", content)
    return Previous(kind="live", render=saved, **common)


def apply(cluster: Cluster, manifests: str, workload: Workload) -> None:
    """Apply, with the number of replicas left as it is where `manifests` do not say one.

    Where it was applied before and is no more, kubectl would set it to 1: see "Migrating
    Deployments and StatefulSets to horizontal autoscaling" in Kubernetes' documentation.
    """
    one = cluster.get("deployment", workload.name, workload.namespace)
    found = objects(manifests)
    ours = [
        other
        for other in found
        if other["kind"] == "Deployment" and other["metadata"]["name"] == workload.name
    ]
    if one is not None and ours and "replicas" not in ours[0]["spec"]:
        annotations = one["metadata"].get("annotations") or {}
        applied = json.loads(annotations.get(LAST_APPLIED) or "{}")
        if "replicas" in (applied.get("spec") or {}):
            ours[0]["spec"]["replicas"] = one["spec"]["replicas"]
            manifests = written(found)
    cluster.apply(manifests)


def wait_for_rollout(pods: Pods, say: Say) -> None:
    """Until every pod is of the new template and ready, but for those that no node takes.

    Of a rollout that was complete once these are the autoscaler's, and no fault of the release.

    Raises:
        ReleaseError: the Deployment's deadline passed, for the rollout or for a pod that came after
            it or broke since; the sentence says what it waits for.
        ClusterUnreachableError: the cluster did not answer for as long as it has patience.
    """
    workload = pods.workload
    end = time.monotonic() + ROLLOUT_SECONDS
    exceeded: float | None = None
    since: dict[str, float] = {}
    while True:
        one = pods.cluster.get("deployment", workload.name, workload.namespace)
        if one is None:
            raise ReleaseError(f"the Deployment {workload.name} is gone from {workload.namespace}")
        done, how = progress_of(one)
        if done:
            at = time.monotonic()
            since = {name: since.get(name, at) for name in pods.starting()}
            if not since:
                return
            deadline = one["spec"].get("progressDeadlineSeconds", DEADLINE_SECONDS)
            for name, began in since.items():
                if at - began >= deadline:
                    raise ReleaseError(f"pod {name} was not ready in time{_why(pods, one)}")
            how = f"{len(since)} pods are not ready yet"
        failed = condition_of(one, "Progressing")
        current = one["status"].get("observedGeneration", 0) >= one["metadata"]["generation"]
        if current and failed.get("reason") == "ProgressDeadlineExceeded":
            exceeded = exceeded or time.monotonic()
            if time.monotonic() - exceeded >= DEADLINE_HOLDS_SECONDS:
                raise ReleaseError(f"the rollout did not get on in time: {how}{_why(pods, one)}")
        else:
            exceeded = None
        if time.monotonic() > end:
            raise ReleaseError(f"the rollout did not end: {how}{_why(pods, one)}")
        say(how)
        time.sleep(POLL_SECONDS)


def progress_of(deployment: dict[str, Any]) -> tuple[bool, str]:
    """Whether a Deployment's rollout is complete, as `kubectl rollout status` counts; and how far.

    One that was complete stays so: all pods of this template were available at once, and the
    controller says NewReplicaSetAvailable until the next template. What is not available then was
    asked for by an autoscaler, or broke since. See k8s.io/kubectl,
    pkg/polymorphichelpers/rollout_status.go, and "Complete Deployment" in Kubernetes' pages.
    """
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False, "the cluster has not seen it yet"
    wanted = deployment["spec"].get("replicas", 1)
    new, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    was = condition_of(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    # With none available it is said of the template before, whose pods a Recreate has ended.
    if was and total == new and available:
        return True, f"{available} of {new} pods are available"
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
    asked: set[str] = set()
    while True:
        # An autoscaler may start pods meanwhile: until all that are there were asked.
        wait_for_rollout(pods, say)
        there = pods.ready()
        fresh = [name for name in there if name not in asked]
        if not fresh:
            break
        say(f"asking {len(fresh)} pods")
        for name, serves in pods.versions(fresh).items():
            if serves != version:
                raise ReleaseError(f"pod {name} serves version {serves}, not {version}")
        if package is not None:
            pods.ask_each(lambda address: verify_service(address, package, key_file), fresh)
        asked |= set(fresh)
    if not there:
        raise ReleaseError(f"no pod of {pods.workload.name} is ready in {pods.workload.namespace}")
    return there


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
        seen = between(first, latest)
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
    wait_for_rollout(pods, say)
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
        apply(cluster, records.read_render(previous.render), pods.workload)
        # What served nobody before is not waited for.
        if previous.image is not None and previous.version is not None:
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


def _as_applied(one: dict[str, Any], counted: bool) -> dict[str, Any]:
    """A live object as it could be applied again.

    Args:
        counted: whether the release says how many replicas there are; else they are left alone.
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
    if one["kind"] == "Deployment" and not counted:
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
    for space in (one for one in created if one["kind"] == "Namespace"):
        try:
            others = [
                one["metadata"]["name"]
                for one in cluster.list(OTHERS, namespace)
                if one["metadata"]["name"] not in OWN
                and not {"ownerReferences", "deletionTimestamp"} & set(one["metadata"])
            ]
        except ClusterUnreachableError:
            raise
        except ClusterError:
            # Who may not look does not delete.
            return
        if not others:
            cluster.delete(written([space]))


# Of these one that is somebody else's keeps a namespace that the release has made.
OTHERS = (
    "pods,services,configmaps,secrets,persistentvolumeclaims,deployments,statefulsets,jobs,cronjobs"
)
# What Kubernetes itself puts into every namespace.
OWN = ("kube-root-ca.crt",)


def condition_of(one: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of an object; empty where it says nothing of it."""
    conditions = one.get("status", {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), {})


def _is(pod: dict[str, Any], kind: str) -> bool:
    return condition_of(pod, kind).get("status") == "True"


def _lost(pod: dict[str, Any]) -> bool:
    """Whether its node is gone; the pod is deleted some minutes after that.

    The node controller takes back Ready, and leaves ContainersReady as the kubelet has said it last
    (k8s.io/kubernetes, pkg/controller/util/node/controller_utils.go, MarkPodsNotReady). A kubelet
    says that of both only where a readiness gate is closed.
    """
    gated = condition_of(pod, "Ready").get("reason") == "ReadinessGatesNotReady"
    return _is(pod, "ContainersReady") and not _is(pod, "Ready") and not gated


def _why(pods: Pods, deployment: dict[str, Any]) -> str:
    """What a pod that is not ready waits for, or why none can be made, after a semicolon."""
    failure = condition_of(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        return f"; {failure.get('message') or failure.get('reason')}"[:300]
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
            unscheduled = condition_of(one, "PodScheduled")
            if unscheduled.get("status") == "False":
                said = unscheduled.get("message") or unscheduled.get("reason")
                return f"; pod {name}: {said}"[:300]
    return ""
