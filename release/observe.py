"""A prepared release, observed: a GitOps tool (Argo CD, Flux) applies it, and this looks at it.

Nothing is applied here: the tool would undo it. What goes wrong is written back into the overlay,
to be committed. An observation that was interrupted, or that could not decide anything, leaves the
release prepared, and can be run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from release.cluster.health import Baseline, Sample, choose_baseline
from release.cluster.overlay import (
    image_of_content,
    kustomization_of,
    read_kustomization,
    with_image,
    write_kustomization,
)
from release.cluster.pods import Pods, image_of
from release.cluster.rollout import SAMPLE_SECONDS
from release.context import ReleaseContext
from release.image_name import ImageName
from release.options import ObserveOptions
from release.records import Record
from release.rollback import fetched_package
from release.transaction import ReleaseTransaction, read_counters
from service.package.golden import GoldenMismatchError
from training.common.errors import KeyRefusedError, ReleaseError, VerifyError


def observe(options: ObserveOptions) -> int:
    """Wait until the cluster shows the prepared version, check its pods, and watch them.

    Returns:
        The exit status: 0 if the release is good.

    Raises:
        ReleaseError: it is not, and the overlay is as before; or nothing was decided.
        WhetstoneError: the cluster could not be asked; nothing was decided.
    """
    context = ReleaseContext.open(options)
    with context.locked():
        record = find_prepared(context)
        context.refuse_other_cluster(record)
        context.cluster.be_patient()
        transaction = ReleaseTransaction(record, context)
        pods = context.recorded_pods(record)
        baseline = _Arrival(transaction, pods, options.wait).wait()
        package = context.find_package(record.version)
        with fetched_package(package, context.console) as folder:
            try:
                transaction.check(pods, folder)
                transaction.watch(pods, baseline)
            except KeyRefusedError:
                # That says nothing about the release.
                raise
            except (ReleaseError, VerifyError, GoldenMismatchError) as error:
                _take_back(transaction, pods, str(error))
        transaction.end("released")
    context.console.line(
        f"released: {record.name} {record.version} in {record.namespace} as {record.image}\n"
        f"commit:   {context.records.path_of(record)}"
    )
    return 0


def find_prepared(context: ReleaseContext) -> Record:
    """The prepared release that the overlay names.

    Raises:
        ReleaseError: nothing is prepared, or the overlay names something else.
    """
    overlay = context.options.overlay
    prepared = [record for record in context.unfinished_records() if record.is_prepared]
    if not prepared:
        raise ReleaseError(
            f"no release of {overlay} in {context.records.folder} is prepared and waits to be "
            "observed: whetstone release --prepare prepares one (whetstone history lists them)"
        )
    file = kustomization_of(overlay)
    named = image_of_content(read_kustomization(file))
    for record in reversed(prepared):
        if _reference(record) == named:
            return record
    record = prepared[-1]
    raise ReleaseError(
        f"{file} names {named}, and release {record.id} prepared {_reference(record)}: take both "
        "from the same commit, or prepare again"
    )


def _reference(record: Record) -> str:
    return ImageName.parse(str(record.image)).reference


@dataclass(frozen=True)
class _Arrival:
    """The wait for the prepared version.

    Attributes:
        seconds: how long the cluster may take to show it.
    """

    transaction: ReleaseTransaction
    pods: Pods
    seconds: float

    def wait(self) -> Baseline:
        """Wait until the Deployment has the prepared image.

        Returns:
            The requests to the pods that ran before, counted while this waited.

        Raises:
            ReleaseError: the cluster shows a third image, or the old one for too long.
        """
        transaction, record = self.transaction, self.transaction.record
        wanted = _reference(record)
        first: dict[str, Sample] = {}
        latest: dict[str, Sample] = {}
        end, next_sample = time.monotonic() + self.seconds, time.monotonic()
        # If the cluster could not be asked when the release was prepared, this is found out now.
        before = record.previous.image if record.previous else self._shown()
        with transaction.step("wait") as results:
            while (shown := self._shown()) != wanted:
                if shown not in (before, None):
                    self._refuse_third(shown, before, wanted)
                if time.monotonic() >= end:
                    self._refuse_late(shown, wanted)
                if time.monotonic() >= next_sample:
                    latest = read_counters(self.pods) or latest
                    first = first or latest
                    next_sample = time.monotonic() + SAMPLE_SECONDS
                transaction.console.report(f"the cluster still shows {shown or 'no Deployment'}")
                self.pods.pause()
            results.append(f"the cluster shows {wanted}")
        return choose_baseline(first, latest)

    def _shown(self) -> str | None:
        """The image of the Deployment; None if there is none."""
        deployment = self.pods.deployment()
        return None if deployment is None else image_of(deployment)

    def _refuse_third(self, shown: str | None, before: str | None, wanted: str) -> None:
        raise ReleaseError(
            f"the cluster shows {shown}, which is neither the prepared {wanted} nor "
            f"{before or 'nothing, as'} before: somebody else changes {self.pods.workload.name} in "
            f"{self.pods.workload.namespace}; find out who, and observe again or prepare again"
        )

    def _refuse_late(self, shown: str | None, wanted: str) -> None:
        raise ReleaseError(
            f"after {self.seconds:g} seconds the cluster still shows {shown or 'no Deployment'}, "
            f"not {wanted}: is the change merged, and does the GitOps tool apply it? Observe "
            "again, with a longer --wait, or take the change back with whetstone rollback "
            f"--overlay {self.transaction.record.overlay} --unfinished"
        )


def _take_back(transaction: ReleaseTransaction, pods: Pods, reason: str) -> None:
    """Write the overlay as before.

    Raises:
        ReleaseError: always; the message says what failed, and what to do.
    """
    transaction.keep_evidence(pods, reason)
    edit = transaction.record.overlay_edit
    file = edit.file if edit else transaction.record.overlay
    restored = _restore_image(transaction)
    transaction.end("undone", reason)
    if restored:
        what = f"{file} is as before: commit it, and the GitOps tool takes the version back"
    else:
        what = (
            f"{file} was edited meanwhile: write the image into it that ran before, and commit it"
        )
    raise ReleaseError(f"release {transaction.record.id} failed: {reason}; {what}")


def _restore_image(transaction: ReleaseTransaction) -> bool:
    """Write the image of before into the overlay, whatever else was edited; whether it is there."""
    edit = transaction.record.overlay_edit
    if edit is None or not Path(edit.file).is_file():
        return False
    content = read_kustomization(Path(edit.file))
    if content in (edit.before, edit.after):
        write_kustomization(Path(edit.file), edit.before)
        return True
    before = image_of_content(edit.before)
    if before is None or image_of_content(content) != _reference(transaction.record):
        return False
    write_kustomization(Path(edit.file), with_image(content, before))
    return True
