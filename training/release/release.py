"""The steps of a release and of a rollback, each written down before it is taken.

Up to the overlay nothing that anybody uses is changed, and what was made can be used again. From
`apply` on, whatever goes wrong, an interruption too, ends with what ran before. Whoever is killed
leaves a record, and the next release or rollback of the overlay begins with it.
"""

from __future__ import annotations

import difflib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from service.classifier import GoldenMismatchError
from service.model_package import (
    MODEL_STORE_NAME,
    Manifest,
    PackageError,
    read_manifest,
)
from training.cluster import Cluster
from training.errors import ClusterError, ReleaseError, VerifyError, WhetstoneError
from training.release import rollout
from training.release.overlay import (
    Workload,
    kustomization_of,
    read_kustomization,
    rendered,
    repository_of,
    with_image,
    without_secrets,
    workload_of,
    write_kustomization,
)
from training.release.records import OverlayEdit, Record, Records, Step, now
from training.release.rollout import (
    Pods,
    check_pods,
    put_back,
    running_version,
    save_previous,
    wait_for_rollout,
    watch_pods,
)
from training.release.watch import Sample, compared_with
from training.verify import package_folder, read_key, verify_folder

CURRENT, NO_CHAMPION = "current", "none"
TO_BE_BUILT = "not-built-yet"
WATCH_SECONDS = 60.0
# What a user can mend, and what a release is undone for: anything else is a fault of ours.
EXPECTED = (WhetstoneError, PackageError, GoldenMismatchError, OSError)
EXIT_OF_OUTCOME = {"promote": 0, "refuse": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Wishes:
    """What was asked for."""

    package: str
    overlay: Path
    champion: str
    data: str
    apply: bool = False
    image: str | None = None
    image_repository: str | None = None
    engine: str | None = None
    platform: str | None = None
    push: str | None = None
    accept_inconclusive: bool = False
    allow_label_change: bool = False
    watch: float = WATCH_SECONDS
    context: str | None = None
    api_key_file: Path | None = None
    unfinished: bool = False
    abandon: bool = False
    bounds: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)


