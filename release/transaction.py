"""One release or rollback: each step is recorded before it is taken, and undone if one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from release.cluster.evidence import collect_evidence, describe_evidence
from release.cluster.health import LEAST_FOR_P99, Baseline, Sample, choose_baseline
from release.cluster.overlay import Workload, without_secrets, workload_of
from release.cluster.pods import Pods, image_of
from release.cluster.restore import identities_of, restore_previous, save_previous
from release.cluster.rollout import apply_manifests, check_pods, wait_for_rollout, watch_pods
from release.cluster.variant import Variant
from release.context import ReleaseContext
from release.overlay_edit import undo_edit, write_edit
from release.records import (
    OverlayEdit,
    Previous,
    Record,
    ReleaseOutcome,
    Step,
    WatchSummary,
    timestamp,
)
from release.signals import signals_ignored, signals_interrupt
from service.package.files import PackageError
from service.package.golden import GoldenMismatchError
from training.common.errors import ClusterError, ReleaseError, WhetstoneError

# Errors that a user can mend. Any other error is a fault of Whetstone.
EXPECTED = (WhetstoneError, PackageError, GoldenMismatchError, OSError)


# Between the name of a step and that of a part of it, in the durations.
PART_MARK = ": "


class ReleaseTransaction:
    """One release or rollback that is recorded step by step.

    Attributes:
        counters: the counters of the pods when the release began; empty if they are not known. A
            rollback does not ask for them, to lose no time.
    """

    def __init__(self, record: Record, context: ReleaseContext) -> None:
        self.record = record
        self.context = context
        self.records = context.records
        self.cluster = context.cluster
        self.console = context.console
        self.counters: dict[str, Sample] = {}
        # The pods of the variant that is in use; if the release fails now, they say why.
        self._failing: Pods | None = None
        self._took_steps = False

    @contextmanager
    def step(self, name: Step) -> Iterator[list[str]]:
        """Record a step, time it, and print a line with the results that the block adds."""
        self.record.step, self._took_steps = name, True
        self.records.save(self.record)
        began = time.monotonic()
        try:
            with self.console.step(name) as results:
                yield results
        finally:
            # How long a step took that failed says whether it waited or was refused.
            self.record.durations[name] = round(time.monotonic() - began, 1)
        self.records.save(self.record)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Record how long a part of a step takes, named `step: part`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.record.durations[part] = round(time.monotonic() - began, 1)

    @contextmanager
    def failing_before_apply(self) -> Iterator[None]:
        """Restore the overlay and record the failure if the block raises.

        Until something is applied, nothing else has changed.
        """
        try:
            yield
        except (*EXPECTED, KeyboardInterrupt) as error:
            self.restore_overlay_if_possible()
            self.end("failed", str(error) or "it was interrupted")
            raise

    def end(self, outcome: ReleaseOutcome, reason: str | None = None) -> None:
        """Record the outcome; this is the last thing written."""
        self.record.outcome, self.record.reason = outcome, reason
        self.record.finished_at = timestamp()
        if outcome == "prepared":
            self.record.step = "prepared"
        elif outcome != "unfinished":
            self.record.step = "end"
        self.records.save(self.record)
        if self._took_steps and outcome != "unfinished":
            self.console.line(describe_durations(self.record.durations))

    def save_previous(self, render: str, workload: Workload) -> None:
        """Save what is restored if the release fails."""
        self.record.namespace, self.record.deployment = workload.namespace, workload.name
        self.record.previous = save_previous(
            self.cluster, self.records, self.record, render, workload
        )

    def note_previous(self, workload: Workload) -> None:
        """Note which image runs, where a GitOps tool applies and restores, if that is known."""
        self.record.namespace, self.record.deployment = workload.namespace, workload.name
        try:
            deployment = self.context.pods_of(workload).deployment()
        except ClusterError:
            return
        self.record.previous = Previous(
            kind="nothing" if deployment is None else "live",
            image=None if deployment is None else image_of(deployment, workload.container),
            version=self.record.champion_version,
        )

    def write_overlay(self, edit: OverlayEdit, image: str, render: str) -> None:
        """Write the image into the overlay; the edit and the render are recorded first.

        Raises:
            ReleaseError: somebody has edited the overlay since it was read.
        """
        self.record.overlay_edit = edit
        self.record.image = image
        self.record.render = self.records.save_render(
            f"{self.record.id}.yaml", without_secrets(render)
        )
        self.records.save(self.record)
        write_edit(edit)

    def restore_overlay(self) -> None:
        """Undo the edit of the overlay; what somebody else has edited in it since stays.

        Raises:
            ReleaseError: the overlay still names the image of this release. See `undo_edit`.
        """
        edit = self.record.overlay_edit
        difference = None if edit is None else undo_edit(edit)
        if difference is not None:
            self.console.line(difference)

    def restore_overlay_if_possible(self) -> str | None:
        """Undo the edit of the overlay where what comes after that matters more.

        Returns:
            Why that is not possible; None if it was.
        """
        try:
            self.restore_overlay()
        except ReleaseError as error:
            self.console.line(f"warning: {error}")
            return str(error)
        return None

    @contextmanager
    def using(self, variant: Variant) -> Iterator[Pods]:
        """Apply a variant of the workload for as long as the block lasts; its pods.

        The record names its objects before they exist: a release that is killed meanwhile, or that
        fails, deletes them when it is undone.
        """
        if self.record.previous is not None:
            created = self.record.previous.created
            created += [each for each in identities_of(variant.objects) if each not in created]
            self.records.save(self.record)
        pods = self._failing = self.context.pods_of(variant.workload)
        self.cluster.apply(variant.manifests)
        yield pods
        self.cluster.delete(variant.own_manifests)
        self._failing = None

    def roll_out(
        self, render: str, package: str | None, stages: Sequence[RolloutStage] = ()
    ) -> None:
        """Apply, wait, check every pod, watch; undo everything if a step fails.

        Args:
            package: whose golden texts are asked; None if it is not available.
            stages: what is done before the workload itself is applied.

        Raises:
            ReleaseError: a step failed, and everything was undone, or could not be.
        """
        workload = workload_of(render, str(self.record.image))
        pods = self.context.pods_of(workload)
        self.cluster.be_patient()
        try:
            with signals_interrupt():
                baseline = choose_baseline(self.counters, read_counters(pods))
                for stage in stages:
                    stage(self, render, workload, package)
                self._apply(pods, render)
                self.check(pods, package)
                self.watch(pods, baseline)
        except EXPECTED as error:
            self.undo(pods, str(error))
            raise ReleaseError(
                f"nothing was released: {error}; {self._describe_restored()}"
            ) from error
        except KeyboardInterrupt:
            self.undo(pods, "it was interrupted")
            raise
        except BaseException as error:
            self.undo(pods, f"{type(error).__name__} {error}".rstrip())
            raise

    def _apply(self, pods: Pods, render: str) -> None:
        with self.step("apply") as results:
            apply_manifests(self.cluster, render, pods.workload)
            wait_for_rollout(pods, self.console.report)
            results.append(f"{pods.workload.name} in {pods.workload.namespace} is rolled out")

    def ask(self, pods: Pods, package: str | None) -> list[str]:
        """Ask every pod for its version and the golden texts; their names. See `check_pods`."""
        version, key_file = self.record.version, self.context.options.api_key_file
        return check_pods(pods, version, package, key_file, self.console.report)

    def check(self, pods: Pods, package: str | None) -> None:
        """The step that asks every pod. See `check_pods`."""
        with self.step("check") as results:
            self.record.pods = self.ask(pods, package)
            served = f"{len(self.record.pods)} pods serve {self.record.version}"
            if package is None:
                results.append(f"{served}; no golden text was asked, as its package is missing")
            else:
                results.append(f"{served}, and the golden texts are answered as recorded")

    def watch(self, pods: Pods, baseline: Baseline) -> None:
        """The step that watches the pods. See `watch_pods`."""
        with self.step("watch") as results:
            seconds = self.context.options.watch
            self.record.watched = watch_pods(pods, baseline, seconds, self.console.report)
            results.append(describe_watch(self.record.watched))

    def undo(self, pods: Pods, reason: str) -> None:
        """Restore what ran before.

        Raises:
            ReleaseError: that failed, or only the overlay could not be restored; the message says
                what to do.
        """
        self.record.reason = reason
        self.keep_evidence(self._failing or pods, reason)
        self.cluster.be_patient()
        try:
            # A canceled job may get a second signal meanwhile.
            with signals_ignored(), self.step("undo") as results:
                self.console.line(f"undoing: {reason}")
                problem = self.restore_overlay_if_possible()
                restore_previous(self.cluster, self.records, self.record, pods, self.console.report)
                previous = self.record.previous
                results.append(
                    f"every pod serves version {previous.version} again"
                    if previous and previous.version
                    else "the cluster is as it was"
                )
        except BaseException as error:
            self.end("unfinished", f"{reason}; then undoing it failed: {error}")
            raise ReleaseError(
                f"the release failed ({reason}), AND WHAT RAN BEFORE COULD NOT BE RESTORED "
                f"({str(error) or 'interrupted'}): {self._ways_out()}"
            ) from error
        self.end("undone", reason)
        if problem is not None:
            restored = self._describe_restored()
            raise ReleaseError(f"nothing was released: {reason}; {restored}, but {problem}")

    def keep_evidence(self, pods: Pods, reason: str) -> None:
        """Show and record what the cluster says of the failure: undoing it deletes that.

        Whatever happens here, the release must still be undone.
        """
        try:
            with signals_ignored(), self.cluster.impatient():
                self.record.evidence = collect_evidence(pods, reason)
                self.records.save(self.record)
                shown = describe_evidence(self.record.evidence)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - undoing matters more
            shown = f"why it failed cannot be read: {type(error).__name__} {error}".rstrip()
        if shown:
            self.console.line(shown)

    def give_up(self) -> None:
        """End a release that was killed, or only prepared, before anything was applied."""
        record = self.record
        how = "was prepared and not observed" if record.is_prepared else f"stopped at {record.step}"
        self.console.line(f"{record.kind} {record.id} {how}: it is given up")
        why = how if record.is_prepared else f"killed at {record.step}"
        self.end("failed", f"{why}, before anything was applied")

    def abandon(self, why: str) -> None:
        """End a release that was killed, and leave its changes in the cluster."""
        record = self.record
        created = record.previous.created if record.previous else []
        more = f", and {len(created)} objects that it created (see its record)" if created else ""
        self.console.line(
            f"{record.kind} {record.id} stopped at {record.step} and is not undone: {why}; "
            f"{record.namespace} in {record.context or 'the cluster'} may hold {record.image}{more}"
        )
        record.abandoned = True
        self.end("failed", f"{record.reason or f'killed at {record.step}'}; not undone: {why}")

    def _describe_restored(self) -> str:
        previous = self.record.previous
        if previous is None or previous.version is None:
            return "the cluster is as it was"
        return "the version before runs again"

    def _ways_out(self) -> str:
        """What the user can do if the release cannot be undone."""
        context = f" --context {self.record.context}" if self.record.context else ""
        command = f"whetstone rollback --overlay {self.record.overlay}{context}"
        previous = self.record.previous
        by_hand = ""
        if previous is not None and previous.render is not None:
            file = self.records.folder / previous.render.file
            by_hand = f" (perhaps after kubectl apply{context} -f {file})"
        return (
            f"run {command} to try again, add a VERSION to go to that one instead, or add "
            f"--abandon to leave the cluster as it is{by_hand}"
        )


# A part of a rollout before the workload is applied: transaction, render, workload, package.
RolloutStage = Callable[[ReleaseTransaction, str, Workload, str | None], None]


def read_counters(pods: Pods) -> dict[str, Sample]:
    """The counters of each pod that gets requests; empty if they cannot be read."""
    try:
        return pods.samples()
    except EXPECTED:
        return {}


def describe_durations(durations: Mapping[str, float]) -> str:
    """A table of the seconds of each step, with its parts below it."""
    rows = []
    for name, seconds in durations.items():
        if PART_MARK in name:
            continue
        rows.append((name, seconds))
        start = f"{name}{PART_MARK}"
        rows += [
            (f"  {part.removeprefix(start)}", of_part)
            for part, of_part in durations.items()
            if part.startswith(start)
        ]
    rows.append(("in all", sum(each for name, each in rows if not name.startswith(" "))))
    return "\n".join([f"{'step':<12} seconds", *(f"{name:<12} {each:7.1f}" for name, each in rows)])


def describe_watch(watched: WatchSummary) -> str:
    """The result of the step `watch`, in a sentence."""
    if not watched.requests:
        return f"no request came within {watched.seconds:g} s, so nothing was measured"
    p99 = "" if watched.p99_ms is None else f", p99 {watched.p99_ms:.0f} ms"
    if watched.p99_ms is None or watched.p99_ms_before is None:
        p99 += f"; fewer than {LEAST_FOR_P99} requests before or now decide nothing about latency"
    return (
        f"{watched.requests:,} requests in {watched.seconds:g} s, {watched.errors} errors, "
        f"{watched.refused:.1%} refused{p99}"
    )
