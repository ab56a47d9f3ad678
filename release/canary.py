"""A canary: some pods of the new version get requests beside the old ones, and are compared.

Where an HTTPRoute leads to the workload, its weights give the share. Otherwise the share is that of
the pods, because a Service sends each pod about as many requests. It says so where few pods make a
share that nobody asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from release.cluster.health import Sample, describe_sample, total_since
from release.cluster.judgement import SIGNIFICANCE_OF_A_LOOK, find_difference, judge
from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload
from release.cluster.pods import Pods
from release.cluster.rollout import SAMPLE_SECONDS, find_restart
from release.cluster.variant import canary_of, refuse_endpoints
from release.cluster.weights import Weights
from release.options import ReleaseOptions
from release.records import CanaryStep
from training.common.errors import ClusterError, ReleaseError

if TYPE_CHECKING:
    from release.transaction import ReleaseTransaction

# Of the predictions, so many differences are kept in the record.
MOST_DIFFERENCES = 5


def run_canary(
    options: ReleaseOptions,
    transaction: ReleaseTransaction,
    render: str,
    workload: Workload,
    package: str | None,
) -> None:
    """Let the new version answer each share of the requests for a while, then end its pods.

    Raises:
        ReleaseError: the canary fails, refuses, is slow, or predicts differently, beside the old
            pods and over the same minutes; or its pods do not start.
    """
    stable, cluster = transaction.context.pods_of(workload), transaction.cluster
    with transaction.step("canary") as results:
        if not stable.ready():
            results.append("nothing runs that a canary could be compared with")
            return
        weights = Weights.find(cluster, render, workload)
        canary = weights.variant if weights else canary_of(render, workload)
        if weights:
            refuse_endpoints(cluster, canary, render)
        with transaction.using(canary) as pods, _whole_again(cluster, weights):
            for share in options.canary:
                replicas = pods_for(share, len(stable.ready()))
                cluster.apply(canary.with_replicas(replicas).manifests)
                transaction.ask(pods, package)
                if weights:
                    cluster.apply(weights.split(share))
                step = _watch(options, transaction, pods, stable, share)
                step.by = "weights" if weights else "pods"
                transaction.record.canary.append(step)
                transaction.records.save(transaction.record)
                transaction.console.line(describe_step(step))
        results.append("the new version answers like the old one")


@contextmanager
def _whole_again(cluster: Cluster, weights: Weights | None) -> Iterator[None]:
    """Send the canary no more requests when the block ends, however it ends.

    After a failure this comes first: to read why it failed takes a while.
    """
    try:
        yield
    except BaseException:
        if weights:
            # If this fails, the undoing applies the routes of before as well.
            with suppress(ClusterError):
                cluster.apply(weights.whole)
        raise
    if weights:
        cluster.apply(weights.whole)


def pods_for(share: float, others: int) -> int:
    """How many pods get about this share of the requests beside so many others; at least one."""
    return max(1, round(share * others / (1 - share)))


def describe_step(step: CanaryStep) -> str:
    """A share of a canary, in a sentence."""
    gives = f"{step.pods} of {step.of} pods"
    given = step.pods / step.of
    if step.by == "weights":
        gives += ", by the weights of the HTTPRoute,"
    elif abs(given - step.wanted) > 0.01:
        gives += f" (they give {given:.0%})"
    return (
        f"canary of {step.wanted:.0%}: {gives} answered {step.requests:,} of "
        f"{step.requests + step.requests_to_others:,} requests in {step.seconds:g} s; "
        f"{step.undecided or 'errors, latency and predictions are as those of the old pods'}"
    )


def _watch(
    options: ReleaseOptions,
    transaction: ReleaseTransaction,
    pods: Pods,
    stable: Pods,
    share: float,
) -> CanaryStep:
    """Compare both sides for some seconds.

    Raises:
        ReleaseError: they differ, or a pod of the canary was restarted.
    """
    first, first_stable = pods.samples(), stable.samples()
    restarts = pods.restarts()
    end = time.monotonic() + options.canary_seconds
    what = f"a canary of {share:.0%}"
    while True:
        time.sleep(max(0.0, min(SAMPLE_SECONDS, end - time.monotonic())))
        now = total_since(first, pods.samples())
        beside = total_since(first_stable, stable.samples())
        trouble = find_difference(now, beside, SIGNIFICANCE_OF_A_LOOK)
        trouble = trouble or find_restart(pods, restarts)
        if trouble is not None:
            raise ReleaseError(f"in {what}, {trouble}")
        left = end - time.monotonic()
        if left <= 0:
            break
        transaction.console.report(
            f"{what}: of {now.requests + beside.requests:,} requests "
            f"{describe_sample(now, beside)}; {left:.0f} s left"
        )
    return _judge(options, transaction, now, beside, share, (len(first), len(first_stable)))


def _judge(
    options: ReleaseOptions,
    transaction: ReleaseTransaction,
    now: Sample,
    beside: Sample,
    share: float,
    sizes: tuple[int, int],
) -> CanaryStep:
    judgement = judge(
        now,
        beside,
        len(options.canary),
        most_shift=options.canary_shift,
        same_labels=transaction.record.label_change is None,
    )
    if judgement.trouble is not None:
        raise ReleaseError(f"in a canary of {share:.0%}, {judgement.trouble}")
    return CanaryStep(
        wanted=share,
        by="pods",
        pods=sizes[0],
        of=sum(sizes),
        seconds=options.canary_seconds,
        requests=now.requests,
        requests_to_others=beside.requests,
        undecided=judgement.undecided,
        differences=[str(each) for each in judgement.differences[:MOST_DIFFERENCES]],
    )
