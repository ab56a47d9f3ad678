"""The pods of a Deployment, asked one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from release.cluster.health import Sample, read_sample
from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload
from service.package.golden import GoldenMismatchError
from training.common.errors import (
    ClusterError,
    ClusterUnreachableError,
    KeyRefusedError,
    ReleaseError,
    VerifyError,
    WhetstoneError,
)
from training.registry.client import VERSION, Service

POLL_SECONDS = 2.0
# How long a pod that exists and does not answer is asked again.
ATTEMPT_SECONDS = 20.0
LONGEST_REASON = 300

Answer = TypeVar("Answer")
# Shows what a step is doing at the moment.
Report = Callable[[str], None]


class Pods:
    """The pods of a workload.

    Args:
        key: the API key of the service, if it needs one.
    """

    def __init__(self, cluster: Cluster, workload: Workload, key: str | None) -> None:
        self.cluster = cluster
        self.workload = workload
        self.key = key

    def pause(self) -> None:
        """Wait a moment before the cluster is looked at again."""
        time.sleep(POLL_SECONDS)

    def deployment(self) -> dict[str, Any] | None:
        """The Deployment of the workload; None if it does not exist."""
        return self.cluster.get("deployment", self.workload.name, self.workload.namespace)

    def all(self) -> list[dict[str, Any]]:
        """Every pod, even those that end."""
        return self.cluster.get_all("pods", self.workload.namespace, self.workload.selector)

    def present(self) -> list[str]:
        """The names of the pods that will stay, whether they are ready or not."""
        return sorted(pod["metadata"]["name"] for pod in self._staying())

    def ready(self) -> list[str]:
        """The names of the pods that get requests."""
        return sorted(pod["metadata"]["name"] for pod in self._staying() if is_true(pod, "Ready"))

    def starting(self) -> list[str]:
        """The names of the pods that have a node and get no requests, not yet or no more."""
        return sorted(
            pod["metadata"]["name"]
            for pod in self._staying()
            if is_true(pod, "PodScheduled") and not is_true(pod, "Ready")
        )

    def _staying(self) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self.all()
            if "deletionTimestamp" not in pod["metadata"]
            and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            and not lost_node(pod)
        ]

    def restarts(self) -> dict[str, int]:
        """How often the containers of each pod were restarted."""
        return {
            pod["metadata"]["name"]: sum(
                status.get("restartCount", 0) for status in container_statuses(pod)
            )
            for pod in self.all()
        }

    def ask_each(
        self, question: Callable[[str], Answer], names: Iterable[str] | None = None
    ) -> dict[str, Answer]:
        """The answer of each pod to `question`, which gets the pod's address.

        A pod that is deleted meanwhile is left out.

        Args:
            names: the pods to ask; those that are ready by default.

        Raises:
            ReleaseError: no pod is ready.
            VerifyError: a pod exists and could not be asked for some time.
            ClusterError: so it is, but the pod is ready, and it is kubectl that does not reach it.
            GoldenMismatchError: a pod answers a golden text differently.
        """
        answers = {}
        for name in self.ready() if names is None else names:
            with suppress(PodDeletedError):
                answers[name] = self._ask(name, question)
        if not answers and names is None:
            raise ReleaseError(
                f"no pod of {self.workload.name} is ready in {self.workload.namespace}"
            )
        return answers

    def versions(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """The model version that each pod reports at `/info`."""

        def version(address: str) -> str:
            answer = Service(address, self.key).ask("/info").get("version")
            if not isinstance(answer, str) or not VERSION.fullmatch(answer):
                raise VerifyError(f"{address}/info is not an answer of Whetstone")
            return answer

        return self.ask_each(version, names)

    def samples(self) -> dict[str, Sample]:
        """The counters of each pod."""

        def sample(address: str) -> Sample:
            page = Service(address, self.key).read("/metrics")
            try:
                return read_sample(page.decode())
            except ValueError:
                raise VerifyError(f"{address}/metrics is not a page of Prometheus") from None

        return self.ask_each(sample)

    def _ask(self, name: str, question: Callable[[str], Answer]) -> Answer:
        began = time.monotonic()
        workload = self.workload
        while True:
            try:
                with self.cluster.forward(workload.namespace, name, workload.port) as address:
                    return question(address)
            except KeyRefusedError as error:
                raise KeyRefusedError(f"pod {name}: {error}") from None
            except (ClusterError, VerifyError, OSError) as error:
                if name not in self.present():
                    raise PodDeletedError from None
                unreachable = isinstance(error, ClusterUnreachableError)
                limit = max(ATTEMPT_SECONDS, self.cluster.patience if unreachable else 0.0)
                if time.monotonic() - began > limit:
                    raise self._fault_of(name, error) from None
                self.pause()
            except GoldenMismatchError as error:
                raise GoldenMismatchError(f"pod {name}: {error}") from None

    def _fault_of(self, name: str, error: Exception) -> WhetstoneError:
        """The error of a pod that could not be asked for some time.

        That kubectl does not reach a pod says nothing about the pod while it gets requests: perhaps
        a right is missing, or the way to its node is broken.
        """
        if isinstance(error, ClusterError) and name in self.ready():
            return type(error)(f"pod {name}: {error}")
        return VerifyError(f"pod {name}: {error}")


class PodDeletedError(Exception):
    """The pod was deleted while it was asked."""


def image_of(deployment: dict[str, Any], name: str) -> str | None:
    """The image of a Deployment's container of this name, else of the first one.

    A container that a patch of the overlay adds may come before the classifier's.
    """
    containers = deployment["spec"]["template"]["spec"]["containers"]
    named = (container for container in containers if container.get("name") == name)
    image: str | None = next(named, containers[0]).get("image")
    return image


def condition_of(resource: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of a resource; empty if the resource does not have it."""
    conditions = resource.get("status", {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})


