"""The command `whetstone`: each verb is a few named steps; heavy imports happen inside the verb."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.distributed import is_first
from training.errors import InterruptedRunError, WhetstoneError
from training.threads import limit_threads

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
# What `compare` says to scripts.
EXIT_OF_VERDICT = {"promote": 0, "refuse": 3, "inconclusive": 4}
# What evaluate and predict may be told of a file; its package's recipe says the rest.
COLUMN_KEYS = (
    *("text_column", "text_pair_column", "label_column", "label_separator", "label_columns"),
    *("delimiter", "encoding"),
)
# Of these what is found in the file itself.
FOUND_KEYS = ("delimiter", "encoding")
# Bounds of `compare`, each a flag; the challenger's recipe has them as `compare:`.
BOUND_TEXTS = {
    "max_macro_f1_drop": "refuse where macro-F1 drops by more (default: 0.01)",
    "max_half_width": "inconclusive where half its interval is wider (default: 0.02)",
    "min_macro_f1": "refuse below this macro-F1 (default: no floor)",
    "max_ece": "refuse above this calibration error (default: no bound)",
}
# What of a recipe decides what `check` sees.
DATA_KEYS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "train_file",
    "validation_file",
    "test_file",
    *COLUMN_KEYS,
    "group_column",
    "time_column",
    "validation_share",
    "drop_invalid",
    "model_name_or_path",
    "model_revision",
    "max_length",
    "long_text",
    "trust_remote_code",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    _quiet_libraries()
    limit_threads()
    try:
        return parsed.verb(parsed) or 0
    except InterruptedRunError as error:
        print(f"whetstone: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("whetstone: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"whetstone: {sentence}", file=sys.stderr)
        return EXIT_ERROR


def check(parsed: argparse.Namespace) -> int:
    """`whetstone check RECIPE`, or `whetstone check --train_file FILE`"""
    from training.check import check as check_data
    from training.config import load_recipe

    given = {key: value for key in DATA_KEYS if (value := getattr(parsed, key)) is not None}
    recipe = load_recipe(parsed.recipe, {"name": "check", **given} if not parsed.recipe else given)
    sound = check_data(recipe, strict=parsed.strict, json_file=parsed.json, plot_file=parsed.plot)
    return 0 if sound else EXIT_ERROR


def train(parsed: argparse.Namespace) -> None:
    """`whetstone train RECIPE`"""
    recipe, overwrite = _recipe(parsed)
    from training.train import train as train_recipe

    run = train_recipe(recipe, overwrite=overwrite)
    if is_first():
        print(f"checkpoint: {run.checkpoint}")
        print(f"next: whetstone export {_again(parsed)}")


def export(parsed: argparse.Namespace) -> None:
    """`whetstone export RECIPE`"""
    recipe, _ = _recipe(parsed)
    from service.model_package import read_manifest
    from training.candidates import print_selection
    from training.export import export as export_run
    from training.train import open_run

    package = export_run(open_run(recipe))
    print_selection(read_manifest(package).selection)
    print(f"package: {package}")
    print(f"next: whetstone register {package}")


def evaluate(parsed: argparse.Namespace) -> None:
    """`whetstone evaluate PACKAGE FILE`"""
    from service.classifier import Classifier
    from training.behaviour import print_behaviour, run_behaviour
    from training.config import columns_of
    from training.data.dataset import read_labelled
    from training.evaluate import draw_metrics, print_metrics, write_metrics
    from training.evaluate import evaluate as evaluate_split
    from training.layout import METRICS_FILE, REPORT, REPORT_FILE
    from training.publish import package_at
    from training.report import write_report
    from training.seen import equally_seen

    with package_at(parsed.package) as folder:
        classifier = Classifier.load(folder)
    manifest = classifier.manifest
    behaviour = run_behaviour(parsed.behaviour, classifier) if parsed.behaviour else None
    arguments = columns_of(manifest, {**_columns(parsed), "drop_invalid": parsed.drop_invalid})
    split, _, dropped, slices = read_labelled(
        parsed.file, arguments, manifest.labels, manifest.task, parsed.slices
    )
    seen = equally_seen(split.texts, manifest)
    metrics, answers = evaluate_split(classifier, split, str(parsed.file), seen)
    print_metrics(metrics, f"{manifest.name} on {parsed.file}")
    if dropped:
        print(f"{dropped} rows could not be used and were left out")
    if behaviour:
        print_behaviour(behaviour)
        metrics["behaviour"] = {name: behaviour[name] for name in ("passed", "failed", "kinds")}
    if parsed.output_dir:
        write_metrics(metrics, parsed.output_dir / METRICS_FILE)
        picture = draw_metrics(metrics, parsed.output_dir / REPORT)
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
        )
        print(f"written: {parsed.output_dir / METRICS_FILE}, {report}, {picture}")


def register(parsed: argparse.Namespace) -> None:
    """`whetstone register PACKAGE`"""
    from training.publish import package_at
    from training.register import register as register_package

    with package_at(parsed.package) as folder:
        tag, new = register_package(folder)
    print(f"registered: {tag}" if new else f"{tag} is registered already: nothing to do")
    print(f"next: bentoml serve service.service:TextClassifier --arg model={tag}")


def verify(parsed: argparse.Namespace) -> None:
    """`whetstone verify PACKAGE|URL`"""
    from training.publish import package_at
    from training.verify import is_url, verify_folder, verify_service

    if is_url(parsed.target):
        print(verify_service(parsed.target, parsed.package, parsed.api_key_file))
        return
    if parsed.package or parsed.api_key_file:
        parsed.command.error("--package and --api_key_file go with the address of a service")
    with package_at(parsed.target) as folder:
        print(verify_folder(folder, parsed.target if "://" in parsed.target else None))


def compare(parsed: argparse.Namespace) -> int:
    """`whetstone compare CHAMPION CHALLENGER --data FILE`"""
    from training.compare import compare as compare_packages
    from training.compare_output import default_folder, print_comparison, write_comparison
    from training.layout import COMPARE_FILE, REPORT_FILE
    from training.publish import check_place, publish_verdict
    from training.report.comparison import write_comparison_page

    # What cannot be written is to be known before an hour's work.
    if parsed.output_dir:
        parsed.output_dir.mkdir(parents=True, exist_ok=True)
    if parsed.publish is not None:
        check_place(parsed.publish)
    given = {name: getattr(parsed, name) for name in BOUND_TEXTS}
    found = compare_packages(
        parsed.champion,
        parsed.challenger,
        parsed.data,
        bounds=given,
        columns={**_columns(parsed), "drop_invalid": parsed.drop_invalid},
        allow_label_change=parsed.allow_label_change,
    )
    print_comparison(found)
    folder = parsed.output_dir or default_folder(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison_page(folder / REPORT_FILE, found)
    written = write_comparison(found, folder)
    print(f"written: {', '.join(map(str, [*written, folder / REPORT_FILE]))}")
    if parsed.publish is not None:
        name, verdict = default_folder(found).name, folder / COMPARE_FILE
        address = publish_verdict(parsed.publish, found.challenger.manifest, name, verdict)
        print(f"published: {address}")
    return EXIT_OF_VERDICT[found.outcome]


def image(parsed: argparse.Namespace) -> None:
    """`whetstone image [BENTO]`"""
    from training.image import build_image, describe, find_engine
    from training.layout import IMAGES

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
    from training.release.release import release as release_package

    return release_package(_wishes(parsed))


def rollback(parsed: argparse.Namespace) -> int:
    """`whetstone rollback [VERSION] --overlay DIR`"""
    from training.release.release import rollback as roll_back

    return roll_back(_wishes(parsed), parsed.version)


def history(parsed: argparse.Namespace) -> None:
    """`whetstone history`"""
    from training.release.history import print_history
    from training.release.overlay import named
    from training.release.records import Records

    print_history(Records(), parsed.overlay and named(parsed.overlay))


def run(parsed: argparse.Namespace) -> None:
    """`whetstone run RECIPE`: train, export, evaluate, register, publish."""
    recipe, overwrite = _recipe(parsed)
    from training.run import run_chain

    summary = run_chain(recipe, overwrite=overwrite, publish_to=parsed.publish)
    if summary is not None:
        print(summary)


def tune(parsed: argparse.Namespace) -> None:
    """`whetstone tune RECIPE --trials N`"""
    recipe, overwrite = _recipe(parsed)
    from training.layout import RECORD
    from training.tune import PICTURE, STUDY, print_trials
    from training.tune import tune as search

    if not re.fullmatch(r"[1-9]\d*", str(parsed.trials)):
        parsed.command.error("how many trainings may it try? --trials N, from 1 on")
    tuned = search(recipe, int(parsed.trials), overwrite=overwrite)
    print_trials(tuned)
    print(f"written: {tuned.recipe}, {tuned.folder / PICTURE}, {tuned.folder / STUDY}")
    # A run of the recipe that was searched around may lie there.
    replace = " --overwrite" if (recipe.output_dir / RECORD).exists() else ""
    print(f"next: whetstone run {tuned.recipe}{replace}")


def predict(parsed: argparse.Namespace) -> None:
    """`whetstone predict PACKAGE FILE ... --out FILE`"""
    from service.classifier import Classifier
    from training.config import columns_of
    from training.publish import package_at
    from training.scoring.predict import predict as predict_file

    with package_at(parsed.package) as folder:
        classifier = Classifier.load(folder)
    rows, failures = predict_file(
        classifier,
        parsed.files,
        parsed.out,
        columns_of(classifier.manifest, _columns(parsed)),
        all_scores=parsed.all_scores,
    )
    said = f"{rows} rows, {failures} of them without an answer (column error): {parsed.out}"
    print(said, file=sys.stderr if parsed.out == "-" else sys.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whetstone",
        description="Fine-tune a text classifier on your labelled text, prove it, package it.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="verb", required=True)

    command = _add_verb(verbs, check, "look at labelled text before training")
    command.add_argument("recipe", type=Path, nargs="?", help="YAML file, or name the files below")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the histograms as PNG")
    command.add_argument("--strict", action="store_true", help="warnings end with status 1, too")
    _add_data_keys(command)

    for verb, text in (
        (run, "train, export, evaluate, register: a recipe in, a measured package out"),
        (train, "fine-tune: a recipe in, a checkpoint out"),
        (export, "make the model package from the checkpoint, proven equal to it"),
        (tune, "search for better hyperparameters than the computed ones"),
    ):
        command = _add_verb(verbs, verb, text)
        command.set_defaults(overwrite=False)
        flag = {
            run: " [--overwrite] [--publish URL]",
            train: " [--overwrite]",
            export: "",
            tune: " --trials N [--overwrite]",
        }[verb]
        command.usage = f"whetstone {verb.__name__} RECIPE{flag} [--key value ...]"
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = _recipe_keys()
        command.add_argument("recipe", type=Path, help="YAML file of the keys below")
        if verb is tune:
            command.add_argument("--trials", metavar="N", help="trainings to try, at most")
        if verb is not export:
            command.add_argument(
                "--overwrite", action="store_true", help="replace what the run folder holds"
            )
        if verb is run:
            command.add_argument(
                "--publish",
                metavar="URL",
                help="copy the package to URL/<name>/<version>, too: a folder, s3://bucket/folder",
            )
        command.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    command = _add_verb(verbs, evaluate, "measure a package on a labelled file")
    _add_package(command)
    command.add_argument("file", help="labelled rows: a file, a folder, a pattern or an address")
    _add_columns(command, COLUMN_KEYS)
    command.add_argument(
        "--drop_invalid", action="store_true", help="leave out rows without text or label"
    )
    command.add_argument(
        "--slices", nargs="+", default=[], metavar="COLUMN", help="columns to measure apart by"
    )
    command.add_argument(
        "--behaviour", type=Path, metavar="FILE", help="YAML file of behaviour tests to run, too"
    )
    command.add_argument(
        "--output_dir", type=Path, help="folder for metrics.json and report/index.html"
    )

    command = _add_verb(verbs, register, "copy a package into BentoML's model store")
    command.add_argument("package", help="folder, or address of a published version")

    command = _add_verb(verbs, verify, "is this copy sound? hashes and golden texts")
    command.add_argument(
        "target",
        metavar="PACKAGE|URL",
        help="folder, tag of the model store, address of a published version or of a service",
    )
    command.add_argument(
        "--package", help="what a service must serve (default: the stored version that it names)"
    )
    command.add_argument("--api_key_file", type=Path, help="file with the service's API key")

    command = _add_verb(verbs, compare, "may a retrained package replace the one that runs?")
    command.epilog = (
        "Ends with 0 for promote, 3 for refuse, 4 for inconclusive, 1 for an error. A package is a "
        "folder, a tag or a version of the model store, or the address of a published version. "
        "compare.json holds numbers only; flips.csv and index.html hold texts of the file."
    )
    command.add_argument(
        "champion", help="the package that runs, or none for a first release (./none is a folder)"
    )
    command.add_argument("challenger", help="the package that may replace it")
    command.add_argument(
        "--data", required=True, metavar="FILE", help="labelled rows neither has seen"
    )
    _add_comparison_flags(command)
    command.add_argument(
        "--output_dir",
        type=Path,
        help="folder for compare.json, flips.csv and index.html (default: "
        "comparisons/<champion>-<challenger>-<data>)",
    )
    command.add_argument(
        "--publish",
        metavar="URL",
        help="copy compare.json to URL/<name>/<version>/verdicts, too: where the challenger was "
        "published",
    )

    command = _add_verb(verbs, image, "build the container image of a bento")
    command.add_argument(
        "bento",
        nargs="?",
        default="text-classifier:latest",
        help="tag of the bento (default: the one that was built last); its version is the image's",
    )
    command.add_argument(
        "--engine", help="docker, podman or buildah (default: the first of them that can be used)"
    )
    command.add_argument("--platform", help="such as linux/arm64 (default: the engine's own)")
    command.add_argument(
        "--image_repository", metavar="NAME", help="name without tag (default: the bento's)"
    )

    command = _add_verb(verbs, release, "a package into production, or everything as it was")
    command.epilog = (
        "Without --apply nothing is changed. Ends with 0 when released (or when it may be), 3 when "
        "the comparison refuses, 4 when it is inconclusive, 1 for anything else; what ran before "
        "then still runs, or runs again. releases/<version>.json has the record."
    )
    command.add_argument("package", help="folder, tag, version, or address of a published version")
    _add_rollout_flags(command)
    command.add_argument(
        "--champion",
        required=True,
        help="current: what runs; none: a first release; or a package to compare with",
    )
    command.add_argument(
        "--data", required=True, metavar="FILE", help="labelled rows neither has seen"
    )
    either = command.add_mutually_exclusive_group()
    either.add_argument("--apply", action="store_true", help="release it")
    either.add_argument(
        "--plan", action="store_true", help="show what would be released (the default)"
    )
    command.add_argument(
        "--image", metavar="NAME:TAG", help="built and pushed already: neither bento nor image"
    )
    command.add_argument("--engine", help="docker or podman (default: the first that can be used)")
    command.add_argument("--platform", help="such as linux/arm64 (default: the engine's own)")
    command.add_argument(
        "--image_repository", metavar="NAME", help="name without tag (default: the overlay's)"
    )
    command.add_argument(
        "--push",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="push the image by the engine, or by a command that its name is added to, such as "
        "'kind load docker-image'",
    )
    command.add_argument(
        "--accept_inconclusive", action="store_true", help="release what rows too few decide on"
    )
    _add_comparison_flags(command)

    command = _add_verb(verbs, rollback, "return to an earlier release")
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "version", nargs="?", help="of the model, or a record's (default: the release before)"
    )
    which.add_argument(
        "--unfinished", action="store_true", help="only end what a killed release has left behind"
    )
    which.add_argument(
        "--abandon",
        action="store_true",
        help="only give up what a killed release has left behind; the cluster stays as it is",
    )
    _add_rollout_flags(command)

    command = _add_verb(verbs, history, "what was released, with what result")
    command.add_argument("--overlay", type=Path, help="only releases of this one")

    command = _add_verb(verbs, predict, "classify every row of a file, however large")
    _add_package(command)
    command.add_argument(
        "files",
        nargs="+",
        metavar="file",
        help="rows with a text column: files, folders, patterns, addresses; - is standard input",
    )
    command.add_argument(
        "--out",
        required=True,
        help="file or address that ends in .csv, .tsv, .jsonl, .json, .parquet or .arrow, those of "
        "text also in .gz or .zst; - is standard output",
    )
    _add_columns(command, [key for key in COLUMN_KEYS if key != "label_column"])
    command.add_argument(
        "--all_scores", action="store_true", help="add a column score_<label> for every label"
    )
    return parser


def _add_verb(
    verbs: Any, verb: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = verbs.add_parser(
        verb.__name__, help=text, description=text, allow_abbrev=False
    )
    command.set_defaults(verb=verb, command=command)
    return command


def _add_package(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "package", help="folder, tag or version of the model store, or a published address"
    )


def _add_comparison_flags(command: argparse.ArgumentParser) -> None:
    """What decides between two packages, and how their rows are read."""
    for name, text in BOUND_TEXTS.items():
        command.add_argument(f"--{name}", metavar="SHARE", help=text)
    command.add_argument(
        "--allow_label_change", action="store_true", help="the set of labels may change"
    )
    _add_columns(command, COLUMN_KEYS)
    command.add_argument(
        "--drop_invalid", action="store_true", help="leave out rows without text or label"
    )


def _add_rollout_flags(command: argparse.ArgumentParser) -> None:
    """What a release and a rollback ask of the cluster."""
    command.add_argument(
        "--overlay", type=Path, required=True, metavar="DIR", help="such as k8s/overlays/production"
    )
    command.add_argument("--context", help="of kubectl (default: the current one)")
    command.add_argument("--api_key_file", type=Path, help="file with the service's API key")
    command.add_argument(
        "--watch",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long errors, refusals and p99 are watched afterwards (default: 60)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86_400:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0 to a day")
    return value


def _wishes(parsed: argparse.Namespace) -> Any:
    """What a release or rollback was asked for."""
    from training.release.overlay import named
    from training.release.release import Wishes

    parsed.overlay = named(parsed.overlay)
    names = {one.name for one in dataclasses.fields(Wishes)}
    given = {key: value for key, value in vars(parsed).items() if key in names}
    if parsed.verb is rollback:
        return Wishes(**given, package="", champion="", data="", apply=True)
    bounds = {name: getattr(parsed, name) for name in BOUND_TEXTS}
    columns = {**_columns(parsed), "drop_invalid": parsed.drop_invalid}
    return Wishes(**given, bounds=bounds, columns=columns)


def _add_data_keys(command: argparse.ArgumentParser) -> None:
    """The keys of a recipe that say what is read, each as an option."""
    from training.config import DataArguments, ModelArguments

    for part in (DataArguments, ModelArguments):
        for key in dataclasses.fields(part):
            if key.name in DATA_KEYS:
                flag = {"nargs": "?", "const": "true"} if key.default is False else {}
                flag = {"nargs": "+"} if "list" in str(key.type) else flag
                help_text = key.metadata["help"].replace("%", "%%")
                command.add_argument(f"--{key.name}", help=help_text, **flag)


def _add_columns(command: argparse.ArgumentParser, keys: Sequence[str]) -> None:
    for key in keys:
        several: dict[str, Any] = {"nargs": "+"} if key == "label_columns" else {}
        found = "found if not given" if key in FOUND_KEYS else "default: as in the package's recipe"
        command.add_argument(f"--{key}", help=found, **several)


def _columns(parsed: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(parsed, key, None) for key in COLUMN_KEYS}


def _recipe_keys() -> str:
    """Every key of a recipe, for `--help`, without importing transformers."""
    from training.config import OWN_ARGUMENTS

    lines = ["keys of a recipe; each can be given as --key value, which wins:"]
    for part in OWN_ARGUMENTS:
        for key in dataclasses.fields(part):
            default = "" if key.default is None else f" (default: {key.default})"
            lines.append(f"  {key.name}")
            lines += textwrap.wrap(
                key.metadata["help"] + default,
                width=88,
                initial_indent=" " * 8,
                subsequent_indent=" " * 8,
            )
    lines += [
        "  output_dir",
        "        the run folder (default: runs/<name>)",
        "and every key of transformers.TrainingArguments, such as learning_rate, num_train_epochs,",
        "per_device_train_batch_size, warmup_ratio, weight_decay, seed; those that would mean",
        "nothing here, or something else, are refused with the reason. What is not given is",
        "computed from the model's size and the number of rows and labels, and written to",
        "resolved_recipe.yaml in the run folder.",
    ]
    return "\n".join(lines)


def _recipe(parsed: argparse.Namespace) -> tuple[Any, bool]:
    """The checked recipe, and whether `--overwrite` stands anywhere on the command line."""
    if {"-h", "--help"} & set(parsed.overrides):
        parsed.command.print_help()
        raise SystemExit(0)
    from training.config import load_recipe, parse_overrides

    overrides = parse_overrides(parsed.overrides)
    overwrite = parsed.overwrite or overrides.pop("overwrite", None) == "true"
    if "trials" in parsed:
        parsed.trials = overrides.pop("trials", parsed.trials)
    if "publish" in overrides and "publish" in parsed:
        parsed.publish = overrides.pop("publish")
        # A key alone means true.
        if parsed.publish == "true" or not isinstance(parsed.publish, str):
            parsed.command.error("argument --publish: expected one argument")
    return load_recipe(parsed.recipe, overrides), overwrite


def _again(parsed: argparse.Namespace) -> str:
    words = [word for word in parsed.overrides if word != "--overwrite"]
    return shlex.join([str(parsed.recipe), *words])


def _sentence(error: Exception) -> str | None:
    """What to tell the user of an error that is theirs to mend; None for a fault of ours."""
    from service.classifier import GoldenMismatchError, NotFiniteError
    from service.model_package import PackageError

    if isinstance(error, WhetstoneError | PackageError | GoldenMismatchError | NotFiniteError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the package {error.name}: pip install 'whetstone[train]'"
    if isinstance(error, OSError) and error.strerror:
        place = f" {error.filename}" if error.filename else ""
        return f"cannot use{place}: {error.strerror}"
    return None


def _quiet_libraries() -> None:
    """One voice: our own lines and bars; the libraries speak up only when something is wrong.

    Of several processes that train together, the first one's.
    """
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