class Screen:
    """One line for each step; while it lasts, where there is a terminal, what it is at.

    A terminal or pipe that is gone ends nothing: what was begun must still be ended or undone.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._status: Any = None
        self._name = ""

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """The block fills the list with what the line says."""
        said: list[str] = []
        began = time.monotonic()
        self._name = name
        self._status = self.console.status(name)
        self._quietly(self._status.start)
        try:
            yield said
        finally:
            self._quietly(self._status.stop)
            self._status = None
        took = time.monotonic() - began
        self.line(f"{name:<9} {'; '.join(said) or 'done'}  ({took:.1f} s)")

    def say(self, text: str) -> None:
        """What the step is at."""
        if self._status is not None:
            self._quietly(self._status.update, f"{self._name}: {text}")

    def line(self, text: str) -> None:
        """Something beside the steps."""
        self._quietly(self.console.print, text)

    def _quietly(self, write: Callable[..., object], *words: str) -> None:
        try:
            write(*words)
        except (OSError, SystemExit):
            # rich ends the process where a pipe is broken.
            self.console.quiet = True
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to the end of the process


class Release:
    """One release or rollback that is written down.

    Attributes:
        counters: what the pods that ran had counted when it began; empty where that is not known,
            and for a rollback, which asks no pod more than it must.
    """

    def __init__(self, record: Record, records: Records, cluster: Cluster, screen: Screen) -> None:
        self.record = record
        self.records = records
        self.cluster = cluster
        self.screen = screen
        self.counters: dict[str, Sample] = {}

    @contextmanager
    def step(self, name: Step) -> Iterator[list[str]]:
        """A step: written down, timed, and a line on screen."""
        self.record.step = name
        self.records.save(self.record)
        began = time.monotonic()
        with self.screen.step(name) as said:
            yield said
        self.record.durations[name] = round(time.monotonic() - began, 1)
        self.records.save(self.record)

    def end(self, outcome: Any, reason: str | None = None) -> None:
        """The last thing written."""
        self.record.outcome, self.record.reason = outcome, reason
        self.record.finished_at = now()
        if outcome != "unfinished":
            self.record.step = "end"
        self.records.save(self.record)

    def write_overlay(self, image: str, edit: OverlayEdit, render: str) -> None:
        """Write the image into the overlay; how it was and will be is written down first.

        Raises:
            ReleaseError: somebody has edited it since it was read.
        """
        file = Path(edit.file)
        self.record.overlay_edit = edit
        self.record.image = image
        kept = without_secrets(render)
        self.record.render = self.records.save_render(f"{self.record.id}.yaml", kept)
        self.records.save(self.record)
        if read_kustomization(file) != edit.before:
            raise ReleaseError(f"{file} was edited just now: look at it, and release again")
        write_kustomization(file, edit.after)

    def restore_overlay(self) -> None:
        """The kustomization as it was; only the image of one that somebody else has edited."""
        edit = self.record.overlay_edit
        if edit is None or not Path(edit.file).is_file():
            return
        found = read_kustomization(Path(edit.file))
        if found == edit.after:
            write_kustomization(Path(edit.file), edit.before)
        elif found != edit.before and self.record.image:
            self.screen.line(
                f"{edit.file} was edited meanwhile: it is left as it is, with the image "
                f"{self.record.image}"
            )

    def roll_out(self, render: str, package: str | None, wishes: Wishes) -> None:
        """Apply, wait, ask every pod, watch; undone, whatever goes wrong.

        Raises:
            ReleaseError: it was undone, and why; or could not be.
        """
        key = read_key(wishes.api_key_file)
        workload = workload_of(render, str(self.record.image))
        pods = Pods(self.cluster, workload, key)
        self.cluster.patience = rollout.PATIENCE_SECONDS
        try:
            with _signals_interrupt():
                before, since = compared_with(self.counters, _counters(pods))
                with self.step("apply") as said:
                    rollout.apply(self.cluster, render, workload)
                    wait_for_rollout(pods, self.screen.say)
                    said.append(f"{workload.name} in {workload.namespace} is rolled out")
                with self.step("check") as said:
                    self.record.pods = check_pods(
                        pods, self.record.version, package, wishes.api_key_file, self.screen.say
                    )
                    asked = "and the golden texts are answered as recorded"
                    if package is None:
                        asked = "its package is not at hand, so no golden text was asked"
                    count = len(self.record.pods)
                    said.append(f"{count} pods serve {self.record.version}, {asked}")
                with self.step("watch") as said:
                    seen = watch_pods(pods, before, wishes.watch, self.screen.say)
                    self.record.watched = {**seen, "before_since": since}
                    said.append(_watched(self.record.watched))
        except BaseException as error:
            expected = isinstance(error, EXPECTED)
            told = str(error) if expected else f"{type(error).__name__} {error}".rstrip()
            interrupted = isinstance(error, KeyboardInterrupt)
            self.undo(pods, "it was interrupted" if interrupted else told)
            if not expected:
                raise
            again = "what ran before runs again"
            if self.record.previous is None or self.record.previous.version is None:
                again = "the cluster is as it was"
            raise ReleaseError(f"nothing was released: {told}; {again}") from error

    def undo(self, pods: Pods, reason: str) -> None:
        """Put back what ran before.

        Raises:
            ReleaseError: that failed, and what to do.
        """
        self.record.reason = reason
        self.cluster.patience = rollout.PATIENCE_SECONDS
        try:
            # A job that is cancelled is told so twice.
            with _signals_ignored(), self.step("put back") as said:
                self.screen.line(f"undoing: {reason}")
                self.restore_overlay()
                put_back(self.cluster, self.records, self.record, pods, self.screen.say)
                previous = self.record.previous
                said.append(
                    f"version {previous.version} answers everywhere"
                    if previous and previous.version
                    else "the cluster is as it was"
                )
        except BaseException as error:
            self.end("unfinished", f"{reason}; then, putting back: {error}")
            raise ReleaseError(
                f"the release failed ({reason}), AND WHAT RAN BEFORE COULD NOT BE PUT BACK "
                f"({str(error) or 'interrupted'}): {self._ways_out()}"
            ) from error
        self.end("rolled back", reason)

    def give_up(self) -> None:
        """End one that has not touched the cluster."""
        record = self.record
        self.screen.line(f"{record.kind} {record.id} was broken off at {record.step}: given up")
        self.end("failed", f"killed at {record.step}, before anything was applied")

    def abandon(self, why: str) -> None:
        """Leave what it has done to the cluster there, for good; say what that is."""
        record = self.record
        created = record.previous.created if record.previous else []
        more = f", and {len(created)} objects that it created (see its record)" if created else ""
        self.screen.line(
            f"{record.kind} {record.id} was broken off at {record.step} and is not undone: {why}; "
            f"{record.namespace} in {record.context or 'the cluster'} may hold {record.image}{more}"
        )
        record.abandoned = True
        self.end("failed", f"{record.reason or f'killed at {record.step}'}; not undone: {why}")

    def _ways_out(self) -> str:
        """What to do where it cannot be undone."""
        context = f" --context {self.record.context}" if self.record.context else ""
        command = f"whetstone rollback --overlay {self.record.overlay}{context}"
        previous = self.record.previous
        by_hand = ""
        if previous is not None and previous.render is not None:
            file = self.records.folder / previous.render.file
            by_hand = f" (after kubectl apply{context} -f {file}, perhaps)"
        return (
            f"run {command} to try again, the same with a VERSION to go to that one instead, or "
            f"with --abandon to leave the cluster as it is{by_hand}"
        )


def release(wishes: Wishes) -> int:
    """All steps, or without `apply` those that change nothing; the exit status.

    Raises:
        WhetstoneError: nothing was released, and why.
        PackageError, GoldenMismatchError: the package is not sound.
    """
    records, cluster, screen = Records(), Cluster(wishes.context), Screen()
    cluster.pin_context()
    if not wishes.apply:
        return _plan(wishes, records, cluster, screen)
    with records.locked() as cluster.lock:
        begun = _recover(wishes, records, cluster, screen, releasing=True)
        return _release(wishes, records, cluster, screen, begun)


def rollback(wishes: Wishes, version: str | None) -> int:
    """Return to a recorded release; without a version to the one before, or from an unfinished one.

    After one that was abandoned the one before is the last that was released.
    With a version what is unfinished is not undone first: perhaps it cannot be.

    Raises:
        WhetstoneError: nothing was changed, and why.
    """
    records, cluster, screen = Records(), Cluster(wishes.context), Screen()
    cluster.pin_context()
    with records.locked() as cluster.lock:
        if version is None:
            abandoned = "it was abandoned" if wishes.abandon else None
            recovered = _recover(wishes, records, cluster, screen, abandoned, releasing=False)
            only = wishes.unfinished or wishes.abandon
            if only and not recovered:
                screen.line(f"no release of {wishes.overlay} is unfinished")
            if only or recovered:
                return 0
        return _roll_back(wishes, version, records, cluster, screen)


def _roll_back(
    wishes: Wishes, version: str | None, records: Records, cluster: Cluster, screen: Screen
) -> int:
    target = _target(records, str(wishes.overlay), version, cluster.context)
    render = records.read_render(target.render) if target.render else ""
    workload = workload_of(render, str(target.image))
    pods = Pods(cluster, workload, read_key(wishes.api_key_file))
    package = _find_package(target.version, records)
    unfinished = _unfinished(wishes, records, cluster, screen)
    record = Record(
        **_common(wishes, records, cluster, target.version, target.name),
        kind="rollback",
        package=target.package,
        metrics=target.metrics,
        bento=target.bento,
        champion=target.id,
    )
    one = Release(record, records, cluster, screen)
    # Secrets are not in what was saved; those of a generator are still in the cluster.
    try:
        with one.step("overlay") as said:
            record.champion_version = _running(pods)
            record.namespace, record.deployment = workload.namespace, workload.name
            record.previous = save_previous(cluster, records, record, render, workload)
            for other in unfinished:
                other.restore_overlay()
            file = kustomization_of(wishes.overlay)
            before = read_kustomization(file)
            after = with_image(before, str(target.image))
            edit = OverlayEdit(file=str(file), before=before, after=after)
            one.write_overlay(str(target.image), edit, render)
            said.append(f"{file}: {target.image}")
    except (*EXPECTED, KeyboardInterrupt) as error:
        one.restore_overlay()
        one.end("failed", str(error) or "it was interrupted")
        raise
    with _fetched(package, screen) as folder:
        # Not before: until here the next run can still undo what is unfinished.
        for other in unfinished:
            if other.record.touched:
                other.abandon(f"a rollback to {version} came instead")
            else:
                other.give_up()
        one.roll_out(render, folder, wishes)
    one.end("released")
    screen.line(f"{workload.namespace} serves {record.version} again ({target.id})")
    return 0


@contextmanager
def _fetched(package: str | None, screen: Screen) -> Iterator[str | None]:
    """Where the package of a rollback lies; None where it cannot be had, and it says so."""
    from training.publish import package_at

    with ExitStack() as stack:
        folder = None
        if package is not None:
            try:
                folder = str(stack.enter_context(package_at(package)))
            except EXPECTED as error:
                screen.line(f"warning: no golden text will be asked: {error}")
        yield folder


def _release(
    wishes: Wishes, records: Records, cluster: Cluster, screen: Screen, begun: Record | None
) -> int:
    from training.publish import package_at

    with package_at(wishes.package) as folder:
        manifest = read_manifest(folder)
        if begun is not None:
            record = begun
        else:
            record = Record(
                **_common(wishes, records, cluster, manifest.version, manifest.name),
                package=wishes.package,
                metrics=_headlines(manifest),
                image_given=wishes.image is not None,
            )
        one = Release(record, records, cluster, screen)
        try:
            status = _prepare(one, wishes, folder, manifest)
            if status:
                return status
            render = _write_and_save(one)
        except (*EXPECTED, KeyboardInterrupt) as error:
            one.restore_overlay()
            one.end("failed", str(error) or "it was interrupted")
            raise
        one.roll_out(render, f"{MODEL_STORE_NAME}:{record.version}", wishes)
    one.end("released")
    screen.line(
        f"released: {record.name} {record.version} in {record.namespace} as {record.image}\n"
        f"record:   {records.folder / record.id}.json\n"
        f"undo:     whetstone rollback --overlay {record.overlay}"
    )
    return 0


def _prepare(one: Release, wishes: Wishes, folder: Path, manifest: Manifest) -> int:
    """Steps 1 to 5: up to an image that is known to work and where the cluster finds it."""
    from training.register import register
    from training.release import images

    record, screen = one.record, one.screen
    file = kustomization_of(wishes.overlay)
    repository = wishes.image_repository or repository_of(read_kustomization(file))
    engine = ""
    if wishes.image is None:
        _refuse_gpu(manifest)
        engine = images.find_runner(wishes.engine)
    with one.step("verify") as said:
        said.append(verify_folder(folder, wishes.package))
    with one.step("compare") as said:
        one.counters = _counters(_deployed(wishes, one.cluster))
        outcome, sentence = _judge(one, wishes, folder, manifest)
        said.append(sentence)
    if outcome == "refuse" or (outcome == "inconclusive" and not wishes.accept_inconclusive):
        one.end("refused", sentence)
        screen.line("nothing was released")
        return EXIT_OF_OUTCOME[outcome]
    record.accepted_inconclusive = outcome == "inconclusive"
    with one.step("register") as said:
        tag, _ = register(folder)
        images.state_label_change(tag, record.label_change)
        said.append(tag)
    if wishes.image is not None:
        record.image = wishes.image
        return 0
    with one.step("bento") as said:
        if record.bento is None or not images.has_bento(record.bento):
            record.bento, record.image = images.build_bento(tag), None
        said.append(record.bento)
    with one.step("image") as said:
        wanted = f"{repository}:{record.bento.partition(':')[2]}"
        if record.image != wanted or not images.has_image(engine, wanted):
            screen.say("building, a minute or two")
            record.image = images.build(record.bento, engine, repository, wishes.platform)
            one.records.save(record)
        screen.say("trying it")
        images.try_image(engine, str(record.image), tag)
        said.append(f"{record.image} answers here as recorded")
        if wishes.push is not None:
            screen.say("pushing")
            record.pushed = images.push(engine, str(record.image), wishes.push)
            said.append(record.pushed)
    return 0


def _judge(one: Release, wishes: Wishes, folder: Path, manifest: Manifest) -> tuple[str, str]:
    """The verdict of the comparison with what runs, and its sentence; both recorded."""
    from training.compare_output import default_folder, write_comparison
    from training.layout import REPORT_FILE
    from training.report.comparison import write_comparison_page

    found = _compared(wishes, one.records, one.cluster, folder, one.record)
    place = default_folder(found)
    place.mkdir(parents=True, exist_ok=True)
    write_comparison_page(place / REPORT_FILE, found)
    write_comparison(found, place)
    one.record.verdict = {
        "outcome": found.outcome,
        "reasons": dict(found.reasons),
        "warnings": list(found.warnings),
        "macro_f1": found.challenger.metrics["macro_f1"],
        "report": str(place / REPORT_FILE),
    }
    for warning in found.warnings:
        one.screen.line(f"warning: {warning}")
    return found.outcome, found.sentence


def _compared(
    wishes: Wishes, records: Records, cluster: Cluster, folder: Path, record: Record
) -> Any:
    """`whetstone compare` with the champion that was named, or that runs."""
    from training.compare import compare

    champion, version = _champion(wishes, records, cluster)
    found = compare(
        champion,
        str(folder),
        wishes.data,
        bounds=wishes.bounds,
        columns=wishes.columns,
        allow_label_change=wishes.allow_label_change,
    )
    record.champion, record.champion_version = wishes.champion, version
    record.data = {
        "file": wishes.data,
        "sha256": found.sha256,
        "rows": len(found.split),
    }
    if found.gone or found.come:
        record.label_change = {"from": version, "gone": found.gone, "come": found.come}
    return found


def _champion(wishes: Wishes, records: Records, cluster: Cluster) -> tuple[str, str | None]:
    """The package to compare with, and the version that runs."""
    pods = _deployed(wishes, cluster)
    try:
        version = running_version(pods)
    except (ClusterError, VerifyError):
        # A first release may be planned without a cluster, and may replace what answers nobody.
        if wishes.champion == CURRENT or wishes.apply:
            raise
        return wishes.champion, None
    if wishes.champion != CURRENT:
        return wishes.champion, version
    if version is None:
        raise ReleaseError(
            f"nothing runs as {pods.workload.name} in {pods.workload.namespace}: a first release "
            "is --champion none"
        )
    package = _find_package(version, records)
    if package is None:
        raise ReleaseError(
            f"version {version} runs, and its package is neither in BentoML's model store nor in "
            f"{records.folder}: register it (whetstone register), or name it with --champion"
        )
    return package, version


def _deployed(wishes: Wishes, cluster: Cluster) -> Pods:
    """The pods of the overlay's Deployment, whatever image they run."""
    content = read_kustomization(kustomization_of(wishes.overlay))
    image = f"{repository_of(content)}:{TO_BE_BUILT}"
    workload = workload_of(rendered(cluster, wishes.overlay, with_image(content, image)), image)
    return Pods(cluster, workload, read_key(wishes.api_key_file))


