"""What the defaults reach on public data, beside published results.

    make bench-quality DATA=FOLDER
    python -m benchmarks.bench_quality --data FOLDER --sets banking77 sms_spam

FOLDER holds a folder for each set with train.csv, test.csv and, where there is an official one,
validation.csv (columns text,label, or text,labels joined by `|`). Each set goes through `whetstone
train`, `export` and `evaluate`; a recipe says where the rows are and, of several labels a row, in
which column, and nothing else: everything is as the defaults have it. Without `--data` the example
of this repository is measured alone. What is trained or exported in the work folder is kept, so an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks.load import ROOT, end_by_signals, machine, write_result, write_whole
from benchmarks.quality_report import POSITIVE, draw, summary

EXAMPLE = ROOT / "examples" / "support_tickets"
SETS = ("sms_spam", "banking77", "sst2", "ag_news", "go_emotions", "unfair_tos", "cuad_clauses")
PACKAGES = ("whetstone", "torch", "transformers", "onnxruntime", "tokenizers")
SEED = 0
VERBS = ("train", "export", "evaluate")


class SetError(Exception):
    """A set cannot be measured; the message is one sentence."""


def whetstone(verb: str, words: Sequence[str | Path], log: Path, threads: int | None) -> None:
    """Run a verb in a process of its own, with what it says in `log`.

    Raises:
        SetError: it failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "whetstone", verb, *map(str, words)]
    with log.open("w", encoding="utf-8") as handle:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=handle,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the benchmark, which then ends the verb.
            start_new_session=True,
        )
        try:
            status = child.wait()
        except BaseException:
            # As Ctrl-C does: training saves where it is.
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
    if status:
        raise SetError(f"{verb} failed: {last_words(log)} ({log})")


