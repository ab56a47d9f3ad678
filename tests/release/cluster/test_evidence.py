"""Why a release failed: which pod is looked at, what is read, and what is masked."""

from __future__ import annotations

from typing import Any

import pytest

from release.cluster.evidence import (
    LONGEST_LINE,
    MASK,
    MOST_EVENTS,
    MOST_LINES,
    collect_evidence,
    describe_evidence,
    mask,
    worst_pod,
)
from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload
from release.cluster.pods import Pods
from training.common.errors import ClusterError

WORKLOAD = Workload("space", "text-classifier", "app=a", "3000", "c")


def pod(name: str, *, image: str = "new", ready: bool = False, restarts: int = 0) -> dict[str, Any]:
    """A pod with one container."""
    status: dict[str, Any] = {"name": "c", "ready": ready, "restartCount": restarts}
    status["state"] = {"running": {}}
    if restarts:
        status["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": image}]},
        "status": {"conditions": conditions, "containerStatuses": [status]},
    }


def event(name: str, time: str, message: str) -> dict[str, Any]:
    """A warning about an object."""
    about = {"kind": "Pod", "name": name}
    return {
        "metadata": {"name": f"{name}.{time}"},
        "involvedObject": about,
        "reason": "BackOff",
        "message": message,
        "lastTimestamp": time,
    }


class Failed(Cluster):
    """A cluster in which a release has failed."""

    def __init__(self, pods: list[dict[str, Any]], logs: dict[bool, list[str]]) -> None:
        super().__init__()
        self.pods, self.by_previous = pods, logs
        self.events: list[dict[str, Any]] = []

    def get(self, *_: str) -> dict[str, Any]:
        containers = [{"name": "c", "image": "new"}]
        return {"spec": {"template": {"spec": {"containers": containers}}}}

    def get_all(self, *_: str) -> list[dict[str, Any]]:
        return self.pods

    def warnings(self, namespace: str) -> list[dict[str, Any]]:
        return self.events

    def logs(
        self, namespace: str, pod: str, container: str, *, lines: int, previous: bool
    ) -> list[str]:
        if previous not in self.by_previous:
            raise ClusterError("kubectl logs failed: not found")
        return self.by_previous[previous]


def test_the_worst_pod_is_the_named_one_then_one_that_crashed_then_one_that_is_not_ready() -> None:
    fine, waiting, crashed = (
        pod("a", ready=True, restarts=9),
        pod("b"),
        pod("c", restarts=2),
    )
    # What the pods of the version before do is not the reason.
    old = pod("d", image="old", restarts=30)
    pods = Pods(Failed([fine, waiting, crashed, old], {}), WORKLOAD, None)

    def name(reason: str) -> str:
        worst = worst_pod(pods, reason)
        assert worst
        return str(worst["metadata"]["name"])

    assert name("no progress") == "c"
    assert name("pod a serves another version") == "a"
    pods.cluster = Failed([fine, waiting, old], {})
    assert name("no progress") == "b"
    pods.cluster = Failed([old], {})
    assert worst_pod(pods, "") is None


def test_the_log_before_the_restart_is_read_and_else_the_present_one() -> None:
    cluster = Failed([pod("b", restarts=2)], {True: ["why"], False: ["starting again"]})
    evidence = collect_evidence(Pods(cluster, WORKLOAD, None), "")
    assert (evidence.pod, evidence.previous, evidence.log) == ("b", True, ["why"])
    assert evidence.state and "exit status 1" in evidence.state
    cluster.by_previous = {False: ["starting again"]}
    evidence = collect_evidence(Pods(cluster, WORKLOAD, None), "")
    assert (evidence.previous, evidence.log) == (False, ["starting again"])
    # A container that never started has no log, which is no error.
    cluster.by_previous = {}
    evidence = collect_evidence(Pods(cluster, WORKLOAD, None), "")
    assert evidence.log == [] and "restarted 2 times" in describe_evidence(evidence)


def test_evidence_is_bounded_and_of_this_workload() -> None:
    cluster = Failed([pod("b")], {False: ["x" * 5_000] * 500})
    cluster.events = [
        event("text-classifier-1", f"2026-01-01T00:00:{second:02}Z", f"at {second}")
        for second in reversed(range(30))
    ]
    cluster.events.append(event("another", "2026-01-02T00:00:00Z", "of another workload"))
    evidence = collect_evidence(Pods(cluster, WORKLOAD, None), "")
    assert len(evidence.events) == MOST_EVENTS and len(evidence.log) == MOST_LINES
    assert max(map(len, evidence.log)) == LONGEST_LINE
    assert evidence.events[-1] == "pod text-classifier-1: BackOff: at 29"


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer hunter2hunter2",
        "WHETSTONE_API_KEY=hunter2",
        '{"password": "hunter2", "user": "ci"}',
        "aws_secret_access_key: hunter2",
        "cannot reach postgres://ci:hunter2@db:5432/x",
        "the key hunter2 is not known",
    ],
)
def test_known_forms_of_secrets_are_masked(line: str) -> None:
    masked = mask(line, "hunter2" if "the key" in line else None)
    assert "hunter2" not in masked and MASK in masked


def test_a_private_key_is_masked_as_a_whole_and_other_lines_stay() -> None:
    block = ["-----BEGIN RSA PRIVATE KEY-----", "MIIhunter2", "-----END RSA PRIVATE KEY-----"]
    cluster = Failed([pod("b")], {False: ["\x1b[31mit fails\x1b[0m", *block, "the end"]})
    evidence = collect_evidence(Pods(cluster, WORKLOAD, None), "")
    assert evidence.log == ["it fails", MASK, MASK, MASK, "the end"]
    assert mask("text-classifier:abc serves on port 3000") == (
        "text-classifier:abc serves on port 3000"
    )
