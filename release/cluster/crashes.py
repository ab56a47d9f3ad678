"""Pods that crash again and again for the same reason: waiting longer would not help them."""

from __future__ import annotations

from typing import Any

from release.cluster.pods import Pods, container_statuses, image_of, runs_image
from training.common.errors import ReleaseError

# The kubelet waits 10, 20, 40 seconds and more between two starts of a container. A reason that is
# the same three times is no chance.
MOST_CRASHES = 3


class CrashCounter:
    """Counts the crashes of each new container, as they are seen while a rollout is waited for."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        # By pod and container: the reason of each crash, by the number of restarts after it.
        self._crashes: dict[tuple[str, str], dict[int, str]] = {}

    def check(self, deployment: dict[str, Any]) -> None:
        """Look at the pods of the current template.

        Raises:
            ReleaseError: a container ended three times for the same reason.
        """
        image = image_of(deployment, self.pods.workload.container)
        for pod in self.pods.all():
            if not runs_image(pod, image) or "deletionTimestamp" in pod["metadata"]:
                continue
            for status in container_statuses(pod):
                self._count(pod["metadata"]["name"], status)

    def _count(self, pod: str, status: dict[str, Any]) -> None:
        crashes = self._crashes.setdefault((pod, status.get("name", "")), {})
        restarts = int(status.get("restartCount", 0))
        # A container that has just ended is counted as a restart only when it starts again.
        for place, state in ((restarts, "lastState"), (restarts + 1, "state")):
            ended = status.get(state, {}).get("terminated")
            if ended:
                crashes[place] = _reason_of_end(ended)
        reasons = list(crashes.values())
        if status.get("ready") or not reasons:
            return
        if reasons.count(reasons[-1]) >= MOST_CRASHES:
            raise ReleaseError(
                f"pod {pod} crashed {reasons.count(reasons[-1])} times for the same reason: "
                f"{reasons[-1]}"
            )


def _reason_of_end(ended: dict[str, Any]) -> str:
    """Reason and exit status of a container that ended."""
    code = ended.get("exitCode")
    return f"{ended.get('reason') or 'it ended'}, exit status {code}"