def _counters(pods: Pods) -> dict[str, Sample]:
    """What each pod that gets requests has counted; nothing where that cannot be had."""
    try:
        return pods.samples()
    except EXPECTED:
        return {}


def _find_package(version: str, records: Records) -> str | None:
    """Where the package of a version is: the model store, or where an earlier release had it."""
    try:
        tag = f"{MODEL_STORE_NAME}:{version}"
        package_folder(tag)
        return tag
    except VerifyError:
        pass
    for earlier in reversed(records.all()):
        if earlier.version == version:
            if "://" in earlier.package:
                return earlier.package
            try:
                if read_manifest(package_folder(earlier.package)).version == version:
                    return earlier.package
            except (PackageError, VerifyError):
                continue
    return None


def _write_and_save(one: Release) -> str:
    """Steps 6 and 7: what comes back is saved, the image stands in the overlay; the render."""
    record = one.record
    with one.step("overlay") as said:
        overlay, image = Path(record.overlay), str(record.image)
        file = kustomization_of(overlay)
        before = read_kustomization(file)
        after = with_image(before, image)
        render = rendered(one.cluster, overlay, after)
        workload = workload_of(render, image)
        record.namespace, record.deployment = workload.namespace, workload.name
        record.previous = save_previous(one.cluster, one.records, record, render, workload)
        edit = OverlayEdit(file=str(file), before=before, after=after)
        one.write_overlay(image, edit, render)
        said.append(f"{file}: {image}")
    with one.step("diff") as said:
        difference = _difference(one.cluster, render, workload)
        said.append(f"{len(difference.splitlines())} lines")
    one.screen.line(difference)
    return render


