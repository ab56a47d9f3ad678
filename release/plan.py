"""The plan of a release: what it would do. Nothing is changed."""

from __future__ import annotations

import difflib

from release.champion import compare_with_champion
from release.cluster.apis import check_apis
from release.cluster.kubectl import Cluster
from release.cluster.overlay import (
    Workload,
    kustomization_of,
    read_kustomization,
    render_overlay,
    repository_of,
    without_secrets,
    workload_of,
)
from release.cluster.references import check_references
from release.context import UNBUILT_TAG, ReleaseContext
from release.history import describe_outcome
from release.image.localhost import refuse_unpullable
from release.image_name import ImageName
from release.options import ReleaseOptions
from release.overlay_edit import edit_image
from release.records import OverlayEdit
from training.common.errors import ClusterError, ReleaseError
from training.comparison.result import Comparison
from training.registry.publish import package_at
from training.registry.verify import verify_folder


def print_plan(context: ReleaseContext, options: ReleaseOptions) -> int:
    """Print what would be done; the exit status that the verdict has."""
    for record in context.unfinished_records():
        context.console.line(
            f"release {record.id} is {describe_outcome(record)}: --apply begins with it"
        )
    comparison = _verify_and_compare(context, options)
    image = options.image or f"{_repository(options)}:{UNBUILT_TAG}"
    edit = edit_image(options.overlay, image)
    render = render_overlay(context.cluster, options.overlay, edit.after)
    context.console.line(without_secrets(render).rstrip())
    context.console.line(_diff_edit(edit))
    try:
        for warning in check_apis(context.cluster, render):
            context.console.line(f"warning: {warning}")
        repository = ImageName.parse(image).repository
        refuse_unpullable(repository, options.push, context.cluster.context)
        context.console.line(diff_render(context.cluster, render, workload_of(render, image)))
        for warning in check_references(context.cluster, render):
            context.console.line(f"warning: {warning}")
    except ReleaseError as error:
        context.console.line(f"--apply would be refused: {error}")
    except ClusterError as error:
        context.console.line(f"it is not known what would change in the cluster: {error}")
    for share in options.canary:
        context.console.line(
            f"before the rollout, {share:.0%} of the requests go to the new version for "
            f"{options.canary_seconds:g} s"
        )
    context.console.line("nothing was changed: --apply releases the package")
    return options.status_of(comparison.outcome)


def diff_render(cluster: Cluster, render: str, workload: Workload) -> str:
    """What would change in the cluster, for the screen."""
    if cluster.get("namespace", workload.namespace, workload.namespace) is None:
        # A dry run on the server needs the namespace.
        return f"everything is new: there is no namespace {workload.namespace}"
    return cluster.diff(render) or "nothing changes: the cluster already holds this"


def _verify_and_compare(context: ReleaseContext, options: ReleaseOptions) -> Comparison:
    console = context.console
    with package_at(options.package) as folder:
        with console.step("verify") as results:
            results.append(verify_folder(folder, options.package))
        with console.step("compare") as results:
            comparison = compare_with_champion(context, options, folder).comparison
            results.append(comparison.sentence)
    for warning in comparison.warnings:
        console.line(f"warning: {warning}")
    return comparison


def _repository(options: ReleaseOptions) -> str:
    """The name of the image without a tag."""
    if options.image_repository:
        return options.image_repository
    return repository_of(read_kustomization(kustomization_of(options.overlay)))


def _diff_edit(edit: OverlayEdit) -> str:
    before, after = edit.before.splitlines(), edit.after.splitlines()
    return "\n".join(difflib.unified_diff(before, after, edit.file, edit.file, lineterm=""))
