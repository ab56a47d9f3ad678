"""The records of releases: `releases/<version>.json`, the render beside each, and the lock.

A record is written before each step. After a release was killed, the next run reads from it how
far the release got. A record holds no text of the data and no secret: the saved render leaves out
Secrets.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.package.files import write_text
from training.common.errors import ReleaseError

RELEASES = Path("releases")
LOCK_FILE = ".lock"
# A kubectl command that a killed release has left behind often ends at once.
LOCK_SECONDS = 2.0

Step = Literal[
    "verify",
    "compare",
    "register",
    "bento",
    "image",
    "overlay",
    "diff",
    "prepared",
    "wait",
    "first pod",
    "canary",
    "apply",
    "check",
    "watch",
    "undo",
    "end",
]
# From the first of these steps on, the cluster may hold something of the release.
CLUSTER_STEPS: tuple[Step, ...] = (
    "first pod",
    "canary",
    "apply",
    "check",
    "watch",
    "undo",
)
# Names of steps and outcomes in older records.
OLD_STEPS = {"put back": "undo", "roll back": "undo"}
OLD_OUTCOMES = {"rolled back": "undone"}
ReleaseOutcome = Literal["unfinished", "prepared", "released", "refused", "failed", "undone"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class SavedRender(_Strict):
    """Manifests beside the record, and their SHA-256."""

    file: str
    sha256: str


class OverlayEdit(_Strict):
    """The kustomization before and after the image was written into it."""

    file: str
    before: str
    after: str


class Previous(_Strict):
    """What ran before the release, and how it is restored.

    Attributes:
        kind: the render of an earlier `release`, the `live` objects as they were, or `nothing`.
        release: the id of the earlier release.
        created: kind, name and namespace of the objects that the release creates, for good or for
            a while.
    """

    kind: Literal["release", "live", "nothing"]
    release: str | None = None
    render: SavedRender | None = None
    image: str | None = None
    version: str | None = None
    created: list[dict[str, Any]] = Field(default_factory=list)


class ComparedData(_Strict):
    """The labeled file of the comparison: its SHA-256 and how many rows were compared."""

    file: str
    sha256: str
    rows: int


class RecordedVerdict(_Strict):
    """The verdict of the comparison, and where its report is."""

    outcome: str
    reasons: dict[str, str]
    warnings: list[str]
    macro_f1: float
    report: str


class ChangedLabels(_Strict):
    """The labels that differ from those of the champion."""

    from_version: str | None = Field(alias="from")
    removed: list[str] = Field(alias="gone")
    added: list[str] = Field(alias="come")


class WatchSummary(_Strict):
    """The requests while the pods were watched, compared with the baseline of the old pods."""

    seconds: float
    requests: int
    errors: int
    refused: float
    p99_ms: float | None
    p99_ms_before: float | None
    # Absent in the records of older versions.
    before_since: str | None = None


class CanaryStep(_Strict):
    """One share of a canary: how many pods and requests each side had, and what differed.

    Attributes:
        wanted: the share of the requests that was asked for.
        by: what gave the share: the weights of an HTTPRoute, or the number of pods, which may make
            another share of it.
        differences: the largest differences of the predictions, in words.
    """

    wanted: float
    by: Literal["weights", "pods"]
    pods: int
    of: int
    seconds: float
    requests: int
    requests_to_others: int
    undecided: str | None = None
    differences: list[str] = Field(default_factory=list)


class BuiltImage(_Strict):
    """An image that a release built, as far as it got: another try of the same takes it.

    Attributes:
        inputs: a SHA-256 of all that goes into the image, without the base image.
        base: the engine's id of the base image.
        name: the image with its tag; None until it is built. `id` is the engine's digest of it.
        tried: whether it answered as the package did.
        digest: the registry's, if the engine pushed it.
    """

    inputs: str
    engine: str
    bento: str
    git_commit: str | None = None
    base: str | None = None
    name: str | None = None
    id: str | None = None
    tried: bool = False
    digest: str | None = None


class FailureEvidence(_Strict):
    """What the cluster said of a failure: bounded in size, and without known forms of secrets.

    Attributes:
        events: the newest warnings, the newest last.
        pod: the pod that is worst off, and `state` what its container does.
        log: the last lines of that container; `previous` if they are of the container before the
            last restart.
    """

    events: list[str] = Field(default_factory=list)
    pod: str | None = None
    state: str | None = None
    previous: bool = False
    log: list[str] = Field(default_factory=list)


class Record(_Strict):
    """One release or rollback, as far as it got.

    Attributes:
        outcome: "prepared" is a release that a GitOps tool applies, until it was observed. "undone"
            is a release that failed and that the command undid by itself, or whose overlay it
            wrote as before. A rollback that a person asked for is a record of its own.
        step: the step that was begun last.
        abandoned: the release failed, and its changes were left in the cluster.
        package: the package as the user named it.
        champion: the champion as the user named it; for a rollback, the id of its target.
        champion_version: the version that ran before.
        image: with the tag, and with the digest if it was pushed.
        image_given: whether the user gave the image, so that none was built.
        evidence: what the cluster said of the failure, read before anything was undone.
        durations: seconds of each step, the failed one included; parts of a step are named
            `step: part`.
    """

    format: Literal[1] = 1
    id: str
    kind: Literal["release", "rollback"] = "release"
    name: str
    version: str
    overlay: str
    outcome: ReleaseOutcome = "unfinished"
    step: Step = "verify"
    reason: str | None = None
    abandoned: bool = False
    started_at: str
    finished_at: str | None = None
    git_commit: str | None = None
    context: str | None = None
    namespace: str | None = None
    deployment: str | None = None
    package: str
    data: ComparedData | None = None
    champion: str | None = None
    champion_version: str | None = None
    verdict: RecordedVerdict | None = None
    accepted_inconclusive: bool = False
    label_change: ChangedLabels | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    bento: str | None = None
    image: str | None = None
    image_given: bool = False
    built: BuiltImage | None = None
    pushed: str | None = None
    overlay_edit: OverlayEdit | None = None
    render: SavedRender | None = None
    previous: Previous | None = None
    pods: list[str] = Field(default_factory=list)
    canary: list[CanaryStep] = Field(default_factory=list)
    watched: WatchSummary | None = None
    evidence: FailureEvidence | None = None
    durations: dict[str, float] = Field(default_factory=dict)

    @field_validator("step", mode="before")
    @classmethod
    def _read_old_step(cls, step: Any) -> Any:
        return OLD_STEPS.get(step, step) if isinstance(step, str) else step

    @field_validator("outcome", mode="before")
    @classmethod
    def _read_old_outcome(cls, outcome: Any) -> Any:
        return OLD_OUTCOMES.get(outcome, outcome) if isinstance(outcome, str) else outcome

    @property
    def is_unfinished(self) -> bool:
        """Whether the release was killed, could not be undone, or was prepared and not observed."""
        return self.outcome in ("unfinished", "prepared")

    @property
    def is_prepared(self) -> bool:
        """Whether a GitOps tool is to apply the release, and nobody has seen how that ended."""
        return self.outcome == "prepared"

    @property
    def touched_cluster(self) -> bool:
        """Whether this command may have left something of the release in the cluster."""
        return self.step in CLUSTER_STEPS and not self.is_prepared

    def is_in(self, context: str | None) -> bool:
        """Whether the release is of this cluster, as far as that is known."""
        return None in (self.context, context) or self.context == context

    def released_in(self, context: str | None) -> bool:
        """Whether the release succeeded, in this cluster."""
        return self.outcome == "released" and self.is_in(context)


def timestamp() -> str:
    """The current time, as records write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Records:
    """The folder of records."""

    def __init__(self, folder: Path = RELEASES) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[IO[str]]:
        """Keep every other release from this folder waiting; the lock ends with its process.

        The block gets the lock file. A command that changes the cluster keeps it open until the
        command has ended.

        Raises:
            ReleaseError: another release or rollback holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Child processes do not inherit it (PEP 446), so none of them keeps the lock by accident.
        with (self.folder / LOCK_FILE).open("a") as file:
            self._wait_for_lock(file)
            yield file

    def _wait_for_lock(self, file: IO[str]) -> None:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise ReleaseError(
                        f"another release or rollback runs from {self.folder.resolve()}, or a "
                        "kubectl command of one that was killed still runs: wait until it ends "
                        "(whetstone history shows how far it is)"
                    ) from None
                time.sleep(0.1)

    def all(self) -> list[Record]:
        """Every record, in the order in which the releases began.

        Raises:
            ReleaseError: a record cannot be read.
        """
        records = [_read_record(path) for path in sorted(self.folder.glob("*.json"))]
        # Within the same second by id: `-2` comes after the first.
        return sorted(records, key=lambda record: (record.started_at, len(record.id), record.id))

    def of(self, overlay: str) -> list[Record]:
        """The records of an overlay, in the order in which the releases began."""
        return [record for record in self.all() if record.overlay == overlay]

    def new_id(self, version: str) -> str:
        """`<version>`, and for another release of the same version `<version>-2` and so on."""
        taken = {path.stem for path in self.folder.glob("*.json")}
        name, number = version, 1
        while name in taken:
            number += 1
            name = f"{version}-{number}"
        return name

    def path_of(self, record: Record) -> Path:
        """The file of a record."""
        return self.folder / f"{record.id}.json"

    def save(self, record: Record) -> None:
        """Write the record, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = record.model_dump_json(indent=2, by_alias=True)
        write_text(self.path_of(record), content + "\n")

    def save_render(self, name: str, content: str) -> SavedRender:
        """Save manifests beside the records."""
        write_text(self.folder / name, content)
        return SavedRender(file=name, sha256=_digest(content))

    def read_render(self, saved: SavedRender) -> str:
        """Read saved manifests.

        Raises:
            ReleaseError: the file is missing or was altered.
        """
        path = self.folder / saved.file
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ReleaseError(f"{path} is missing: restore it from git") from None
        if _digest(content) != saved.sha256:
            raise ReleaseError(f"{path} was altered since it was released: restore it from git")
        return content


def _read_record(path: Path) -> Record:
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its beginning"
        raise ReleaseError(
            f"{path} is not a record of a release (at {where}): restore it from git, or move it "
            "away"
        ) from None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
