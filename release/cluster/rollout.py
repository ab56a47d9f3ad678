"""A rollout in the cluster: apply, wait, check every pod, watch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from release.cluster.crashes import CrashCounter
from release.cluster.health import (
    Baseline,
    Sample,
    describe_sample,
    find_trouble,
    total_since,
)
from release.cluster.kubectl import LAST_APPLIED, Cluster
from release.cluster.overlay import Workload, dump_manifests, load_manifests
from release.cluster.pods import Pods, Report, condition_of, explain_not_ready
from release.records import WatchSummary
from training.common.errors import ClusterError, ReleaseError, VerifyError
from training.registry.verify import verify_service

SAMPLE_SECONDS = 5.0
# Another rollout may end soon, such as an autoscaler's. It is waited for this long.
SETTLE_SECONDS = 60.0
# The controller leaves the condition of the rollout before in place for a moment.
DEADLINE_HOLDS_SECONDS = 15.0
# The API server's default for progressDeadlineSeconds.
DEADLINE_SECONDS = 600.0
# For a Deployment whose controller reports nothing at all; else progressDeadlineSeconds counts.
ROLLOUT_SECONDS = 1800.0


class RolloutProgress(NamedTuple):
    """Whether a rollout is complete, and how far it is."""

    complete: bool
    description: str


def running_version(pods: Pods) -> str | None:
    """The version that all pods serve; None if nothing is deployed, or no pod is available.

    Raises:
        ReleaseError: a rollout is in progress, or the pods serve several versions.
        ClusterError, VerifyError: a pod cannot be asked.
    """
    if not _wait_until_settled(pods):
        return None
    versions = pods.versions()
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise ReleaseError(f"the pods serve several versions ({listed}): let a rollout end first")
    return next(iter(versions.values()))


def known_running_version(pods: Pods) -> str | None:
    """The version that all pods serve; None if that cannot be determined."""
    try:
        return running_version(pods)
    except (ClusterError, VerifyError, ReleaseError):
        return None


def _wait_until_settled(pods: Pods) -> bool:
    """Wait until no rollout is in progress; whether any pod is available."""
    workload = pods.workload
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        deployment = pods.deployment()
        if deployment is None or not deployment.get("status", {}).get("availableReplicas"):
            return False
        progress = progress_of(deployment)
        if progress.complete:
            return True
        if time.monotonic() > end:
            raise ReleaseError(
                f"a rollout of {workload.name} in {workload.namespace} is in progress or stuck "
                f"({progress.description}): wait for it, or undo it (whetstone rollback where a "
                "release was abandoned, else kubectl rollout undo)"
            )
        pods.pause()


def refuse_paused(cluster: Cluster, workload: Workload) -> None:
    """Refuse to apply to a Deployment that somebody has paused: its rollout would never begin.

    Raises:
        ReleaseError: the Deployment is paused.
    """
    live = cluster.get("deployment", workload.name, workload.namespace)
    if live is not None and live["spec"].get("paused"):
        raise ReleaseError(
            f"the rollout of {workload.name} in {workload.namespace} is paused: resume it (kubectl "
            f"rollout resume deployment/{workload.name} --namespace {workload.namespace}), and try "
            "again"
        )


def apply_manifests(cluster: Cluster, manifests: str, workload: Workload) -> None:
    """Apply, and keep the number of replicas if `manifests` do not state one.

    If the number was applied before and is no longer stated, kubectl would set it to 1: see
    "Migrating Deployments and StatefulSets to horizontal autoscaling" in Kubernetes' documentation.
    """
    live = cluster.get("deployment", workload.name, workload.namespace)
    objects = load_manifests(manifests)
    deployments = [
        resource
        for resource in objects
        if resource["kind"] == "Deployment" and resource["metadata"]["name"] == workload.name
    ]
    if live is not None and deployments and "replicas" not in deployments[0]["spec"]:
        annotations = live["metadata"].get("annotations") or {}
        applied = json.loads(annotations.get(LAST_APPLIED) or "{}")
        if "replicas" in (applied.get("spec") or {}):
            deployments[0]["spec"]["replicas"] = live["spec"]["replicas"]
            manifests = dump_manifests(objects)
    cluster.apply(manifests)


def wait_for_rollout(pods: Pods, report: Report) -> None:
    """Return when every pod has the new template and is ready, except pods that no node takes.

    After a rollout was complete, pods without a node were started by the autoscaler, and are no
    fault of the release.

    Raises:
        ReleaseError: the Deployment's deadline passed, for the rollout or for a pod that started
            or failed after it, or a new pod crashed three times for the same reason; the message
            says what the pod waits for.
        ClusterUnreachableError: the cluster was unreachable for longer than its patience.
    """
    workload = pods.workload
    deadlines, crashes = _Deadlines(pods), CrashCounter(pods)
    while True:
        deployment = pods.deployment()
        if deployment is None:
            raise ReleaseError(
                f"the Deployment {workload.name} was deleted from {workload.namespace}"
            )
        progress = progress_of(deployment)
        description = progress.description
        if progress.complete:
            starting = deadlines.check_starting_pods(deployment)
            if not starting:
                return
            description = f"{starting} pods are not ready yet"
        crashes.check(deployment)
        deadlines.check_rollout(deployment, description)
        report(description)
        pods.pause()


class _Deadlines:
    """The deadlines of a rollout that is being waited for."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        self.end = time.monotonic() + ROLLOUT_SECONDS
        self.exceeded_since: float | None = None
        self.starting_since: dict[str, float] = {}

    def check_starting_pods(self, deployment: dict[str, Any]) -> int:
        """How many pods are starting.

        Raises:
            ReleaseError: a pod has been starting for longer than the Deployment's deadline.
        """
        now = time.monotonic()
        self.starting_since = {
            name: self.starting_since.get(name, now) for name in self.pods.starting()
        }
        deadline = deployment["spec"].get("progressDeadlineSeconds", DEADLINE_SECONDS)
        for name, began in self.starting_since.items():
            if now - began >= deadline:
                reason = explain_not_ready(self.pods, deployment)
                raise ReleaseError(f"pod {name} was not ready in time{reason}")
        return len(self.starting_since)

    def check_rollout(self, deployment: dict[str, Any], description: str) -> None:
        """Raise if the rollout has passed its deadline.

        Raises:
            ReleaseError: the controller reports that for some time, or reports nothing for long.
        """
        now = time.monotonic()
        if not _exceeds_deadline(deployment):
            self.exceeded_since = None
        elif self.exceeded_since is None:
            self.exceeded_since = now
        if self.exceeded_since is not None and now - self.exceeded_since >= DEADLINE_HOLDS_SECONDS:
            reason = explain_not_ready(self.pods, deployment)
            raise ReleaseError(f"the rollout did not progress in time: {description}{reason}")
        if now > self.end:
            reason = explain_not_ready(self.pods, deployment)
            raise ReleaseError(f"the rollout did not end: {description}{reason}")