def _difference(cluster: Cluster, render: str, workload: Workload) -> str:
    if cluster.get("namespace", workload.namespace, workload.namespace) is None:
        # A dry run on the server needs the namespace.
        return f"everything is new: there is no namespace {workload.namespace}"
    return cluster.diff(render) or "the cluster holds this already"


def _plan(wishes: Wishes, records: Records, cluster: Cluster, screen: Screen) -> int:
    """What would be done; nothing is written, but in a temporary folder."""
    from training.publish import package_at

    for one in records.of(str(wishes.overlay)):
        if one.outcome == "unfinished":
            screen.line(f"release {one.id} is unfinished at {one.step}: --apply begins with it")
    with package_at(wishes.package) as folder:
        manifest = read_manifest(folder)
        with screen.step("verify") as said:
            said.append(verify_folder(folder, wishes.package))
        record = Record(
            id=manifest.version,
            name=manifest.name,
            version=manifest.version,
            overlay=str(wishes.overlay),
            package=wishes.package,
            started_at=now(),
        )
        with screen.step("compare") as said:
            found = _compared(wishes, records, cluster, folder, record)
            said.append(found.sentence)
    for warning in found.warnings:
        screen.line(f"warning: {warning}")
    file = kustomization_of(wishes.overlay)
    content = read_kustomization(file)
    repository = wishes.image_repository or repository_of(content)
    image = wishes.image or f"{repository}:{TO_BE_BUILT}"
    changed = with_image(content, image)
    render = rendered(cluster, wishes.overlay, changed)
    screen.line(without_secrets(render).rstrip())
    lines = difflib.unified_diff(
        content.splitlines(), changed.splitlines(), str(file), str(file), lineterm=""
    )
    screen.line("\n".join(lines))
    try:
        screen.line(_difference(cluster, render, workload_of(render, image)))
    except ClusterError as error:
        screen.line(f"what would change in the cluster is not known: {error}")
    screen.line("nothing was changed: --apply releases it")
    if found.outcome == "inconclusive" and wishes.accept_inconclusive:
        return 0
    return EXIT_OF_OUTCOME[found.outcome]


