"""Rollouts and pods: when a rollout is complete, and which pods count."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from release.cluster.crashes import CrashCounter
from release.cluster.health import read_sample
from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload
from release.cluster.pods import Pods, image_of
from release.cluster.rollout import progress_of, wait_for_rollout
from tests.release.cluster.test_health import PAGE
from training.common.errors import (
    ClusterError,
    ClusterUnreachableError,
    ReleaseError,
    VerifyError,
)

WORKLOAD = Workload("space", "text-classifier", "app=a", "3000", "c")


def deployment(**status: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "c", "image": "new"}]}}
    spec = {"replicas": 3, "template": template}
    return {"metadata": {"generation": 2}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "the cluster has not seen it yet"),
        ({"observedGeneration": 1, "updatedReplicas": 3, "availableReplicas": 3}, "has not seen"),
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4}, "1 of 3 new pods"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4}, "1 old pods still exist"),
        (
            {"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2},
            "2 of 3 new pods are available",
        ),
    ],
)
def test_a_rollout_is_not_complete_before_all_pods_are_new(
    status: dict[str, Any], expected: str
) -> None:
    progress = progress_of(deployment(**status))
    assert not progress.complete and expected in progress.description


def test_a_rollout_is_complete_when_all_pods_are_new_and_available() -> None:
    status = {"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}
    assert progress_of(deployment(**status)) == (True, "3 pods are available")


def was_complete(**status: int) -> dict[str, Any]:
    """A Deployment whose controller reports a complete rollout; one of its four pods is out."""
    counts = {"observedGeneration": 2, "updatedReplicas": 4, "replicas": 4, "availableReplicas": 3}
    conditions = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
    return deployment(**counts | status, conditions=conditions)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # An autoscaler has asked for one more.
        ({}, True),
        # The report is about the template before.
        ({"observedGeneration": 1}, False),
        ({"updatedReplicas": 1, "replicas": 4}, False),
        ({"availableReplicas": 0}, False),
    ],
)
def test_a_rollout_that_was_complete_stays_complete(
    changed: dict[str, int], expected: bool
) -> None:
    assert progress_of(was_complete(**changed)).complete == expected


def pod(name: str, **conditions: str) -> dict[str, Any]:
    """A pod with these conditions, whose only container was restarted twice."""
    reported = [{"type": kind, "status": status} for kind, status in conditions.items()]
    status = {"conditions": reported, "containerStatuses": [{"ready": False, "restartCount": 2}]}
    spec = {"containers": [{"name": "c", "image": "new"}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


class OneAnswer(Cluster):
    """A cluster with one Deployment and some pods."""

    def __init__(self, deployment: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        super().__init__()
        self.deployment = deployment
        self.pods = pods

    def get(self, *_: str) -> dict[str, Any]:
        return self.deployment

    def get_all(self, *_: str) -> list[dict[str, Any]]:
        return self.pods


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.cluster.pods.POLL_SECONDS", 0.01)
    monkeypatch.setattr("release.cluster.rollout.ROLLOUT_SECONDS", 1.0)


@pytest.mark.usefixtures("impatient")
def test_a_pod_without_a_node_is_not_waited_for_and_a_broken_one_fails_the_rollout() -> None:
    complete = was_complete()
    complete["spec"]["progressDeadlineSeconds"] = 0
    fine, pending = pod("a", PodScheduled="True", Ready="True"), pod("b", PodScheduled="False")
    broken = pod("c", PodScheduled="True", Ready="False")
    wait_for_rollout(Pods(OneAnswer(complete, [fine, pending]), WORKLOAD, None), print)
    with pytest.raises(ReleaseError, match="pod c was not ready in time; pod c was restarted 2"):
        wait_for_rollout(Pods(OneAnswer(complete, [broken, pending]), WORKLOAD, None), print)


@pytest.mark.usefixtures("impatient")
def test_a_pod_whose_node_is_gone_does_not_count() -> None:
    """Kubernetes takes back Ready, and changes nothing else until it deletes the pod."""
    complete = was_complete()
    complete["spec"]["progressDeadlineSeconds"] = 0
    fine = pod("a", PodScheduled="True", ContainersReady="True", Ready="True")
    lost = pod("b", PodScheduled="True", ContainersReady="True", Ready="False")
    pods = Pods(OneAnswer(complete, [fine, lost]), WORKLOAD, None)
    wait_for_rollout(pods, print)
    assert pods.present() == ["a"]
    gated = pod("c", PodScheduled="True", ContainersReady="True", Ready="False")
    gated["status"]["conditions"][-1]["reason"] = "ReadinessGatesNotReady"
    with pytest.raises(ReleaseError, match="pod c was not ready in time"):
        wait_for_rollout(Pods(OneAnswer(complete, [fine, gated]), WORKLOAD, None), print)


class Guarded(BaseHTTPRequestHandler):
    """A pod whose `/metrics` asks for a key."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer secret"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(PAGE.encode() if known else b"")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class OnePod(OneAnswer):
    """A cluster whose pod is a server on this machine."""

    address = ""

    @contextmanager
    def forward(self, *_: object) -> Iterator[str]:
        yield self.address


