"""Unfinished releases: each is undone, continued, given up or abandoned before anything else."""

from __future__ import annotations

from dataclasses import dataclass

from release.cluster.pods import image_of
from release.cluster.rollout import known_running_version
from release.context import ReleaseContext
from release.image_name import ImageName
from release.options import ReleaseOptions, RollbackOptions
from release.records import Record
from release.transaction import ReleaseTransaction
from service.package.manifest import read_manifest
from training.common.errors import ReleaseError
from training.registry.publish import package_at


@dataclass(frozen=True)
class NothingUnfinished:
    """No release was unfinished."""


@dataclass(frozen=True)
class GivenUp:
    """Every unfinished release was given up, because none had touched the cluster."""


@dataclass(frozen=True)
class Undone:
    """Every unfinished release was undone, given up or abandoned."""


@dataclass(frozen=True)
class ToContinue:
    """The unfinished release of the same package; the new release goes on with its record."""

    record: Record


Recovery = NothingUnfinished | Undone | ToContinue


def recover_for_release(context: ReleaseContext, options: ReleaseOptions) -> Recovery:
    """Deal with what is unfinished, before a release.

    A release that had applied nothing is continued with the bento and the image that it has made,
    if it was of the same package; else it is given up. A release that had applied something is
    undone, because it was never checked; if it was of the same package, it starts again.

    The overlay names the image of before again in any case. So what comes next never takes an image
    that nobody has verified for the one to go back to.

    Raises:
        ReleaseError: a release was begun in another cluster, or cannot be undone; or the overlay
            still names its image.
    """
    recoveries = [
        _recover_for_release(context, options, record) for record in context.unfinished_records()
    ]
    to_continue = [recovery for recovery in recoveries if isinstance(recovery, ToContinue)]
    if to_continue:
        return to_continue[-1]
    return Undone() if recoveries else NothingUnfinished()


def recover_for_rollback(
    context: ReleaseContext, options: RollbackOptions
) -> NothingUnfinished | GivenUp | Undone:
    """Deal with what is unfinished, before a rollback: undo it, or with `abandon` leave it.

    Raises:
        ReleaseError: a release was begun in another cluster, or cannot be undone; or the rollback
            would go further back than a prepared release that the cluster shows.
    """
    records = context.unfinished_records()
    touched = [record.touched_cluster for record in records]
    if not options.only_recovers:
        for record in records:
            _refuse_applied(context, record)
    for record in records:
        transaction = ReleaseTransaction(record, context)
        if not record.touched_cluster:
            transaction.restore_overlay()
            transaction.give_up()
        elif options.abandon:
            # Its cluster may not exist any more, so the context is not checked.
            transaction.restore_overlay()
            transaction.abandon("it was abandoned")
        else:
            _undo(context, transaction)
    if any(touched):
        return Undone()
    return GivenUp() if records else NothingUnfinished()


def transactions_to_replace(context: ReleaseContext) -> list[ReleaseTransaction]:
    """The unfinished releases that a rollback to a version replaces.

    Raises:
        ReleaseError: one of them was begun in another cluster.
    """
    records = context.unfinished_records()
    for record in records:
        if record.touched_cluster:
            context.refuse_other_cluster(record)
    return [ReleaseTransaction(record, context) for record in records]


def _recover_for_release(
    context: ReleaseContext, options: ReleaseOptions, record: Record
) -> Undone | ToContinue:
    transaction = ReleaseTransaction(record, context)
    same = is_same_release(record, options)
    if record.touched_cluster:
        _undo(context, transaction)
        return ToContinue(_start_again(context, options, record)) if same else Undone()
    if record.is_prepared and not same:
        _refuse_running(context, record)
    transaction.restore_overlay()
    if not same:
        transaction.give_up()
        return Undone()
    context.console.line(f"release {record.id} stopped at {record.step}: continuing it")
    record.outcome, record.context = "unfinished", context.cluster.context
    record.overlay_edit = record.previous = record.render = None
    return ToContinue(record)


def _refuse_running(context: ReleaseContext, record: Record) -> None:
    """Refuse to go on from a prepared release that runs already: nobody has seen how it does.

    Raises:
        ReleaseError: every pod serves it.
    """
    if record.is_in(context.cluster.context) and (
        known_running_version(context.recorded_pods(record)) == record.version
    ):
        raise ReleaseError(
            f"release {record.id} is prepared and runs, and was not observed: run whetstone "
            f"release --observe --overlay {record.overlay}, or take it back with whetstone "
            f"rollback --overlay {record.overlay} --unfinished"
        )


def _refuse_applied(context: ReleaseContext, record: Record) -> None:
    """Refuse to roll back from a prepared release that a GitOps tool has applied.

    The version before it is the one that the overlay of before names; a rollback would go to the
    one before that.

    Raises:
        ReleaseError: the Deployment names its image.
        ClusterError: the cluster cannot be asked.
    """
    if not record.is_prepared or not record.is_in(context.cluster.context):
        return
    pods = context.recorded_pods(record)
    deployment = pods.deployment()
    if deployment is None or not record.image:
        return
    if image_of(deployment, pods.workload.container) == ImageName.parse(record.image).reference:
        raise ReleaseError(
            f"release {record.id} is prepared, and the cluster shows its image: take it back with "
            f"whetstone rollback --overlay {record.overlay} --unfinished and commit the overlay, "
            "or name the VERSION to go to"
        )


def _undo(context: ReleaseContext, transaction: ReleaseTransaction) -> None:
    record = transaction.record
    context.refuse_other_cluster(record)
    context.console.line(f"{record.kind} {record.id} stopped at {record.step}: undoing it")
    transaction.undo(context.recorded_pods(record), record.reason or f"killed at {record.step}")


def _start_again(context: ReleaseContext, options: ReleaseOptions, undone: Record) -> Record:
    """A new record of the same release."""
    context.console.line("then the same package is released again from the start")
    record = context.new_record(undone.version, undone.name, options.package)
    record.metrics = undone.metrics
    record.image_given = undone.image_given
    return record


def is_same_release(record: Record, options: ReleaseOptions) -> bool:
    """Whether an unfinished record is of the release that is asked for now."""
    if record.kind != "release" or record.image_given != (options.image is not None):
        return False
    with package_at(options.package) as folder:
        return read_manifest(folder).version == record.version
