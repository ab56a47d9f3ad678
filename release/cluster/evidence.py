"""What the cluster says of a failure: warnings, and the log of the pod that is worst off.

Undoing a release deletes its pods, their logs and soon their events. They are read before, bounded
in size. Known forms of secrets are masked: a program may write its environment into its log.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from release.cluster.pods import (
    Pods,
    container_statuses,
    describe_container,
    image_of,
    is_true,
    runs_image,
)
from release.records import FailureEvidence
from training.common.errors import ClusterError

MOST_EVENTS = 8
MOST_LINES = 20
LONGEST_LINE = 300
LONGEST_READ = 1_000
MASK = "<masked>"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SECRETS = (
    # Authorization: Bearer VALUE
    re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}"),
    # PASSWORD=VALUE, "api_key": "VALUE", X-Api-Key: VALUE
    re.compile(
        r"(?i)([\w.-]{0,40}(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key|"
        r"credential)[\w.-]{0,40}"
        r"[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&}]+)"
    ),
    # scheme://user:VALUE@host
    re.compile(r"(\b[a-z][\w+.-]*://)[^\s/@]+@"),
    # The forms of keys that clouds and code hosts give out, and tokens of web logins.
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[a-z]_\w{20,}|\bhf_\w{20,}|\beyJ[\w-]{8,}\S*"),
)
KEY_BLOCK = re.compile(r"-----(BEGIN|END) [A-Z ]*PRIVATE KEY-----")


def collect_evidence(pods: Pods, reason: str) -> FailureEvidence:
    """Warnings of the workload, and state and log of its worst pod.

    Args:
        reason: why the release failed; a pod that it names is the one to look at.

    Raises:
        ClusterError: the cluster cannot be asked. A missing log is no error.
    """
    evidence = FailureEvidence(events=_newest_warnings(pods))
    pod = worst_pod(pods, reason)
    if pod is None:
        return evidence
    evidence.pod = pod["metadata"]["name"]
    status = _worst_container(pod)
    evidence.state = mask(describe_container(status), pods.key)
    restarted = bool(status.get("restartCount")) and not status.get("ready")
    for previous in (True, False) if restarted else (False,):
        lines = _read_log(pods, pod, status, previous)
        if lines:
            evidence.previous, evidence.log = previous, lines
            break
    return evidence


def worst_pod(pods: Pods, reason: str) -> dict[str, Any] | None:
    """The pod of the current template that is worst off; None if there is none.

    That is the pod that the reason names, else one that crashed, else one that is not ready.
    """
    deployment = pods.deployment()
    image = None if deployment is None else image_of(deployment, pods.workload.container)
    new = [pod for pod in pods.all() if runs_image(pod, image)]

    def badness(pod: dict[str, Any]) -> tuple[bool, int, bool, bool]:
        status = _worst_container(pod)
        return (
            f"pod {pod['metadata']['name']}" in reason,
            0 if is_true(pod, "Ready") else int(status.get("restartCount", 0)),
            "waiting" in status.get("state", {}),
            not is_true(pod, "Ready"),
        )

    return max(new, key=badness, default=None)


def describe_evidence(evidence: FailureEvidence) -> str:
    """The evidence for the screen; empty if the cluster said nothing."""
    lines = [f"warning  {event}" for event in evidence.events]
    if evidence.pod:
        lines.append(f"pod      {evidence.pod}: {evidence.state or 'its state is not known'}")
    if evidence.log:
        container = "the container before the restart" if evidence.previous else "the container"
        lines.append(f"log      the last {len(evidence.log)} lines of {container}:")
        lines += [f"         {line}" for line in evidence.log]
    return "\n".join(lines)


def mask(line: str, key: str | None = None) -> str:
    """A line without control characters and known forms of secrets, cut to a bounded length.

    Args:
        key: the API key of the service, which is masked wherever it stands.
    """
    # A pattern takes long for a long line, and the release is waiting to be undone.
    line = CONTROL.sub("", line[:LONGEST_READ])
    if key:
        line = line.replace(key, MASK)
    bearer, named, address, known = SECRETS
    line = bearer.sub(rf"\1 {MASK}", line)
    line = named.sub(rf"\g<1>{MASK}", line)
    line = known.sub(MASK, address.sub(rf"\1{MASK}@", line))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _read_log(pods: Pods, pod: dict[str, Any], status: dict[str, Any], previous: bool) -> list[str]:
    """The last lines of a container, masked; empty if it has no log."""
    name = pod["metadata"]["name"]
    container = status.get("name") or pods.workload.container
    lines: list[str] = []
    with suppress(ClusterError):
        lines = pods.cluster.logs(
            pods.workload.namespace, name, container, lines=MOST_LINES, previous=previous
        )
    return _mask_all([line for line in lines if line.strip()][-MOST_LINES:], pods.key)


def _mask_all(lines: list[str], key: str | None) -> list[str]:
    """Lines without secrets; a private key is masked as a whole."""
    masked, inside = [], False
    for line in lines:
        boundary = KEY_BLOCK.search(line)
        if boundary:
            inside = boundary[1] == "BEGIN"
        masked.append(MASK if inside or boundary else mask(line, key))
    return masked


def _newest_warnings(pods: Pods) -> list[str]:
    """The newest warnings about objects of the workload, the newest last."""
    name = pods.workload.name
    own = [
        event
        for event in pods.cluster.warnings(pods.workload.namespace)
        if _is_of(event.get("involvedObject", {}).get("name", ""), name)
    ]
    newest = sorted(own, key=_time_of)[-MOST_EVENTS:]
    return [mask(_describe_event(event), pods.key) for event in newest]


def _is_of(name: str, workload: str) -> bool:
    """Whether an object is the Deployment, or a ReplicaSet, a pod or an autoscaler of it."""
    return name == workload or name.startswith(f"{workload}-")


def _time_of(event: dict[str, Any]) -> str:
    """When an event was seen last, in ISO 8601; newer API servers fill `series` or `eventTime`."""
    series = event.get("series") or {}
    return (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _describe_event(event: dict[str, Any]) -> str:
    about = event.get("involvedObject", {})
    count = (event.get("series") or {}).get("count") or event.get("count") or 1
    times = f" ({count} times)" if count > 1 else ""
    message = " ".join(str(event.get("message", "")).split())
    kind = str(about.get("kind", "object")).lower()
    return f"{kind} {about.get('name', '')}: {event.get('reason', '')}{times}: {message}"


def _worst_container(pod: dict[str, Any]) -> dict[str, Any]:
    """The status of the container that is worst off; empty if none is reported."""
    return max(
        container_statuses(pod),
        key=lambda status: (not status.get("ready"), status.get("restartCount", 0)),
        default={},
    )