def last_words(log: Path) -> str:
    """Why a verb failed: its own sentence, else the last line of its log."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line.startswith("whetstone: ")] or list(filter(None, lines))
    return said[-1].removeprefix("whetstone: ") if said else "it said nothing"


def folder_of(name: str, data: Path | None) -> Path:
    """Where the files of a set lie.

    Raises:
        SetError: they are not there.
    """
    if name == EXAMPLE.name:
        return EXAMPLE
    if data is None:
        raise SetError("its files are not in this repository: name their folder with --data")
    for path in (data / name / "train.csv", data / name / "test.csv"):
        if not path.is_file():
            raise SetError(f"{path} is not there")
    return data / name


def sets_in(data: Path | None) -> list[str]:
    """The example, and the known sets that a folder has."""
    found = [name for name in SETS if data and (data / name / "train.csv").is_file()]
    return [EXAMPLE.name, *found]


def draw_rows(source: Path, target: Path, count: int) -> bool:
    """Write the first `count` rows of a seeded shuffle; False, and nothing, where all are wanted.

    Raises:
        OSError, ValueError, csv.Error: `source` cannot be read.
    """
    with source.open(newline="", encoding="utf-8") as handle:
        reader = csv.reader(handle)
        header, rows = next(reader, []), list(reader)
    if count >= len(rows):
        return False
    random.Random(SEED).shuffle(rows)  # noqa: S311 - no secret
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows[:count]])
    return True


def write_recipe(name: str, source: Path, train_file: Path, folder: Path) -> Path:
    """A recipe that says where the rows are, and which columns several labels a row are in."""
    files = {"train_file": train_file, "test_file": source / "test.csv"}
    if (source / "validation.csv").is_file():
        files["validation_file"] = source / "validation.csv"
    keys = {"name": name, **{key: str(path) for key, path in files.items()}}
    with train_file.open(newline="", encoding="utf-8") as handle:
        if "labels" in next(csv.reader(handle), []):
            keys |= {"label_column": "labels", "label_separator": "|"}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys | {"output_dir": str(folder / "run")}), "utf-8")
    return recipe


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is not there."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train, export and evaluate what is not done yet; the entry of one set.

    Raises:
        SetError, OSError, ValueError, csv.Error: it cannot be done.
    """
    source = folder_of(name, given.data)
    train_file, folder = source / "train.csv", given.work / name
    drawn = None
    if given.rows:
        fewer = given.work / f"{name}-{given.rows}"
        if draw_rows(train_file, fewer / "train.csv", given.rows):
            train_file, folder, drawn = fewer / "train.csv", fewer, given.rows
    recipe = write_recipe(name, source, train_file, folder)
    run, keys = folder / "run", [f"--{key}={value}" for key, value in given.keys.items()]
    seconds = read_json(folder / "seconds.json")

    def stage(verb: str, *words: str | Path) -> None:
        began = time.monotonic()
        trained = verb == "train" and read_json(run / "training.json").get("finished")
        if verb == "train" and not trained:
            seconds["resumed"] = any((run / "checkpoint").glob("checkpoint-*"))
        whetstone(verb, words, folder / f"{verb}.log", given.threads)
        # Of a training that was finished it only made sure that it is of these rows and keys.
        if not trained:
            seconds[verb] = round(time.monotonic() - began, 1)
            (folder / "seconds.json").write_text(json.dumps(seconds), "utf-8")

    stage("train", recipe, *keys)
    if not (run / "package" / "manifest.json").is_file():
        stage("export", recipe, *keys)
    out = folder / "evaluation"
    stage("evaluate", run / "package", source / "test.csv", "--output_dir", out)
    return entry(name, folder, seconds) | {
        "drawn": drawn,
        "keys": given.keys,
        "threads": given.threads,
        "machine": machine(PACKAGES),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def entry(name: str, folder: Path, seconds: Mapping[str, Any]) -> dict[str, Any]:
    """What the files of a finished run say; `seconds` of the stages.

    `minutes` of a resumed training are those since it was last taken up.

    Raises:
        SetError: the label that the set is about is not there.
    """
    record = read_json(folder / "run" / "training.json")
    manifest = read_json(folder / "run" / "package" / "manifest.json")
    metrics = read_json(folder / "evaluation" / "metrics.json")
    rows, arguments = manifest["provenance"]["dataset"], record["training_arguments"]
    several = manifest["task"] == "multi_label"
    scores = {key: metrics[key] for key in ("accuracy", "macro_f1")}
    scores |= {"micro_f1": metrics["micro_f1"]} if several else {}
    if name in POSITIVE:
        if POSITIVE[name] not in metrics["per_label"]:
            raise SetError(f"none of its labels is {POSITIVE[name]}")
        scores["positive_f1"] = metrics["per_label"][POSITIVE[name]]["f1"]
    return {
        "set": name,
        "task": manifest["task"],
        "labels": len(manifest["labels"]),
        "rows": {part: rows[f"{part}_rows"] for part in ("train", "validation", "test")},
        "device": device_name(record["device"]),
        "minutes": {
            "training": round(record["seconds"] / 60, 2),
            "in_all": round(sum(seconds.get(verb, 0) for verb in VERBS) / 60, 2),
        },
        "resumed": seconds.get("resumed", False),
        "learning_rate": arguments["learning_rate"],
        "epochs": arguments["num_train_epochs"],
        "epochs_trained": max((one["epoch"] for one in record["evaluations"]), default=None),
        "batch_size": arguments["per_device_train_batch_size"]
        * arguments.get("gradient_accumulation_steps", 1),
        "shipped": manifest["selection"]["chosen"],
        **scores,
        "ece": metrics["calibration"]["ece"],
        # Of what might have shipped; the test rows are the shipped package's alone.
        "on_validation": {
            one["name"]: {key: one.get(key) for key in ("verdict", "accuracy", "macro_f1")}
            for one in manifest["selection"]["candidates"]
        },
    }


def device_name(device: str) -> str:
    """The card's name where it was trained on one, else `cpu`."""
    import torch

    cuda = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name() if cuda else device


def merge(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write an entry to a result in place of an earlier one of its set, device and keys."""
    keys = [f"{key}={value}" for key, value in found["keys"].items()]
    entries = read_json(path).get("entries", {})
    entries[" / ".join([found["set"], found["device"], *keys])] = found
    result = {"entries": dict(sorted(entries.items()))}
    write_result(path, result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure the sets, write the result; 1 where one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), help="folder of the sets")
    parser.add_argument(
        "--sets", nargs="+", choices=(EXAMPLE.name, *SETS), help="default: all that are there"
    )
    parser.add_argument("--rows", type=int, help="training rows of a set, at most")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of every stage")
    parser.add_argument(
        "--keys", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys: not the defaults"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality.json"
    )
    given = parser.parse_args(arguments)
    if any(number is not None and number < 1 for number in (given.rows, given.threads)):
        parser.error("--rows and --threads are from 1 on")
    given.keys = dict(pair.partition("=")[::2] for pair in given.keys)
    given.work = given.work.resolve()
    # A result that cannot be read is to be known before hours of work.
    result, failed = read_json(given.out), 0
    with tqdm(given.sets or sets_in(given.data), desc="quality", unit="set") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            try:
                result = merge(given.out, measure(name, given))
            except (SetError, OSError, ValueError, csv.Error) as error:
                failed += 1
                bar.write(f"{name}: {error}", file=sys.stderr)
    if result:
        write_whole(given.out.with_suffix(".md"), summary(result) + "\n")
        draw(result, given.out.with_suffix(".png"))
        print(summary(result))
        written = [given.out.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
        print(f"results: {', '.join(map(str, written))}")
    return 1 if failed else 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
