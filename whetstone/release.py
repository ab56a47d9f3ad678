"""The verbs of production: image, release, rollback, history."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from release.options import CANARY_SECONDS, CANARY_SHIFT, WAIT_SECONDS, WATCH_SECONDS
from whetstone.options import add_comparison, add_verb, read_bounds, read_columns

if TYPE_CHECKING:
    from whetstone.options import Verbs

DAY_SECONDS = 86_400


def add_arguments(verbs: Verbs) -> None:
    """Add every verb of this module with its arguments."""
    _add_image(verbs)
    _add_release(verbs)
    _add_rollback(verbs)
    _add_history(verbs)


def image(parsed: argparse.Namespace) -> None:
    """`whetstone image [BENTO]`"""
    from release.image.build import build_image, describe
    from release.image.engine import find_engine
    from training.common.layout import IMAGES

    engine = find_engine(parsed.engine)
    print(f"building with {engine}; the first build takes a minute or two", flush=True)
    built = build_image(
        parsed.bento,
        engine,
        platform=parsed.platform,
        repository=parsed.image_repository,
        sbom_folder=IMAGES,
    )
    print(describe(built))


def release(parsed: argparse.Namespace) -> int:
    """`whetstone release PACKAGE --overlay DIR --champion WHICH --data FILE`"""
    if parsed.observe:
        return _observe(parsed)
    from release.options import ReleaseOptions
    from release.release import release as release_package

    _require(parsed, package="PACKAGE", champion="--champion", data="--data")
    options = ReleaseOptions(
        **_rollout(parsed),
        package=parsed.package,
        champion=parsed.champion,
        data=parsed.data,
        bounds=read_bounds(parsed),
        columns=read_columns(parsed),
        allow_label_change=parsed.allow_label_change,
        accept_inconclusive=parsed.accept_inconclusive,
        apply=parsed.apply,
        prepare=parsed.prepare,
        image=parsed.image,
        image_repository=parsed.image_repository,
        engine=parsed.engine,
        platform=parsed.platform,
        push=parsed.push,
        canary=parsed.canary,
        canary_seconds=parsed.canary_seconds,
        canary_shift=parsed.canary_shift,
    )
    return release_package(options)


def _observe(parsed: argparse.Namespace) -> int:
    """`whetstone release --observe --overlay DIR`"""
    from release.observe import observe
    from release.options import ObserveOptions
    from training.common.errors import ReleaseError

    if parsed.package is not None:
        raise ReleaseError(
            f"--observe takes no PACKAGE, because the record says what was prepared: leave out "
            f"{parsed.package}"
        )
    return observe(ObserveOptions(**_rollout(parsed), wait=parsed.wait))


def _require(parsed: argparse.Namespace, **names: str) -> None:
    """Refuse a command line without what only an observation does without.

    Raises:
        ReleaseError: something is missing; the message names all of it.
    """
    from training.common.errors import ReleaseError

    missing = [shown for name, shown in names.items() if getattr(parsed, name) is None]
    if missing:
        raise ReleaseError(f"a release needs {', '.join(missing)}: see whetstone release --help")


def rollback(parsed: argparse.Namespace) -> int:
    """`whetstone rollback [VERSION] --overlay DIR`"""
    from release.options import RollbackOptions
    from release.rollback import rollback as roll_back

    options = RollbackOptions(
        **_rollout(parsed),
        version=parsed.version,
        unfinished=parsed.unfinished,
        abandon=parsed.abandon,
    )
    return roll_back(options)


def _rollout(parsed: argparse.Namespace) -> dict[str, Any]:
    """What a release and a rollback share."""
    from release.cluster.overlay import record_name

    return {
        "overlay": record_name(parsed.overlay),
        "context": parsed.context,
        "api_key_file": parsed.api_key_file,
        "watch": parsed.watch,
    }


def history(parsed: argparse.Namespace) -> None:
    """`whetstone history`"""
    from release.cluster.overlay import record_name
    from release.history import print_history
    from release.records import Records

    print_history(Records(), parsed.overlay and record_name(parsed.overlay))


def _add_image(verbs: Verbs) -> None:
    command = add_verb(verbs, image, "build the container image of a bento")
    command.add_argument(
        "bento",
        nargs="?",
        default="text-classifier:latest",
        help="tag of the bento (default: the newest one); its version becomes the image's tag",
    )
    command.add_argument(
        "--engine", help="docker, podman or buildah (default: the first of them that works)"
    )
    _add_platform(command)
    command.add_argument(
        "--image_repository", metavar="NAME", help="image name without a tag (default: the bento's)"
    )


def _add_release(verbs: Verbs) -> None:
    command = add_verb(
        verbs, release, "put a package into production, or leave everything as it was"
    )
    command.epilog = (
        "Without --apply nothing is changed. The exit status is 0 when the package is released (or "
        "may be), 3 when the comparison refuses, 4 when it is inconclusive and 1 for anything "
        "else; the version that ran before then still runs, or runs again. "
        "releases/<version>.json has the record. Where a GitOps tool applies what is committed, "
        "--prepare ends before the cluster changes, and --observe looks at what the tool applied."
    )
    command.add_argument(
        "package", nargs="?", help="folder, tag, version, or address of a published version"
    )
    _add_rollout(command)
    command.add_argument(
        "--champion",
        help="current: the version that runs; none: a first release; or a package to compare with",
    )
    add_comparison(command, required=False)
    command.add_argument(
        "--accept_inconclusive",
        action="store_true",
        help="release although the rows are too few to decide",
    )
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--apply", action="store_true", help="release the package")
    mode.add_argument(
        "--plan", action="store_true", help="show what would be released (the default)"
    )
    mode.add_argument(
        "--prepare",
        action="store_true",
        help="do everything but changing the cluster: a GitOps tool applies what you commit",
    )
    mode.add_argument(
        "--observe",
        action="store_true",
        help="wait for the prepared version, check and watch it; if it fails, write the overlay as "
        "before",
    )
    command.add_argument(
        "--wait",
        type=_seconds,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="how long the GitOps tool may take before --observe gives up "
        f"(default: {WAIT_SECONDS:g})",
    )
    _add_release_image(command)
    _add_canary(command)


def _add_canary(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--canary",
        type=_shares,
        default=(),
        metavar="SHARES",
        help="shares of the requests that the new version gets before the rollout, one after the "
        "other, such as 5%%,25%%: errors, latency and predictions are compared with the old pods",
    )
    command.add_argument(
        "--canary_seconds",
        type=_seconds,
        default=CANARY_SECONDS,
        metavar="SECONDS",
        help=f"how long each share lasts (default: {CANARY_SECONDS:g})",
    )
    command.add_argument(
        "--canary_shift",
        type=_share,
        default=CANARY_SHIFT,
        metavar="SHARE",
        help="the release is undone if a label's share of the predictions surely differs by so "
        f"much or more (default: {CANARY_SHIFT:.0%}%)",
    )


def _add_release_image(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image", metavar="NAME:TAG", help="use this pushed image; build neither bento nor image"
    )
    command.add_argument("--engine", help="docker or podman (default: the first that works)")
    _add_platform(command)
    command.add_argument(
        "--image_repository",
        metavar="NAME",
        help="image name without a tag (default: the overlay's)",
    )
    command.add_argument(
        "--push",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="push the image with the engine, or with a command that gets its name as the last "
        "word, such as 'kind load docker-image'",
    )


def _add_rollback(verbs: Verbs) -> None:
    command = add_verb(verbs, rollback, "return to an earlier release")
    target = command.add_mutually_exclusive_group()
    target.add_argument(
        "version",
        nargs="?",
        help="version of the model, or name of a record (default: the release before)",
    )
    target.add_argument(
        "--unfinished", action="store_true", help="only undo a release that was killed"
    )
    target.add_argument(
        "--abandon",
        action="store_true",
        help="only give up a release that was killed; the cluster stays as it is",
    )
    _add_rollout(command)


def _add_history(verbs: Verbs) -> None:
    command = add_verb(verbs, history, "list the releases and their results")
    command.add_argument("--overlay", type=Path, help="only the releases of this overlay")


def _add_platform(command: argparse.ArgumentParser) -> None:
    command.add_argument("--platform", help="such as linux/arm64 (default: the engine's own)")


def _add_rollout(command: argparse.ArgumentParser) -> None:
    """Add what a release and a rollback need to change a cluster."""
    command.add_argument(
        "--overlay", type=Path, required=True, metavar="DIR", help="such as k8s/overlays/production"
    )
    command.add_argument("--context", help="context of kubectl (default: the current one)")
    command.add_argument("--api_key_file", type=Path, help="file with the service's API key")
    command.add_argument(
        "--watch",
        type=_seconds,
        default=WATCH_SECONDS,
        metavar="SECONDS",
        help="how long errors, refusals and p99 are watched afterwards "
        f"(default: {WATCH_SECONDS:g})",
    )


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(_share(each.strip()) for each in text.split(","))
    if list(shares) != sorted(set(shares)):
        raise argparse.ArgumentTypeError(f"{text}: each share must be larger than the one before")
    return shares


def _share(text: str) -> float:
    digits = text.removesuffix("%")
    try:
        value = float(digits) / 100 if digits != text else -1.0
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0% and 100%, such as 5%")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < DAY_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to a day")
    return value
