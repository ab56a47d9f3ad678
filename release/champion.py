"""The version that runs now, and the comparison with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from release.cluster.rollout import running_version
from release.context import ReleaseContext
from release.options import CURRENT, ReleaseOptions
from release.records import ChangedLabels, ComparedData, Record
from training.common.errors import ClusterError, ReleaseError, VerifyError
from training.comparison.compare import compare
from training.comparison.result import Comparison


@dataclass(frozen=True)
class Champion:
    """The package to compare with, and the version that runs, as far as it is known."""

    package: str
    version: str | None


@dataclass(frozen=True)
class ChampionComparison:
    """A comparison with the champion of a release."""

    champion: Champion
    comparison: Comparison

    def write_to(self, record: Record, options: ReleaseOptions) -> None:
        """Record what was compared, and the labels that change."""
        comparison, version = self.comparison, self.champion.version
        record.champion, record.champion_version = options.champion, version
        record.data = ComparedData(
            file=options.data, sha256=comparison.rows.sha256, rows=len(comparison.rows.split)
        )
        if comparison.removed_labels or comparison.added_labels:
            record.label_change = ChangedLabels(
                from_version=version,
                removed=comparison.removed_labels,
                added=comparison.added_labels,
            )


def compare_with_champion(
    context: ReleaseContext, options: ReleaseOptions, folder: Path
) -> ChampionComparison:
    """`whetstone compare` with the champion that was named, or that runs."""
    champion = find_champion(context, options)
    comparison = compare(
        champion.package,
        str(folder),
        options.data,
        bounds=options.bounds,
        columns=options.columns,
        allow_label_change=options.allow_label_change,
    )
    return ChampionComparison(champion, comparison)


def find_champion(context: ReleaseContext, options: ReleaseOptions) -> Champion:
    """The package to compare with, and the version that runs.

    Raises:
        ReleaseError: nothing runs, or the package of the version that runs is not found.
        ClusterError, VerifyError: the version that runs cannot be determined, and is needed.
    """
    pods = context.deployed_pods()
    try:
        version = running_version(pods)
    except (ClusterError, VerifyError):
        # A first release may be planned without a cluster, and may replace pods that never worked.
        if options.champion == CURRENT or options.apply:
            raise
        return Champion(options.champion, None)
    if options.champion != CURRENT:
        return Champion(options.champion, version)
    if version is None:
        raise ReleaseError(
            f"nothing runs as {pods.workload.name} in {pods.workload.namespace}: give --champion "
            "none for a first release"
        )
    package = context.find_package(version)
    if package is None:
        raise ReleaseError(
            f"version {version} runs, and its package is neither in BentoML's model store nor in "
            f"{context.records.folder}: register it (whetstone register), or name it with "
            "--champion"
        )
    return Champion(package, version)
