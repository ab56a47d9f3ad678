"""What a release or a rollback was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.common.exit_status import EXIT_OF_VERDICT

# The champion that is the version which runs now.
CURRENT = "current"
WATCH_SECONDS = 60.0
CANARY_SECONDS = 300.0
# How long a GitOps tool may take to apply what was prepared. Argo CD looks every three minutes.
WAIT_SECONDS = 900.0
CANARY_SHIFT = 0.02


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What a release and a rollback share.

    Attributes:
        overlay: the kustomize overlay, as `record_name` names it.
        watch: how long the pods are watched after the rollout, in seconds.
        context: the context of kubectl; the current one where it is None.
        api_key_file: its first line is the key of the service.
    """

    overlay: Path
    watch: float = WATCH_SECONDS
    context: str | None = None
    api_key_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions(RolloutOptions):
    """What a release was asked for.

    Attributes:
        package: folder, tag, version or published address.
        champion: `current`, `none`, or a package to compare with.
        data: labeled rows that neither package has seen.
        bounds, columns: those of the comparison; None counts as not given.
        apply: release the package.
        prepare: do all but changing the cluster; a GitOps tool does that. Without one of both
            nothing is changed.
        image: an image that is already pushed; without it bento and image are built.
        image_repository: the name of the image without a tag; the overlay's where it is None.
        push: the command that pushes the image; empty for the engine's own; None for no push.
        canary: shares of the requests that the new version gets before the rollout, in order.
        canary_seconds: how long each share lasts.
        canary_shift: from which difference of a share on its predictions undo the release.
    """

    package: str
    champion: str
    data: str
    bounds: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    allow_label_change: bool = False
    accept_inconclusive: bool = False
    apply: bool = False
    prepare: bool = False
    image: str | None = None
    image_repository: str | None = None
    engine: str | None = None
    platform: str | None = None
    push: str | None = None
    canary: tuple[float, ...] = ()
    canary_seconds: float = CANARY_SECONDS
    canary_shift: float = CANARY_SHIFT

    def status_of(self, verdict: str) -> int:
        """The exit status of a verdict: 0 if it allows the release."""
        if verdict == "inconclusive" and self.accept_inconclusive:
            return 0
        return EXIT_OF_VERDICT[verdict]


@dataclass(frozen=True, kw_only=True)
class ObserveOptions(RolloutOptions):
    """What an observation of a prepared release was asked for.

    Attributes:
        wait: how long the cluster may take to show the prepared version, in seconds.
    """

    wait: float = WAIT_SECONDS


@dataclass(frozen=True, kw_only=True)
class RollbackOptions(RolloutOptions):
    """What a rollback was asked for.

    Attributes:
        version: the model version or the record to return to; the release before where it is None.
        unfinished: only undo a release that was killed.
        abandon: only give up a release that was killed; the cluster stays as it is.
    """

    version: str | None = None
    unfinished: bool = False
    abandon: bool = False

    @property
    def only_recovers(self) -> bool:
        """Whether nothing is done but dealing with a release that was killed."""
        return self.unfinished or self.abandon
