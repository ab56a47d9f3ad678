"""Steps 1 to 5 of a release: from a package to an image that works and that the cluster can pull.

verify     the package is sound
compare    the champion does not speak against it
register   it is in BentoML's model store
bento      the bento of exactly this version
image      built, tried on this machine, and pushed if asked to
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from release.champion import compare_with_champion
from release.cluster.overlay import kustomization_of, read_kustomization, repository_of
from release.image.bento import build_bento, has_bento, record_label_change
from release.image.build import build_image
from release.image.engine import find_runner, has_image, push_image
from release.image.trial import try_image
from release.options import ReleaseOptions
from release.records import RecordedVerdict
from release.transaction import ReleaseTransaction, read_counters
from service.package.manifest import Manifest
from training.common.errors import ReleaseError
from training.common.layout import IMAGES, REPORT_FILE
from training.comparison.output import default_folder, write_comparison
from training.comparison.page import write_comparison_page
from training.comparison.result import Comparison
from training.registry.register import register
from training.registry.verify import verify_folder


@dataclass(frozen=True)
class Preparation:
    """The steps of a release that change nothing which anybody uses.

    What they make is kept, so that a release that was killed need not make it again.

    Attributes:
        folder: the package, on this machine.
    """

    transaction: ReleaseTransaction
    options: ReleaseOptions
    folder: Path
    manifest: Manifest

    def run(self) -> int:
        """Take every step; the exit status: 0 to go on, else nothing is released.

        Raises:
            ReleaseError, ImageError: a step failed.
        """
        content = read_kustomization(kustomization_of(self.options.overlay))
        repository = self.options.image_repository or repository_of(content)
        engine = self._find_engine() if self.options.image is None else None
        self._verify()
        status = self._compare()
        if status:
            return status
        tag = self._register()
        if engine is None:
            self.transaction.record.image = self.options.image
        else:
            bento = self._build_bento(tag)
            self._build_image(bento, tag, engine, repository)
        return 0

    def _find_engine(self) -> str:
        if self.manifest.target_device == "gpu":
            raise ReleaseError(
                "the image of a package for a GPU cannot be tried here: build it (see the README), "
                "try it on a GPU, and give --image NAME:TAG"
            )
        return find_runner(self.options.engine)

    def _verify(self) -> None:
        with self.transaction.step("verify") as results:
            results.append(verify_folder(self.folder, self.options.package))

    def _compare(self) -> int:
        """Compare with the champion; 0 if the verdict allows the release."""
        transaction, options = self.transaction, self.options
        with transaction.step("compare") as results:
            transaction.counters = read_counters(transaction.context.deployed_pods())
            judged = compare_with_champion(transaction.context, options, self.folder)
            comparison = judged.comparison
            judged.write_to(transaction.record, options)
            transaction.record.verdict = write_report(comparison)
            for warning in comparison.warnings:
                transaction.console.line(f"warning: {warning}")
            results.append(comparison.sentence)
        status = options.status_of(comparison.outcome)
        if status:
            transaction.end("refused", comparison.sentence)
            transaction.console.line("nothing was released")
        else:
            transaction.record.accepted_inconclusive = comparison.outcome == "inconclusive"
        return status

    def _register(self) -> str:
        """The tag of the package in the model store."""
        with self.transaction.step("register") as results:
            tag, _ = register(self.folder)
            record_label_change(tag, self.transaction.record.label_change)
            results.append(tag)
        return tag

    def _build_bento(self, tag: str) -> str:
        """The tag of a bento of this package, built if it was not built before."""
        record = self.transaction.record
        with self.transaction.step("bento") as results:
            bento = record.bento
            if bento is None or not has_bento(bento):
                bento = build_bento(tag)
                record.bento, record.image = bento, None
            results.append(bento)
        return bento

    def _build_image(self, bento: str, tag: str, engine: str, repository: str) -> None:
        record, report = self.transaction.record, self.transaction.console.report
        with self.transaction.step("image") as results:
            wanted = f"{repository}:{bento.partition(':')[2]}"
            if record.image != wanted or not has_image(engine, wanted):
                report("building, a minute or two")
                built = build_image(
                    bento,
                    engine,
                    platform=self.options.platform,
                    repository=repository,
                    sbom_folder=IMAGES,
                )
                record.image = built.name
                self.transaction.records.save(record)
            report("trying it")
            try_image(engine, str(record.image), tag)
            results.append(f"{record.image} answers here as recorded")
            if self.options.push is not None:
                report("pushing")
                record.pushed = push_image(engine, str(record.image), self.options.push)
                results.append(record.pushed)


def write_report(comparison: Comparison) -> RecordedVerdict:
    """Write the report of a comparison; its verdict, for the record."""
    folder = default_folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison_page(folder / REPORT_FILE, comparison)
    write_comparison(comparison, folder)
    return RecordedVerdict(
        outcome=comparison.outcome,
        reasons=dict(comparison.reasons),
        warnings=list(comparison.warnings),
        macro_f1=comparison.challenger.metrics["macro_f1"],
        report=str(folder / REPORT_FILE),
    )
