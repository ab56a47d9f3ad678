"""A release: a package into production, or everything as it was before.

Until the step `overlay`, nothing that anybody uses is changed, and what was made can be used again.
Where a GitOps tool applies what is committed, the release ends there; `release.observe` goes on.
From the step `first pod` on, every failure and every interruption restores what ran before. A
release that is killed leaves a record. The next release or rollback of the overlay begins with it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from release.canary import run_canary
from release.cluster.apis import check_apis
from release.cluster.overlay import Workload, render_overlay, workload_of
from release.cluster.references import check_references
from release.cluster.rollout import refuse_paused
from release.context import ReleaseContext
from release.first_pod import ask_first_pod
from release.options import ReleaseOptions
from release.overlay_edit import edit_image
from release.plan import diff_render, print_plan
from release.preparation import Preparation
from release.records import Record
from release.recovery import Recovery, ToContinue, recover_for_release
from release.transaction import ReleaseTransaction, RolloutStage
from service.package.manifest import MODEL_STORE_NAME, Manifest, read_manifest
from training.common.errors import ClusterError, ReleaseError
from training.registry.publish import package_at


def release(options: ReleaseOptions) -> int:
    """Release a package, prepare that for a GitOps tool, or show the plan; the exit status.

    Raises:
        WhetstoneError: nothing was released; the message says why.
        PackageError, GoldenMismatchError: the package is not sound.
    """
    context = ReleaseContext.open(options)
    if not options.apply and not options.prepare:
        return print_plan(context, options)
    if options.prepare and options.canary:
        raise ReleaseError(
            "a canary is pods that this command applies, and with --prepare it applies nothing: "
            "leave --canary out, or release with --apply"
        )
    with context.locked():
        recovery = recover_for_release(context, options)
        return _release(context, options, recovery)


def _release(context: ReleaseContext, options: ReleaseOptions, recovery: Recovery) -> int:
    with package_at(options.package) as folder:
        manifest = read_manifest(folder)
        if isinstance(recovery, ToContinue):
            record = recovery.record
        else:
            record = _new_record(context, options, manifest)
        transaction = ReleaseTransaction(record, context)
        with transaction.failing_before_apply():
            for warning in check_apis(context.cluster, context.render_unbuilt()[0]):
                context.console.line(f"warning: {warning}")
            status = Preparation(transaction, options, folder, manifest).run()
            if status:
                return status
            render = _write_overlay(transaction, options)
        if options.prepare:
            return _end_prepared(transaction)
        package = f"{MODEL_STORE_NAME}:{record.version}"
        stages: list[RolloutStage] = [ask_first_pod]
        if options.canary:
            stages.append(partial(run_canary, options))
        transaction.roll_out(render, package, stages)
    transaction.end("released")
    context.console.line(
        f"released: {record.name} {record.version} in {record.namespace} as {record.image}\n"
        f"record:   {context.records.path_of(record)}\n"
        f"undo:     whetstone rollback --overlay {record.overlay}"
    )
    return 0


def _new_record(context: ReleaseContext, options: ReleaseOptions, manifest: Manifest) -> Record:
    record = context.new_record(manifest.version, manifest.name, options.package)
    record.metrics = headline_metrics(manifest)
    record.image_given = options.image is not None
    return record


def _end_prepared(transaction: ReleaseTransaction) -> int:
    record = transaction.record
    if record.previous is None:
        # The cluster was not asked, so who observes may know it by another context.
        record.context = None
    transaction.end("prepared")
    transaction.console.line(
        f"prepared: {record.name} {record.version} in {record.namespace} as {record.image}\n"
        f"commit:   {record.overlay_edit.file if record.overlay_edit else record.overlay} and "
        f"{transaction.records.folder}\n"
        f"then:     whetstone release --observe --overlay {record.overlay}"
    )
    return 0


def _write_overlay(transaction: ReleaseTransaction, options: ReleaseOptions) -> str:
    """Steps 6 and 7: save what ran before, write the image into the overlay; the render.

    Raises:
        ReleaseError: the overlay is no overlay, or its pods need what the cluster does not have.
    """
    record, cluster = transaction.record, transaction.cluster
    with transaction.step("overlay") as results:
        overlay, image = Path(record.overlay), str(record.image)
        edit = edit_image(overlay, image)
        render = render_overlay(cluster, overlay, edit.after)
        workload = workload_of(render, image)
        if options.prepare:
            transaction.note_previous(workload)
        else:
            transaction.save_previous(render, workload)
        transaction.write_overlay(edit, image, render)
        results.append(f"{edit.file}: {image}")
    with transaction.step("diff") as results:
        difference, warnings = _look_at_cluster(transaction, options, render, workload)
        results.append(f"{len(difference.splitlines())} lines")
    for warning in warnings:
        transaction.console.line(f"warning: {warning}")
    transaction.console.line(difference)
    return render


def _look_at_cluster(
    transaction: ReleaseTransaction, options: ReleaseOptions, render: str, workload: Workload
) -> tuple[str, list[str]]:
    """What would change in the cluster, and warnings.

    Who prepares may perhaps read the cluster only, which `kubectl diff` is more than, or not even
    that.

    Raises:
        ReleaseError: the rollout is paused, or the pods need what the cluster does not have.
        ClusterError: the cluster cannot be asked, and the release would change it.
    """
    cluster = transaction.cluster
    try:
        difference = diff_render(cluster, render, workload)
    except ClusterError as error:
        if not options.prepare:
            raise
        difference = f"it is not known what would change in the cluster: {error}"
    try:
        refuse_paused(cluster, workload)
        return difference, check_references(cluster, render)
    except ClusterError as error:
        if not options.prepare:
            raise
        return difference, [f"it is not known whether the cluster has what the pods need: {error}"]


def headline_metrics(manifest: Manifest) -> dict[str, Any]:
    """Accuracy and the F1 scores of the package on the test split, else on validation."""
    for split in ("test", "validation"):
        metrics = manifest.metrics.get(split)
        if isinstance(metrics, dict):
            names = ("accuracy", "macro_f1", "micro_f1")
            return {"split": split, **{name: metrics[name] for name in names if name in metrics}}
    return {}