def _recover(
    wishes: Wishes,
    records: Records,
    cluster: Cluster,
    screen: Screen,
    abandoned: str | None = None,
    *,
    releasing: bool,
) -> Record | None:
    """Deal with a release that was killed; the record to go on with, or that was undone.

    Before anything was applied it is gone on with, with the bento and image that it has made, or
    given up. From then on it is undone first: what it did not get to prove must not stay.

    Args:
        abandoned: why it is not undone; where it is None it is.
        releasing: whether `wishes` are of a release; else of a rollback.
    """
    found = None
    for record in records.of(str(wishes.overlay)):
        if record.outcome != "unfinished":
            continue
        one = Release(record, records, cluster, screen)
        again = releasing and _same(record, wishes)
        if record.touched:
            # Whose cluster is no more can only be abandoned.
            if not wishes.abandon:
                _refuse_other_cluster(record, cluster.context)
            if abandoned is not None:
                one.restore_overlay()
                one.abandon(abandoned)
                found = record
                continue
            screen.line(f"{record.kind} {record.id} was broken off at {record.step}: undoing it")
            render = records.read_render(record.render) if record.render else ""
            workload = workload_of(render, str(record.image))
            pods = Pods(cluster, workload, read_key(wishes.api_key_file))
            one.undo(pods, record.reason or f"killed at {record.step}")
            found = record
            if again:
                screen.line("then the same is released again from the start")
                found = Record(
                    **_common(wishes, records, cluster, record.version, record.name),
                    package=wishes.package,
                    metrics=record.metrics,
                    bento=record.bento,
                    image=None if record.image_given else record.image,
                    image_given=record.image_given,
                )
            continue
        one.restore_overlay()
        if again:
            screen.line(f"release {record.id} was broken off at {record.step}: going on with it")
            record.overlay_edit = record.previous = record.render = None
            found = record
        else:
            one.give_up()
            if not releasing:
                found = record
    return found if not releasing or (found and found.outcome == "unfinished") else None


