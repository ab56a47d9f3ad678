"""What every step of a release or a rollback works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from release.cluster.kubectl import Cluster
from release.cluster.overlay import (
    Workload,
    kustomization_of,
    read_kustomization,
    render_overlay,
    repository_of,
    with_image,
    workload_of,
)
from release.cluster.pods import Pods
from release.console import StepConsole
from release.options import RolloutOptions
from release.records import Record, Records, timestamp
from service.package.files import PackageError
from service.package.manifest import MODEL_STORE_NAME, read_manifest
from training.common.errors import ReleaseError, VerifyError
from training.common.git import git_commit
from training.registry.client import read_key
from training.registry.verify import package_folder

# The tag in a plan, and of a render that is only needed for the names in it.
UNBUILT_TAG = "not-built-yet"


@dataclass(frozen=True)
class ReleaseContext:
    """The options, the records, the cluster and the console of one release or rollback."""

    options: RolloutOptions
    records: Records
    cluster: Cluster
    console: StepConsole

    @classmethod
    def open(cls, options: RolloutOptions) -> ReleaseContext:
        """The context of a command, on the cluster that kubectl points to now."""
        cluster = Cluster(options.context)
        cluster.pin_context()
        return cls(options, Records(), cluster, StepConsole())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other release from this folder waiting.

        Raises:
            ReleaseError: another release or rollback runs.
        """
        with self.records.locked() as self.cluster.lock:
            yield

    def new_record(self, version: str, name: str, package: str) -> Record:
        """A record of a release that begins now; it is not saved yet."""
        return Record(
            id=self.records.new_id(version),
            name=name,
            version=version,
            overlay=str(self.options.overlay),
            package=package,
            started_at=timestamp(),
            context=self.cluster.context,
            git_commit=git_commit(mark_changes=True),
        )

    def unfinished_records(self) -> list[Record]:
        """The records of this overlay whose release was killed, or could not be undone."""
        overlay = str(self.options.overlay)
        return [record for record in self.records.of(overlay) if record.is_unfinished]

    def refuse_other_cluster(self, record: Record) -> None:
        """Refuse to undo or to observe in this cluster what was begun in another.

        Raises:
            ReleaseError: the release was begun in another context.
        """
        context = self.cluster.context
        if record.is_in(context):
            return
        if record.is_prepared:
            raise ReleaseError(
                f"release {record.id} was prepared for {record.context}, and kubectl points to "
                f"{context}: observe with --context {record.context}; if {context} is another name "
                "of the same cluster, give it that name with kubectl config rename-context "
                f"{context} {record.context}"
            )
        raise ReleaseError(
            f"{record.kind} {record.id} is unfinished in {record.context}, and kubectl points to "
            f"{context}: begin with --context {record.context}, or leave that cluster as it is "
            f"with whetstone rollback --overlay {record.overlay} --abandon"
        )

    def pods_of(self, workload: Workload) -> Pods:
        """The pods of a workload, asked with the key of the options."""
        return Pods(self.cluster, workload, read_key(self.options.api_key_file))

    def recorded_pods(self, record: Record) -> Pods:
        """The pods of the workload that a record has rendered.

        Raises:
            ReleaseError: the render is missing or was altered.
        """
        return self.pods_of(workload_of(self.read_render(record), str(record.image)))

    def read_render(self, record: Record) -> str:
        """The saved render of a record; empty if it has none.

        Raises:
            ReleaseError: the render is missing or was altered.
        """
        return self.records.read_render(record.render) if record.render else ""

    def deployed_pods(self) -> Pods:
        """The pods of the overlay's Deployment, whatever image they run."""
        render, image = self.render_unbuilt()
        return self.pods_of(workload_of(render, image))

    def render_unbuilt(self) -> tuple[str, str]:
        """What the overlay renders to before there is an image, and the name in its place."""
        overlay = self.options.overlay
        content = read_kustomization(kustomization_of(overlay))
        image = f"{repository_of(content)}:{UNBUILT_TAG}"
        return render_overlay(self.cluster, overlay, with_image(content, image)), image

    def find_package(self, version: str) -> str | None:
        """The package of a version: in the model store, or where an earlier release had it."""
        tag = f"{MODEL_STORE_NAME}:{version}"
        try:
            package_folder(tag)
            return tag
        except VerifyError:
            pass
        for record in reversed(self.records.all()):
            if record.version == version and _is_package(record.package, version):
                return record.package
        return None


def _is_package(package: str, version: str) -> bool:
    """Whether `package` still has this version; an address is believed."""
    if "://" in package:
        return True
    try:
        return read_manifest(package_folder(package)).version == version
    except (PackageError, VerifyError):
        return False
