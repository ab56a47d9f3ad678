"""A rollback: back to a recorded release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from release.cluster.overlay import workload_of
from release.cluster.pods import Pods
from release.cluster.references import check_references
from release.cluster.rollout import known_running_version, refuse_paused
from release.console import StepConsole
from release.context import ReleaseContext
from release.options import RollbackOptions
from release.overlay_edit import edit_image
from release.records import Record, Records
from release.recovery import (
    NothingUnfinished,
    Undone,
    recover_for_rollback,
    transactions_to_replace,
)
from release.transaction import EXPECTED, ReleaseTransaction
from training.common.errors import ReleaseError
from training.registry.publish import package_at


def rollback(options: RollbackOptions) -> int:
    """Return to a recorded release; the exit status.

    Without a version an unfinished release is undone. If there is none, or it had not touched the
    cluster, the target is the release before, or after an abandoned release the last successful
    one. With a version, unfinished releases are not undone first: perhaps they cannot be.

    Raises:
        WhetstoneError: nothing was changed; the message says why.
    """
    context = ReleaseContext.open(options)
    with context.locked():
        if options.version is None:
            recovery = recover_for_rollback(context, options)
            if isinstance(recovery, NothingUnfinished) and options.only_recovers:
                context.console.line(f"no release of {options.overlay} is unfinished")
            if isinstance(recovery, Undone) or options.only_recovers:
                return 0
        return _roll_back(context, options)


def _roll_back(context: ReleaseContext, options: RollbackOptions) -> int:
    overlay, kube_context = str(options.overlay), context.cluster.context
    target = find_target(context.records, overlay, options.version, kube_context)
    render = context.read_render(target)
    pods = context.pods_of(workload_of(render, str(target.image)))
    package = context.find_package(target.version)
    replaced = transactions_to_replace(context)
    transaction = ReleaseTransaction(_new_record(context, target), context)
    with transaction.failing_before_apply():
        _write_overlay(transaction, target, render, pods, replaced)
    with fetched_package(package, context.console) as folder:
        # Not earlier: until here the next run can still undo what is unfinished.
        for other in replaced:
            if other.record.touched_cluster:
                other.abandon(f"a rollback to {options.version} replaced it")
            else:
                other.give_up()
        transaction.roll_out(render, folder)
    transaction.end("released")
    context.console.line(
        f"rolled back: {pods.workload.namespace} serves {target.version} again ({target.id})"
    )
    return 0


def _new_record(context: ReleaseContext, target: Record) -> Record:
    record = context.new_record(target.version, target.name, target.package)
    record.kind = "rollback"
    record.metrics = target.metrics
    record.bento = target.bento
    record.champion = target.id
    return record


def _write_overlay(
    transaction: ReleaseTransaction,
    target: Record,
    render: str,
    pods: Pods,
    replaced: list[ReleaseTransaction],
) -> None:
    """Save what runs now, and write the image of the target into the overlay.

    The saved render has no Secrets; those of a generator are still in the cluster.
    """
    image = str(target.image)
    with transaction.step("overlay") as results:
        refuse_paused(transaction.cluster, pods.workload)
        for warning in check_references(transaction.cluster, render):
            transaction.console.line(f"warning: {warning}")
        transaction.record.champion_version = known_running_version(pods)
        transaction.save_previous(render, pods.workload)
        for other in replaced:
            other.restore_overlay_if_possible()
        edit = edit_image(Path(transaction.record.overlay), image)
        transaction.write_overlay(edit, image, render)
        results.append(f"{edit.file}: {image}")


@contextmanager
def fetched_package(package: str | None, console: StepConsole) -> Iterator[str | None]:
    """The folder of a package; None with a warning if it cannot be fetched."""
    with ExitStack() as stack:
        folder = None
        if package is not None:
            try:
                folder = str(stack.enter_context(package_at(package)))
            except EXPECTED as error:
                console.line(f"warning: no golden text will be asked: {error}")
        yield folder


def find_target(records: Records, overlay: str, version: str | None, context: str | None) -> Record:
    """The release to return to.

    Args:
        version: a model version or the id of a record; the release before where it is None.
        context: the context of kubectl.

    Raises:
        ReleaseError: there is none.
    """
    here = [record for record in records.of(overlay) if record.is_in(context)]
    released = [record for record in here if record.released_in(context) and record.render]
    if version is not None:
        return _find_named(released, overlay, version)
    if not released:
        where = f" for {context}" if context else ""
        raise ReleaseError(f"no release of {overlay}{where} is recorded in {records.folder}")
    # A release that was undone or refused has left nothing in the cluster.
    changes = [record for record in here if record.abandoned or record.outcome == "released"]
    if changes[-1].abandoned:
        return released[-1]
    return _find_before(released, overlay)


def _find_named(released: list[Record], overlay: str, version: str) -> Record:
    named = [record for record in released if version in (record.id, record.version)]
    if not named:
        known = ", ".join(dict.fromkeys(record.version for record in released)) or "none"
        raise ReleaseError(f"{version} is not a release of {overlay}; recorded are: {known}")
    return named[-1]


def _find_before(released: list[Record], overlay: str) -> Record:
    """The release of another version before the running one was first reached.

    A rollback is no step forward: what counts is what ran before the running version was released.
    """
    running = released[-1].version
    forward = [record for record in released if record.kind == "release"]
    place = max((i for i, record in enumerate(forward) if record.version == running), default=0)
    earlier = [record for record in forward[:place] if record.version != running]
    if not earlier:
        raise ReleaseError(
            f"nothing was released to {overlay} before {running}: name a version that "
            "whetstone history shows"
        )
    return earlier[-1]