def _exceeds_deadline(deployment: dict[str, Any]) -> bool:
    """Whether the controller says of the current template that its deadline has passed."""
    generation = deployment["metadata"]["generation"]
    current = deployment.get("status", {}).get("observedGeneration", 0) >= generation
    reason = condition_of(deployment, "Progressing").get("reason")
    return current and reason == "ProgressDeadlineExceeded"


def progress_of(deployment: dict[str, Any]) -> RolloutProgress:
    """Whether a Deployment's rollout is complete, as `kubectl rollout status` counts; and how far.

    A rollout that was complete stays complete: all pods of this template were available at once,
    and the controller reports NewReplicaSetAvailable until the next template. A pod that is not
    available then was started by an autoscaler, or failed since. See k8s.io/kubectl,
    pkg/polymorphichelpers/rollout_status.go, and "Complete Deployment" in Kubernetes' pages.
    """
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return RolloutProgress(False, "the cluster has not seen it yet")
    wanted = deployment["spec"].get("replicas", 1)
    new, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    was_complete = condition_of(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    # If none is available, the condition is about the template before, whose pods a Recreate ended.
    if was_complete and total == new and available:
        return RolloutProgress(True, f"{available} of {new} pods are available")
    if new < wanted:
        return RolloutProgress(False, f"{new} of {wanted} new pods are started")
    if total > new:
        return RolloutProgress(False, f"{total - new} old pods still exist")
    if available < new:
        return RolloutProgress(False, f"{available} of {new} new pods are available")
    return RolloutProgress(True, f"{new} pods are available")


def check_pods(
    pods: Pods, version: str, package: str | None, key_file: Path | None, report: Report
) -> list[str]:
    """Check that every pod serves `version` and answers the golden texts of `package`.

    Args:
        package: None if no golden text is to be asked.

    Returns:
        The names of the pods.

    Raises:
        ReleaseError: a pod serves another version.
        GoldenMismatchError, VerifyError, ClusterError: a pod answers differently, or not at all.
    """
    checked: set[str] = set()
    while True:
        # An autoscaler may start pods meanwhile: all pods that exist are checked.
        wait_for_rollout(pods, report)
        ready = pods.ready()
        unchecked = [name for name in ready if name not in checked]
        if not unchecked:
            break
        report(f"asking {len(unchecked)} pods")
        for name, served in pods.versions(unchecked).items():
            if served != version:
                raise ReleaseError(f"pod {name} serves version {served}, not {version}")
        if package is not None:
            pods.ask_each(lambda address: verify_service(address, package, key_file), unchecked)
        checked |= set(unchecked)
    if not ready:
        raise ReleaseError(f"no pod of {pods.workload.name} is ready in {pods.workload.namespace}")
    return ready


def watch_pods(pods: Pods, baseline: Baseline, seconds: float, report: Report) -> WatchSummary:
    """Watch the pods' metrics for some seconds.

    Raises:
        ReleaseError: errors, refusals or p99 increased, a container was restarted, or a pod is
            missing.
    """
    first = pods.samples()
    restarts = pods.restarts()
    end = time.monotonic() + seconds
    while True:
        time.sleep(max(0.0, min(SAMPLE_SECONDS, end - time.monotonic())))
        sample = total_since(first, pods.samples())
        trouble = find_trouble(sample, baseline.sample) or find_restart(pods, restarts)
        if trouble is not None:
            raise ReleaseError(f"while the pods were watched, {trouble}")
        left = max(0.0, end - time.monotonic())
        report(f"{describe_sample(sample, baseline.sample)}; {left:.0f} s left")
        if not left:
            break
    wait_for_rollout(pods, report)
    return _summarize(sample, baseline, seconds)


def find_restart(pods: Pods, before: dict[str, int]) -> str | None:
    """Which pod was restarted since `before`; pods that are new are added to it."""
    for name, count in pods.restarts().items():
        if count > before.setdefault(name, 0):
            return f"pod {name} was restarted"
    return None


def _summarize(sample: Sample, baseline: Baseline, seconds: float) -> WatchSummary:
    return WatchSummary(
        seconds=seconds,
        requests=sample.requests,
        errors=sample.errors,
        refused=round(sample.refused, 4),
        p99_ms=_milliseconds(sample.p99),
        p99_ms_before=_milliseconds(baseline.sample.p99),
        before_since=baseline.since,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
