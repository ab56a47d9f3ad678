"""The verbs of production: drift, collect, forget."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.common.exit_status import EXIT_ERROR
from whetstone.options import PACKAGE_TEXT, add_verb

if TYPE_CHECKING:
    from service.package.manifest import Manifest
    from whetstone.options import Verbs

CAPTURED_TEXT = "folders, addresses or parts that WHETSTONE_CAPTURE has filled"
TIME_TEXT = "such as 2026-11-28, 2026-11-28T09:30 or 7d (ago), in UTC unless it says otherwise"


def add_arguments(verbs: Verbs) -> None:
    """Add every verb of this module with its arguments."""
    _add_drift(verbs)
    _add_collect(verbs)
    _add_forget(verbs)


def drift(parsed: argparse.Namespace) -> int:
    """`whetstone drift PACKAGE CAPTURED …`"""
    import json

    from monitoring.captured import find_captured, parse_moment
    from monitoring.drift import EXIT_OF_DRIFT
    from monitoring.output import print_report
    from monitoring.report import as_json, look_at_production
    from service.package.files import write_text

    manifest = _manifest_of(parsed.package)
    since, until = (text and parse_moment(text) for text in (parsed.since, parsed.until))
    captured = find_captured(parsed.captured, since, until, manifest.version)
    reference = None
    if parsed.reference:
        reference = find_captured(parsed.reference, version=manifest.version)
    report = look_at_production(manifest, captured, reference)
    print_report(report)
    if parsed.json is not None:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(parsed.json, json.dumps(as_json(report), indent=2) + "\n")
        print(f"written: {parsed.json}")
    if parsed.html is not None:
        from monitoring.page import write_drift_page

        write_drift_page(parsed.html, report)
        print(f"written: {parsed.html}")
    if parsed.allow_too_few and report.verdict == "too few rows":
        return 0
    return EXIT_OF_DRIFT[report.verdict]


def collect(parsed: argparse.Namespace) -> None:
    """`whetstone collect PACKAGE CAPTURED … --rows N --out FILE`, or `--labeled … --into FILE`"""
    if parsed.labeled:
        _merge(parsed)
    else:
        _pick(parsed)


def _merge(parsed: argparse.Namespace) -> None:
    from monitoring.captured import find_captured
    from monitoring.merging import merge, read_labeled
    from monitoring.output import print_merged
    from training.common.errors import DataError

    if parsed.rows is not None or parsed.out is not None:
        raise DataError(
            "--labeled takes labels back, --rows and --out pick texts: give one of both"
        )
    if parsed.into is None:
        raise DataError("--labeled needs --into: the CSV file of training data that gets the rows")
    manifest = _manifest_of(parsed.package)
    returned = read_labeled(parsed.labeled, manifest)
    feedback = find_captured(parsed.captured).feedback()
    merged = merge(returned.rows, parsed.into, manifest, feedback)
    print_merged(returned, merged)
    print(f"written: {parsed.into}" if merged.added else f"unchanged: {parsed.into}")


def _pick(parsed: argparse.Namespace) -> None:
    from monitoring.captured import find_captured, parse_moment
    from monitoring.collect import collect as pick_rows
    from monitoring.embedding import embed
    from monitoring.labeled import read_texts
    from monitoring.labeling import write_picks
    from monitoring.output import print_collection
    from training.common.errors import DataError

    if parsed.into is not None:
        raise DataError("--into needs --labeled: the export that holds the labels")
    if parsed.rows is None or parsed.out is None:
        raise DataError("say how many texts are picked, and where they go: --rows and --out")
    if parsed.out.exists():
        raise DataError(
            f"{parsed.out} is there already, and may hold labels: choose another --out, and name "
            "this file with --exclude"
        )
    manifest = _manifest_of(parsed.package)
    since, until = (text and parse_moment(text) for text in (parsed.since, parsed.until))
    labeled = read_texts(parsed.exclude, manifest)
    captured = find_captured(parsed.captured, since, until)
    collection = pick_rows(
        manifest,
        captured.answers(),
        parsed.rows,
        embed=embed,
        labeled=labeled,
        uniform_share=parsed.uniform_share,
        seed=parsed.seed,
    )
    write_picks(collection.picks, manifest, parsed.out, parsed.format)
    print_collection(collection)
    print(f"written: {parsed.out}")


def forget(parsed: argparse.Namespace) -> int:
    """`whetstone forget ID CAPTURED …`"""
    from monitoring.captured import find_captured
    from monitoring.forget import forget as forget_id

    count = forget_id(find_captured(parsed.captured), parsed.id)
    print(f"{count} lines of {parsed.id} were deleted")
    if not count:
        print("nothing of it was captured there", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _manifest_of(package: str) -> Manifest:
    from service.package.package import verify_package
    from training.registry.publish import package_at

    with package_at(package) as folder:
        return verify_package(folder)


def _add_drift(verbs: Verbs) -> None:
    command = add_verb(verbs, drift, "compare production with the package's training data")
    command.epilog = (
        "Ends with 0 if nothing has drifted, 3 for a drift, 4 if the rows are too few to tell, "
        "1 for an error."
    )
    command.add_argument("package", help=PACKAGE_TEXT)
    command.add_argument("captured", nargs="+", help=CAPTURED_TEXT)
    command.add_argument(
        "--reference", nargs="+", help="compare with these captured answers, not with the training"
    )
    _add_times(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the result as a page")
    command.add_argument(
        "--allow_too_few", action="store_true", help="end with 0 if the rows are too few to tell"
    )


def _add_collect(verbs: Verbs) -> None:
    from monitoring.options import FORMATS, UNIFORM_SHARE

    command = add_verb(verbs, collect, "pick captured texts to label next")
    command.add_argument("package", help=PACKAGE_TEXT)
    command.add_argument("captured", nargs="+", help=CAPTURED_TEXT)
    command.add_argument("--rows", type=_count, help="texts to pick, at most")
    command.add_argument("--out", type=Path, metavar="FILE", help="file to write")
    command.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s"
    )
    command.add_argument(
        "--uniform_share",
        type=_share,
        default=UNIFORM_SHARE,
        metavar="SHARE",
        help="share of the rows that is drawn uniformly; only these may measure a model "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of rows that are labeled, or out for labeling, though not trained yet",
    )
    command.add_argument(
        "--labeled",
        nargs="+",
        metavar="EXPORT",
        help="picked texts that people have labeled: add them to the file --into",
    )
    command.add_argument(
        "--into", type=Path, metavar="FILE", help="CSV file of training data; made if missing"
    )
    command.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    _add_times(command)


def _add_forget(verbs: Verbs) -> None:
    command = add_verb(verbs, forget, "delete what was captured of one request")
    command.add_argument("id", help="the request's id, from its answer or its header")
    command.add_argument("captured", nargs="+", help=CAPTURED_TEXT)


def _add_times(command: argparse.ArgumentParser) -> None:
    command.add_argument("--since", metavar="TIME", help=f"answers from then on; {TIME_TEXT}")
    command.add_argument("--until", metavar="TIME", help="answers before then")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value
