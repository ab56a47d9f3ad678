"""Steps 1 to 5 of a release: from a package to an image that works and that the cluster can pull.

verify     the package is sound
compare    the champion does not speak against it
register   it is in BentoML's model store
bento      the bento of exactly this version
image      built, tried on this machine, and pushed if asked to; or taken from an earlier try
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from release.champion import compare_with_champion
from release.cluster.overlay import kustomization_of, read_kustomization, repository_of
from release.image.bento import build_bento, has_bento, record_label_change
from release.image.build import build_image
from release.image.engine import find_runner, image_id, stored_name
from release.image.localhost import refuse_unpullable
from release.image.push import Pushed, push_image
from release.image.reuse import (
    base_id,
    by_digest,
    digest_of_inputs,
    find_built,
    is_pushed,
    is_usable,
)
from release.image.trial import try_image
from release.image_name import ImageName
from release.options import ReleaseOptions
from release.records import BuiltImage, RecordedVerdict
from release.transaction import ReleaseTransaction, read_counters
from service.package.manifest import Manifest
from training.common.errors import ImageError, ReleaseError
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
        if engine is not None:
            repository = stored_name(engine, repository)
        elif self.options.image:
            repository = ImageName.parse(self.options.image).repository
        refuse_unpullable(repository, self.options.push, self.transaction.cluster.context)
        self._verify()
        status = self._compare()
        if status:
            return status
        tag = self._register()
        if engine is None:
            self.transaction.record.image = self.options.image
        else:
            self._provide_image(tag, engine, repository)
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

    def _provide_image(self, tag: str, engine: str, repository: str) -> None:
        """An image of this package that works, and that the cluster can pull."""
        record, options = self.transaction.record, self.options
        inputs = digest_of_inputs(
            tag, engine=engine, platform=options.platform, repository=repository
        )
        found = find_built(self.transaction.records.all(), inputs)
        if found and is_usable(found[1], here=bool(options.push)):
            earlier, record.built = found
            record.bento = record.built.bento
            taken = f"{record.built.name} of {earlier.id} is taken, because nothing in it changed"
        else:
            bento = self._build_bento(tag, found[1].bento if found else None)
            record.built = BuiltImage(
                inputs=inputs, engine=engine, bento=bento, git_commit=record.git_commit
            )
            taken = None
        with self.transaction.step("image") as results:
            results += [taken] if taken else []
            self._build_image(record.built, repository)
            results += self._try_and_push(record.built, tag)

    def _build_bento(self, tag: str, bento: str | None) -> str:
        """The tag of a bento of this package, built if it was not built before."""
        record = self.transaction.record
        with self.transaction.step("bento") as results:
            if bento is None or not has_bento(bento):
                bento = build_bento(tag)
            record.bento = bento
            results.append(bento)
        return bento

    def _build_image(self, built: BuiltImage, repository: str) -> None:
        if built.name is not None:
            return
        # A release that is killed meanwhile has a bento that the next one takes.
        self.transaction.records.save(self.transaction.record)
        self.transaction.console.report("building, a minute or two")
        with self.transaction.timed("image: build"):
            image = build_image(
                built.bento,
                built.engine,
                platform=self.options.platform,
                repository=repository,
                sbom_folder=IMAGES,
            )
        built.name, built.id = image.name, image_id(built.engine, image.name)
        built.base = base_id(built.engine)
        self.transaction.records.save(self.transaction.record)

    def _try_and_push(self, built: BuiltImage, tag: str) -> list[str]:
        """Try the image here while it is pushed; the results for the screen.

        Raises:
            ReleaseError: one of them failed, after both have ended.
        """
        record, command = self.transaction.record, self.options.push
        results = []
        known = not command and is_pushed(built)
        with ThreadPoolExecutor(1) as pool:
            pushing = None
            if command is not None and not known:
                pushing = pool.submit(push_image, built.engine, str(built.name), command)
            if not built.tried:
                self._try(built, tag, pushing)
                results.append(f"{built.name} answers here as recorded")
            if pushing is not None:
                self.transaction.console.report("pushing")
                pushed = pushing.result()
                built.digest, record.pushed = pushed.digest, pushed.done
                record.durations["image: push"] = pushed.seconds
                results.append(pushed.done)
            elif known:
                results.append("it is in the registry already")
        if pushing is None and not known:
            built.digest = None
        record.image = str(by_digest(str(built.name), built.digest))
        return results

    def _try(self, built: BuiltImage, tag: str, pushing: Future[Pushed] | None) -> None:
        self.transaction.console.report("trying and pushing it" if pushing else "trying it")
        try:
            with self.transaction.timed("image: try"):
                try_image(built.engine, str(built.name), tag)
        except (ReleaseError, ImageError) as error:
            raise ReleaseError(f"{error}{_describe_unused(built, pushing)}") from None
        built.tried = True
        self.transaction.records.save(self.transaction.record)


def _describe_unused(built: BuiltImage, pushing: Future[Pushed] | None) -> str:
    """After a try-out that failed, what became of the push; empty if there was none."""
    if pushing is None:
        return ""
    problem = pushing.exception()
    if problem is not None:
        return f"; nor was it pushed: {problem}"
    return f"; {built.name} was pushed meanwhile (`{pushing.result().done}`), and nothing uses it"


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
