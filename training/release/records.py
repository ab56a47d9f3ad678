"""What is remembered of releases: `releases/<version>.json`, beside it the render, and the lock.

A record is written before each step, so that whoever comes after a killed release knows how far it
got. Nothing in it is a text of the data, or secret: the saved render leaves out Secrets.
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

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.model_package import write_text
from training.errors import ReleaseError

RELEASES = Path("releases")
LOCK_FILE = ".lock"
# What a killed release has started is often over at once.
LOCK_SECONDS = 2.0

Step = Literal[
    "verify",
    "compare",
    "register",
    "bento",
    "image",
    "overlay",
    "diff",
    "apply",
    "check",
    "watch",
    "put back",
    "end",
]
# From here on the cluster may hold something of the release.
TOUCHED: tuple[Step, ...] = ("apply", "check", "watch", "put back")
Outcome = Literal["unfinished", "released", "refused", "failed", "rolled back"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SavedRender(_Strict):
    """Manifests beside the record, and their SHA-256."""

    file: str
    sha256: str


class OverlayEdit(_Strict):
    """The kustomization before and after its image was written into it."""

    file: str
    before: str
    after: str


class Previous(_Strict):
    """What ran before, and how it comes back.

    `kind`: the render of an earlier `release`, the `live` objects as they were, or `nothing`.
    """

    kind: Literal["release", "live", "nothing"]
    release: str | None = None
    render: SavedRender | None = None
    image: str | None = None
    version: str | None = None
    created: list[dict[str, Any]] = Field(default_factory=list)


class Record(_Strict):
    """One release, as far as it got. Durations are seconds; `sha256` of `data` is the file's.

    `abandoned`: it failed, and what it has done to the cluster was left there.
    """

    format: Literal[1] = 1
    id: str
    kind: Literal["release", "rollback"] = "release"
    name: str
    version: str
    overlay: str
    outcome: Outcome = "unfinished"
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
    data: dict[str, Any] | None = None
    champion: str | None = None
    champion_version: str | None = None
    verdict: dict[str, Any] | None = None
    accepted_inconclusive: bool = False
    label_change: dict[str, Any] | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    bento: str | None = None
    image: str | None = None
    image_given: bool = False
    pushed: str | None = None
    overlay_edit: OverlayEdit | None = None
    render: SavedRender | None = None
    previous: Previous | None = None
    pods: list[str] = Field(default_factory=list)
    watched: dict[str, Any] | None = None
    durations: dict[str, float] = Field(default_factory=dict)

    @property
    def touched(self) -> bool:
        """Whether the cluster may hold something of it."""
        return self.step in TOUCHED

    def is_in(self, context: str | None) -> bool:
        """Whether it is of this cluster, as far as that is known."""
        return None in (self.context, context) or self.context == context

    def released_in(self, context: str | None) -> bool:
        """Whether it ended well, and in this cluster."""
        return self.outcome == "released" and self.is_in(context)


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(content: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(content.encode()).hexdigest()


class Records:
    """The folder of records."""

    def __init__(self, folder: Path = RELEASES) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[IO[str]]:
        """Nobody else releases from this folder meanwhile; the lock ends with its owner.

        The block gets the file, which what changes the cluster keeps open to its own end.

        Raises:
            ReleaseError: somebody else does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Not inherited by what is started (PEP 446), so no child keeps it.
        with (self.folder / LOCK_FILE).open("a") as file:
            end = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() < end:
                        time.sleep(0.1)
                        continue
                    raise ReleaseError(
                        f"another release or rollback runs from {self.folder.resolve()}, or what "
                        "one that was killed has told kubectl to do: wait for its end (whetstone "
                        "history shows how far it is)"
                    ) from None
            yield file

    def all(self) -> list[Record]:
        """Every record, in the order of their beginnings.

        Raises:
            ReleaseError: one of them cannot be read.
        """
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Record.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                where = ".".join(map(str, error.errors()[0]["loc"])) or "its beginning"
                raise ReleaseError(
                    f"{path} is no record of a release (at {where}): restore it from git, or move "
                    "it away"
                ) from None
        # Of the same second by id: `-2` comes after the first.
        return sorted(found, key=lambda one: (one.started_at, len(one.id), one.id))

    def of(self, overlay: str) -> list[Record]:
        """Those of an overlay."""
        return [one for one in self.all() if one.overlay == overlay]

    def new_id(self, version: str) -> str:
        """`<version>`, and for the same one again `<version>-2` and so on."""
        taken = {path.stem for path in self.folder.glob("*.json")}
        name, number = version, 1
        while name in taken:
            number += 1
            name = f"{version}-{number}"
        return name

    def save(self, record: Record) -> None:
        """Write it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{record.id}.json", record.model_dump_json(indent=2) + "\n")

    def save_render(self, name: str, content: str) -> SavedRender:
        """Keep manifests beside the records."""
        write_text(self.folder / name, content)
        return SavedRender(file=name, sha256=digest(content))

    def read_render(self, saved: SavedRender) -> str:
        """The manifests again.

        Raises:
            ReleaseError: they are gone, or altered.
        """
        path = self.folder / saved.file
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ReleaseError(f"{path} is gone: restore it from git") from None
        if digest(content) != saved.sha256:
            raise ReleaseError(f"{path} was altered since it was released: restore it from git")
        return content