def _unfinished(
    wishes: Wishes, records: Records, cluster: Cluster, screen: Screen
) -> list[Release]:
    """What a rollback to a version comes instead of.

    Raises:
        ReleaseError: something of it was begun in another context.
    """
    found = [one for one in records.of(str(wishes.overlay)) if one.outcome == "unfinished"]
    for one in found:
        if one.touched:
            _refuse_other_cluster(one, cluster.context)
    return [Release(one, records, cluster, screen) for one in found]


def _refuse_other_cluster(record: Record, context: str | None) -> None:
    """What one cluster is in the middle of is not undone in another.

    Raises:
        ReleaseError: it was begun in another context.
    """
    if not record.is_in(context):
        raise ReleaseError(
            f"{record.kind} {record.id} is unfinished in {record.context}, and kubectl points to "
            f"{context}: begin with --context {record.context}, or leave that cluster as it is "
            f"with whetstone rollback --overlay {record.overlay} --abandon"
        )


def _same(record: Record, wishes: Wishes) -> bool:
    """Whether a record is of what is wished for now."""
    from training.publish import package_at

    if record.kind != "release" or record.image_given != (wishes.image is not None):
        return False
    with package_at(wishes.package) as folder:
        return read_manifest(folder).version == record.version


def _target(records: Records, overlay: str, version: str | None, context: str | None) -> Record:
    """The release to return to.

    Raises:
        ReleaseError: there is none.
    """
    there = [one for one in records.of(overlay) if one.is_in(context)]
    released = [one for one in there if one.released_in(context) and one.render]
    if version is not None:
        named = [one for one in released if version in (one.id, one.version)]
        if not named:
            known = ", ".join(dict.fromkeys(one.version for one in released)) or "none"
            raise ReleaseError(f"{version} is no release of {overlay}; recorded are: {known}")
        return named[-1]
    if not released:
        where = f" for {context}" if context else ""
        raise ReleaseError(f"no release of {overlay}{where} is recorded in {records.folder}")
    # What was undone or refused has left nothing in the cluster.
    if [one for one in there if one.abandoned or one.outcome == "released"][-1].abandoned:
        return released[-1]
    running = released[-1].version
    # Rollbacks are no steps forward: what came before the running version when it was released.
    forward = [one for one in released if one.kind == "release"]
    place = max((i for i, one in enumerate(forward) if one.version == running), default=0)
    earlier = [one for one in forward[:place] if one.version != running]
    if not earlier:
        raise ReleaseError(
            f"nothing was released to {overlay} before {running}: name a version that "
            "whetstone history shows"
        )
    return earlier[-1]


