"""A prepared release, observed: a GitOps tool (Argo CD, Flux) applies it, and this looks at it.

Nothing is applied here: the tool would undo it. What goes wrong is written back into the overlay,
to be committed. An observation that was interrupted, or that could not decide anything, leaves the
release prepared, and can be run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from release.cluster.health import Baseline, Sample, choose_baseline
from release.cluster.overlay import image_of_content, kustomization_of, read_kustomization
from release.cluster.pods import Pods, image_of
from release.cluster.rollout import SAMPLE_SECONDS
from release.context import ReleaseContext
from release.image_name import ImageName
from release.options import ObserveOptions
from release.records import Record
from release.transaction import ReleaseTransaction, read_counters
from service.package.golden import GoldenMismatchError
from training.common.errors import KeyRefusedError, ReleaseError, VerifyError
from training.registry.publish import package_at


def observe(options: ObserveOptions) -> int:
    """Wait until the cluster shows the prepared version, check its pods, and watch them.

    Returns:
        The exit status: 0 if the release is good.

    Raises:
        ReleaseError: it is not, and the overlay is as before; or nothing was decided.
        WhetstoneError, PackageError: the cluster could not be asked, or the package not be had;
            nothing was decided.
    """
    context = ReleaseContext.open(options)
    with context.locked():
        record = find_prepared(context)
        context.refuse_other_cluster(record)
        context.cluster.be_patient()
        transaction = ReleaseTransaction(record, context)
        pods = context.recorded_pods(record)
        with package_at(find_golden_package(context, record)) as folder:
            baseline = _Arrival(transaction, pods, options.wait).wait()
            try:
                transaction.check(pods, str(folder))
                transaction.watch(pods, baseline)
            except KeyRefusedError:
                # That says nothing about the release.
                raise
            except (ReleaseError, VerifyError, GoldenMismatchError) as error:
                _take_back(transaction, pods, str(error))
        record.context = record.context or context.cluster.context
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


def find_golden_package(context: ReleaseContext, record: Record) -> str:
    """The package whose golden texts the pods are asked.

    Raises:
        ReleaseError: it is not found. Without it nothing says that the pods answer rightly.
    """
    package = context.find_package(record.version)
    if package is None:
        raise ReleaseError(
            f"the golden texts of version {record.version} cannot be asked: its package is neither "
            f"in BentoML's model store nor at {record.package}, from where it was prepared. "
            "Register it here (whetstone register), and observe again; release "
            f"{record.id} stays prepared"
        )
    return package


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
        if deployment is None:
            return None
        return image_of(deployment, self.pods.workload.container)

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
    problem = transaction.restore_overlay_if_possible()
    transaction.end("undone", reason)
    file = edit.file if edit else transaction.record.overlay
    if edit is None or problem is not None:
        what = (
            f"{file} names the image that failed: write the one into it that ran before, and "
            "commit it"
        )
    else:
        what = f"{file} is as before: commit it, and the GitOps tool takes the version back"
    raise ReleaseError(f"release {transaction.record.id} failed: {reason}; {what}")