def test_metrics_are_read_with_the_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.cluster.pods.ATTEMPT_SECONDS", 0.0)
    cluster = OnePod({}, [pod("a", PodScheduled="True", Ready="True")])
    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster.address = f"http://127.0.0.1:{server.server_port}"
        assert Pods(cluster, WORKLOAD, "secret").samples() == {"a": read_sample(PAGE)}
        with pytest.raises(VerifyError, match="give it with --api_key_file"):
            Pods(cluster, WORKLOAD, None).samples()
        server.shutdown()


class NoWay(OneAnswer):
    """A cluster in which kubectl reaches no pod."""

    error: ClusterError

    @contextmanager
    def forward(self, *_: object) -> Iterator[str]:
        raise self.error
        yield ""


@pytest.mark.parametrize("kind", [ClusterError, ClusterUnreachableError])
def test_that_kubectl_does_not_reach_a_pod_is_no_fault_of_the_pod_while_it_is_ready(
    kind: type[ClusterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.cluster.pods.ATTEMPT_SECONDS", 0.0)
    cluster = NoWay({}, [pod("a", PodScheduled="True", Ready="True")])
    cluster.error = kind("pods/portforward is forbidden")
    with pytest.raises(kind, match="pod a: pods/portforward is forbidden"):
        Pods(cluster, WORKLOAD, None).versions()
    # A container that has ended cannot be reached either.
    cluster.pods = [pod("a", PodScheduled="True", Ready="False")]
    with pytest.raises(VerifyError, match="pod a: "):
        Pods(cluster, WORKLOAD, None).versions(["a"])


def beside_a_sidecar(image: str) -> list[dict[str, str]]:
    """The containers of a pod; kustomize puts those that a patch adds first."""
    return [{"name": "proxy", "image": "proxy:1"}, {"name": "c", "image": image}]


def test_the_image_of_a_deployment_is_that_of_the_classifier_whatever_stands_first() -> None:
    resource = {"spec": {"template": {"spec": {"containers": beside_a_sidecar("new")}}}}
    assert image_of(resource, WORKLOAD.container) == "new"
    # The new version may call its container otherwise than the one that runs.
    assert image_of(deployment(), "another") == "new"


def test_the_crashes_of_old_pods_beside_a_sidecar_do_not_count() -> None:
    resource = {"spec": {"template": {"spec": {"containers": beside_a_sidecar("new")}}}}
    cluster = OneAnswer(resource, [])
    counter = CrashCounter(Pods(cluster, WORKLOAD, None))

    def look(image: str) -> None:
        for restarts in (1, 2, 3):
            cluster.pods = [crashed(restarts, 1)]
            cluster.pods[0]["spec"]["containers"] = beside_a_sidecar(image)
            counter.check(resource)

    look("old")
    with pytest.raises(ReleaseError, match="crashed 3 times"):
        look("new")


def crashed(restarts: int, code: int, *, ready: bool = False) -> dict[str, Any]:
    """A pod whose container has ended so often, the last time with this exit status."""
    ended = {"terminated": {"exitCode": code, "reason": "Error"}}
    status = {"name": "c", "ready": ready, "restartCount": restarts, "lastState": ended}
    return {
        "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c", "image": "new"}]},
        "status": {"containerStatuses": [status]},
    }


def test_three_crashes_for_the_same_reason_end_the_wait_and_others_do_not() -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "new"}]}}
    resource = {"spec": {"template": template}}
    cluster = OneAnswer(resource, [])
    counter = CrashCounter(Pods(cluster, WORKLOAD, None))

    def look(restarts: int, code: int, *, ready: bool = False) -> None:
        cluster.pods = [crashed(restarts, code, ready=ready)]
        counter.check(resource)

    # Looking at one crash several times does not make it several crashes.
    for restarts, code in ((1, 1), (1, 1), (1, 1), (2, 137), (3, 1), (4, 137)):
        look(restarts, code)
    look(5, 1, ready=True)
    with pytest.raises(ReleaseError, match=r"crashed 3 times .*: Error, exit status 1"):
        look(5, 1)