def _running(pods: Pods) -> str | None:
    """The version that runs, where that can be said: a rollback goes on without."""
    try:
        return running_version(pods)
    except (ClusterError, VerifyError, ReleaseError):
        return None


def _common(
    wishes: Wishes, records: Records, cluster: Cluster, version: str, name: str
) -> dict[str, Any]:
    return {
        "id": records.new_id(version),
        "name": name,
        "version": version,
        "overlay": str(wishes.overlay),
        "started_at": now(),
        "context": cluster.context,
        "git_commit": _commit(),
    }


def _headlines(manifest: Manifest) -> dict[str, Any]:
    """Accuracy and the F1s of the package on test rows, else on validation."""
    for split in ("test", "validation"):
        found = manifest.metrics.get(split)
        if isinstance(found, dict):
            names = ("accuracy", "macro_f1", "micro_f1")
            return {"split": split, **{name: found[name] for name in names if name in found}}
    return {}


def _refuse_gpu(manifest: Manifest) -> None:
    if manifest.target_device == "gpu":
        raise ReleaseError(
            "the image of a package for a GPU cannot be tried here: build it (see the README), try "
            "it on a GPU, and give --image NAME:TAG"
        )


def _commit() -> str | None:
    """The commit that is checked out here, with a plus where files differ from it."""
    try:
        head, changed = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except OSError:
        return None
    return f"{head.stdout.strip()}{'+' if changed.stdout.strip() else ''}" or None


def _watched(found: dict[str, Any]) -> str:
    if not found["requests"]:
        return f"no request came within {found['seconds']:g} s, so nothing was seen"
    p99 = "" if found["p99_ms"] is None else f", p99 {found['p99_ms']:.0f} ms"
    return (
        f"{found['requests']:,} requests in {found['seconds']:g} s, {found['errors']} errors, "
        f"{found['refused']:.1%} refused{p99}"
    )


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP as Ctrl-C: a cancelled job or a lost terminal must not leave a half."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    with _signals_are(interrupt):
        yield


def _signals_ignored() -> AbstractContextManager[None]:
    """While it is put back what ran before; a Ctrl-C ends that all the same."""
    # Not SIG_IGN: what is started would inherit it, and kubectl could not be told to end.
    return _signals_are(lambda *_: None)


@contextmanager
def _signals_are(what: Any) -> Iterator[None]:
    before = {one: signal.signal(one, what) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
