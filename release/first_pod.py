"""The first pod of a new version: it is asked before any caller can reach one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from release.cluster.overlay import Workload
from release.cluster.variant import refuse_endpoints, takes_one_more_pod, variant_of

if TYPE_CHECKING:
    from release.transaction import ReleaseTransaction

SUFFIX = "first"


def ask_first_pod(
    transaction: ReleaseTransaction, render: str, workload: Workload, package: str | None
) -> None:
    """Start one pod of the new version outside of every Service, ask it, and delete it.

    It is asked what every pod is asked after the rollout: its version and the golden texts.

    Raises:
        ReleaseError, GoldenMismatchError, VerifyError, ClusterError: the pod does not start, serves
            another version, or answers differently.
    """
    cluster = transaction.cluster
    with transaction.step("first pod") as results:
        if not takes_one_more_pod(render, workload):
            results.append(
                "no pod is asked first, because the Deployment's strategy has no room for one more"
            )
            return
        variant = variant_of(render, workload, SUFFIX)
        refuse_endpoints(cluster, variant, render)
        with transaction.using(variant) as pods:
            transaction.ask(pods, package)
        results.append("one pod was asked outside of the Service, and answers as recorded")