def is_true(resource: dict[str, Any], kind: str) -> bool:
    """Whether a condition of a resource is True."""
    return condition_of(resource, kind).get("status") == "True"


def lost_node(pod: dict[str, Any]) -> bool:
    """Whether the pod's node is gone; Kubernetes deletes the pod some minutes later.

    The node controller takes back Ready, and leaves ContainersReady as the kubelet reported it last
    (k8s.io/kubernetes, pkg/controller/util/node/controller_utils.go, MarkPodsNotReady). A kubelet
    reports this combination only if a readiness gate is closed.
    """
    gated = condition_of(pod, "Ready").get("reason") == "ReadinessGatesNotReady"
    return is_true(pod, "ContainersReady") and not is_true(pod, "Ready") and not gated


def explain_not_ready(pods: Pods, deployment: dict[str, Any]) -> str:
    """After a semicolon, why a pod is not ready or cannot be made; empty if that is not known."""
    failure = condition_of(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        return f"; {failure.get('message') or failure.get('reason')}"[:LONGEST_REASON]
    with suppress(ClusterError):
        for pod in pods.all():
            reason = _reason_of(pod)
            if reason is not None:
                return f"; pod {pod['metadata']['name']}{reason}"[:LONGEST_REASON]
    return ""


def _reason_of(pod: dict[str, Any]) -> str | None:
    """Why a pod is not ready, as the end of a sentence about it."""
    for status in container_statuses(pod):
        waiting = status.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") != "ContainerCreating":
            return f": {waiting['reason']} {waiting.get('message') or ''}".rstrip()
        if not status.get("ready") and status.get("restartCount"):
            return f" was restarted {status['restartCount']} times"
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f": {scheduled.get('message') or scheduled.get('reason')}"
    return None


def describe_container(status: dict[str, Any]) -> str:
    """What a container does, and how it ended before; empty if nothing is known."""
    parts = []
    for state, ending in (("state", ""), ("lastState", " before")):
        content = status.get(state, {})
        waiting, ended = content.get("waiting"), content.get("terminated")
        if waiting:
            message = f" {waiting['message']}" if waiting.get("message") else ""
            parts.append(f"waits: {waiting.get('reason', '')}{message}")
        elif ended:
            message = f" {ended['message'].strip()}" if ended.get("message") else ""
            code = f"exit status {ended.get('exitCode')}"
            parts.append(f"ended{ending}: {ended.get('reason', '')}, {code}{message}")
        elif "running" in content:
            parts.append("runs" if status.get("ready") else "runs and is not ready")
    if status.get("restartCount"):
        parts.append(f"restarted {status['restartCount']} times")
    return "; ".join(parts)


def runs_image(pod: dict[str, Any], image: str | None) -> bool:
    """Whether a container of a pod runs this image."""
    return image in [container.get("image") for container in pod["spec"]["containers"]]


def container_statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The status of each container of a pod; those that prepare it come first."""
    status = pod.get("status", {})
    preparing = [
        # One that has done its work is not ready in the sense of those that serve.
        container
        for container in status.get("initContainerStatuses") or []
        if not container.get("ready")
    ]
    return [*preparing, *(status.get("containerStatuses") or [])]
