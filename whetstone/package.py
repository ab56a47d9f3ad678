"""The verbs of a finished package: evaluate, register, verify, compare, predict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from whetstone.options import (
    INPUT_KEYS,
    PACKAGE_TEXT,
    add_comparison,
    add_drop_invalid,
    add_input_keys,
    add_verb,
    positive,
    read_bounds,
    read_columns,
    read_input_keys,
)

if TYPE_CHECKING:
    from service.inference.classifier import Classifier
    from whetstone.options import Verbs

LOCAL = "local"
# The options of `predict` that only one engine has, and which.
ENGINE_OPTIONS = {
    "ray_address": "ray",
    "num_workers": "ray",
    "device": "ray",
    "spark_master": "spark",
}


def add_arguments(verbs: Verbs) -> None:
    """Add every verb of this module with its arguments."""
    _add_evaluate(verbs)
    _add_register(verbs)
    _add_verify(verbs)
    _add_compare(verbs)
    _add_predict(verbs)


def evaluate(parsed: argparse.Namespace) -> None:
    """`whetstone evaluate PACKAGE FILE`"""
    from training.common.layout import METRICS_FILE, REPORT, REPORT_FILE
    from training.data.dataset import read_labeled
    from training.evaluation.behavior import run_behavior
    from training.evaluation.evaluate import evaluate as evaluate_split
    from training.evaluation.evaluate import write_metrics
    from training.evaluation.output import print_behavior, print_metrics
    from training.evaluation.report.report import write_report
    from training.evaluation.seen import equally_seen
    from training.recipe.arguments import columns_of

    classifier = _load(parsed.package)
    manifest = classifier.manifest
    behaviour = run_behavior(parsed.behaviour, classifier) if parsed.behaviour else None
    split, _, dropped, slices = read_labeled(
        parsed.file,
        columns_of(manifest, read_columns(parsed)),
        manifest.labels,
        manifest.task,
        parsed.slices,
    )
    seen = equally_seen(split.texts, manifest)
    metrics, answers = evaluate_split(classifier, split, str(parsed.file), seen)
    print_metrics(metrics, f"{manifest.name} on {parsed.file}")
    if dropped:
        print(f"{dropped} rows could not be used and were left out")
    if behaviour:
        print_behavior(behaviour)
        metrics["behaviour"] = {name: behaviour[name] for name in ("passed", "failed", "kinds")}
    if parsed.output_dir is None:
        return
    write_metrics(metrics, parsed.output_dir / METRICS_FILE)
    report = parsed.output_dir / REPORT / REPORT_FILE
    write_report(
        report,
        manifest,
        split,
        answers,
        metrics,
        where=str(parsed.file),
        slices=slices,
        behaviour=behaviour,
        classifier=classifier,
    )
    print(f"written: {parsed.output_dir / METRICS_FILE}, {report}")


def register(parsed: argparse.Namespace) -> None:
    """`whetstone register PACKAGE`"""
    from training.registry.publish import package_at
    from training.registry.register import register as register_package

    with package_at(parsed.package) as folder:
        tag, new = register_package(folder)
    print(f"registered: {tag}" if new else f"{tag} is already registered: nothing to do")
    print(f"next: bentoml serve service.service:TextClassifier --arg model={tag}")


def verify(parsed: argparse.Namespace) -> None:
    """`whetstone verify PACKAGE|URL`"""
    from training.registry.publish import package_at
    from training.registry.verify import is_url, verify_folder, verify_service

    if is_url(parsed.target):
        print(verify_service(parsed.target, parsed.package, parsed.api_key_file))
        return
    if parsed.package or parsed.api_key_file:
        parsed.command.error("--package and --api_key_file need the address of a service")
    with package_at(parsed.target) as folder:
        print(verify_folder(folder, parsed.target if "://" in parsed.target else None))


def compare(parsed: argparse.Namespace) -> int:
    """`whetstone compare CHAMPION CHALLENGER --data FILE`"""
    from training.common.exit_status import EXIT_OF_VERDICT
    from training.common.layout import COMPARE_FILE, REPORT_FILE
    from training.comparison.compare import compare as compare_packages
    from training.comparison.output import default_folder, print_comparison, write_comparison
    from training.comparison.page import write_comparison_page
    from training.registry.publish import check_place, publish_verdict

    # A place that cannot be written is refused before an hour of work.
    if parsed.output_dir:
        parsed.output_dir.mkdir(parents=True, exist_ok=True)
    if parsed.publish is not None:
        check_place(parsed.publish)
    comparison = compare_packages(
        parsed.champion,
        parsed.challenger,
        parsed.data,
        bounds=read_bounds(parsed),
        columns=read_columns(parsed),
        allow_label_change=parsed.allow_label_change,
    )
    print_comparison(comparison)
    folder = parsed.output_dir or default_folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison_page(folder / REPORT_FILE, comparison)
    files = write_comparison(comparison, folder)
    print(f"written: {', '.join(map(str, [*files, folder / REPORT_FILE]))}")
    if parsed.publish is not None:
        manifest, name = comparison.challenger.manifest, default_folder(comparison).name
        address = publish_verdict(parsed.publish, manifest, name, folder / COMPARE_FILE)
        print(f"published: {address}")
    return EXIT_OF_VERDICT[comparison.outcome]


def predict(parsed: argparse.Namespace) -> None:
    """`whetstone predict PACKAGE FILE ... --out FILE`"""
    from training.recipe.arguments import columns_of
    from training.scoring.predict import predict as predict_file

    for option, engine in ENGINE_OPTIONS.items():
        if getattr(parsed, option) is not None and parsed.engine != engine:
            parsed.command.error(f"--{option} is for --engine {engine}")
    if parsed.engine != LOCAL:
        _predict_on_cluster(parsed)
        return
    classifier = _load(parsed.package)
    rows, failures = predict_file(
        classifier,
        parsed.files,
        parsed.out,
        columns_of(classifier.manifest, read_input_keys(parsed)),
        all_scores=parsed.all_scores,
    )
    summary = f"{rows} rows, {failures} of them without an answer (column error): {parsed.out}"
    print(summary, file=sys.stderr if parsed.out == "-" else sys.stdout)


def _predict_on_cluster(parsed: argparse.Namespace) -> None:
    from training.scoring.engines import EngineOptions, predict_on
    from training.scoring.output import print_tally

    given = {name: getattr(parsed, name) for name in ENGINE_OPTIONS}
    options = EngineOptions(parsed.engine, **{**given, "device": parsed.device or "cpu"})
    tally = predict_on(
        options,
        parsed.package,
        parsed.files,
        parsed.out,
        read_input_keys(parsed),
        all_scores=parsed.all_scores,
    )
    print_tally(tally, parsed.out)


def _load(package: str) -> Classifier:
    """The classifier of a package that is named by folder, tag, version or address."""
    from service.inference.classifier import Classifier
    from training.registry.publish import package_at

    with package_at(package) as folder:
        return Classifier.load(folder)


def _add_evaluate(verbs: Verbs) -> None:
    command = add_verb(verbs, evaluate, "measure a package on a labeled file")
    command.add_argument("package", help=PACKAGE_TEXT)
    command.add_argument("file", help="labeled rows: a file, a folder, a pattern or an address")
    add_input_keys(command)
    add_drop_invalid(command)
    command.add_argument(
        "--slices",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="measure the rows of each value of these columns separately",
    )
    command.add_argument(
        "--behaviour", type=Path, metavar="FILE", help="also run the behaviour tests of a YAML file"
    )
    command.add_argument(
        "--output_dir", type=Path, help="folder for metrics.json and report/index.html"
    )


def _add_register(verbs: Verbs) -> None:
    command = add_verb(verbs, register, "copy a package into BentoML's model store")
    command.add_argument("package", help="folder, or address of a published version")


def _add_verify(verbs: Verbs) -> None:
    command = add_verb(verbs, verify, "check the hashes and golden texts of a package or service")
    command.add_argument(
        "target",
        metavar="PACKAGE|URL",
        help="folder, tag of the model store, address of a published version or of a service",
    )
    command.add_argument(
        "--package", help="what a service must serve (default: the stored version that it names)"
    )
    command.add_argument("--api_key_file", type=Path, help="file with the service's API key")


def _add_compare(verbs: Verbs) -> None:
    command = add_verb(
        verbs, compare, "decide whether a retrained package may replace the one that runs"
    )
    command.epilog = (
        "The exit status is 0 for promote, 3 for refuse, 4 for inconclusive and 1 for an error. A "
        "package is a folder, a tag or a version of the model store, or the address of a published "
        "version. compare.json holds numbers only; flips.csv and index.html hold texts of the file."
    )
    command.add_argument(
        "champion", help="the package that runs, or none for a first release (./none is a folder)"
    )
    command.add_argument("challenger", help="the package that may replace it")
    add_comparison(command)
    command.add_argument(
        "--output_dir",
        type=Path,
        help="folder for compare.json, flips.csv and index.html (default: "
        "comparisons/<champion>-<challenger>-<data>)",
    )
    command.add_argument(
        "--publish",
        metavar="URL",
        help="also copy compare.json to URL/<name>/<version>/verdicts, where the challenger was "
        "published",
    )


def _add_predict(verbs: Verbs) -> None:
    command = add_verb(verbs, predict, "classify every row of a file of any size")
    command.add_argument("package", help=PACKAGE_TEXT)
    command.add_argument(
        "files",
        nargs="+",
        metavar="file",
        help="rows with a text column: files, folders, patterns, addresses; - is standard input",
    )
    command.add_argument(
        "--out",
        required=True,
        help="file or address that ends in .csv, .tsv, .jsonl, .json, .parquet or .arrow (text "
        "formats also in .gz or .zst); - is standard output",
    )
    add_input_keys(command, [key for key in INPUT_KEYS if key != "label_column"])
    command.add_argument(
        "--all_scores", action="store_true", help="add a column score_<label> for every label"
    )
    _add_engines(command)


def _add_engines(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=(LOCAL, *dict.fromkeys(ENGINE_OPTIONS.values())),
        default=LOCAL,
        help="what scores: this process (default), or a cluster's Ray or Spark, for which --out "
        "names a folder of parts",
    )
    command.add_argument(
        "--ray_address", help="the Ray cluster (default: RAY_ADDRESS, or this machine)"
    )
    command.add_argument(
        "--num_workers",
        type=positive,
        metavar="N",
        help="Ray's actors (default: one for each core, or GPU, of the cluster)",
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), help="what each of Ray's actors has (default: cpu)"
    )
    command.add_argument(
        "--spark_master", help="Spark's master (default: that of spark-submit, or this machine)"
    )
