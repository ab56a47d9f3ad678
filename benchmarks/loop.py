"""How many rows `collect` saves: what it picks to label, beside rows picked at random.

    make bench-loop DATA=FOLDER
    python -m benchmarks.loop --data FOLDER --sets banking77 --rounds 5

FOLDER holds a folder for each set with train.csv and test.csv (columns text,label, or text,labels
joined by `|`). A tenth of the training rows is labeled at first. Each round trains on what is
labeled, by the defaults. Then a server of that package is asked for all other texts and keeps them,
`whetstone collect` picks some, and the file's own labels come back through `whetstone collect
--labeled`. The other arm labels as many rows at random. Both start from the same rows, and are
measured on the whole test file. What is in the result already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from benchmarks.bench_quality import SetError, folder_of, read_json, whetstone
from benchmarks.load import (
    ROOT,
    drive,
    end_by_signals,
    machine,
    post,
    whetstone_server,
    write_result,
    write_whole,
)
from benchmarks.loop_report import ARMS, draw, summary

SETS = ("banking77", "go_emotions")
PACKAGES = ("whetstone", "torch", "transformers", "onnxruntime", "scikit-learn")
SEPARATOR = "|"
START = 0.1
SHARE = 0.05
ROUNDS = 5
# Of a larger training file a sample: the trainings take nearly all of the time.
MOST_ROWS = 10_000
# A team that starts has seen some of every label.
ROWS_OF_A_LABEL = 4
TEXTS_OF_A_REQUEST = 16
CONNECTIONS = 8


class Row(NamedTuple):
    """A text, and its labels as the cell of a file."""

    text: str
    label: str


def read(path: Path) -> list[Row]:
    """The different texts of a file, each with its first labels."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    column = "labels" if rows and "labels" in rows[0] else "label"
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(row["text"].strip(), row[column])
    return [Row(text, label) for text, label in found.items() if text and label]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """A training file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([Row._fields, *rows])
    return path


def first_rows(pool: Sequence[Row], count: int) -> list[Row]:
    """`count` rows of a shuffled pool: a few of each label, and then the next ones."""
    seen: dict[str, int] = {}
    chosen: dict[Row, None] = {}
    for row in pool:
        labels = row.label.split(SEPARATOR)
        if any(seen.get(label, 0) < ROWS_OF_A_LABEL for label in labels):
            chosen[row] = None
            for label in labels:
                seen[label] = seen.get(label, 0) + 1
    for row in pool:
        if len(chosen) >= count:
            break
        chosen[row] = None
    return list(chosen)


def train(train_file: Path, test_file: Path, folder: Path) -> dict[str, Any]:
    """Train on a file by the defaults, export and evaluate; the metrics on the test file.

    Raises:
        SetError: a command failed.
    """
    keys: dict[str, Any] = {
        "name": "loop",
        "train_file": str(train_file),
        "output_dir": str(folder / "run"),
        # Nothing is served faster here by a smaller model, and its gates cost time.
        "precision": "fp32",
    }
    if any(SEPARATOR in row.label for row in read(test_file)):
        keys["label_separator"] = SEPARATOR
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys), "utf-8")
    whetstone("train", [recipe], folder / "train.log", 1)
    whetstone("export", [recipe], folder / "export.log", 1)
    words = [folder / "run" / "package", test_file, "--output_dir", folder / "evaluation"]
    whetstone("evaluate", words, folder / "evaluate.log", 1)
    metrics = read_json(folder / "evaluation" / "metrics.json")
    return {key: metrics[key] for key in ("macro_f1", "accuracy")}


def serve(package: Path, texts: Sequence[str], captured: Path, home: Path) -> None:
    """Ask a server of a package for all texts; it keeps its answers in `captured`.

    Raises:
        SetError: a request failed.
    """
    settings = {"WHETSTONE_CAPTURE": str(captured), "WHETSTONE_CAPTURE_TEXT": "1"}
    starts = range(0, len(texts), TEXTS_OF_A_REQUEST)
    parts = [texts[start : start + TEXTS_OF_A_REQUEST] for start in starts]
    requests = [post("/classify", json.dumps({"input": part}).encode()) for part in parts]
    with whetstone_server(package, home, settings) as (port, _):
        load = drive(port, requests, CONNECTIONS)
    if load.statuses[200] != len(requests):
        raise SetError(f"of {len(requests)} requests these were answered: {dict(load.statuses)}")


def collect(package: Path, rest: Sequence[Row], train_file: Path, count: int, folder: Path) -> None:
    """Add rows that `whetstone collect` picks from served texts to a training file.

    Raises:
        SetError: a command failed.
    """
    captured, picks = folder / "captured", folder / "picks.csv"
    # Of a run that was interrupted here.
    shutil.rmtree(captured, ignore_errors=True)
    picks.unlink(missing_ok=True)
    serve(package, [row.text for row in rest], captured, folder / "bentoml")
    own: list[str | Path] = [package, captured]
    wanted = ["--rows", str(count), "--out", picks]
    whetstone("collect", [*own, *wanted], folder / "collect.log", 1)
    truth = dict(rest)
    with picks.open(newline="", encoding="utf-8") as handle:
        picked = list(csv.DictReader(handle))
    for row in picked:
        row["label"] = truth[row["text"]]
    with picks.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, picked[0])
        writer.writeheader()
        writer.writerows(picked)
    words = [*own, "--labeled", picks, "--into", train_file]
    whetstone("collect", words, folder / "labeled.log", 1)
    shutil.rmtree(captured)


def label_more(
    arm: str, before: Path, train_file: Path, pool: Sequence[Row], count: int, seed: int
) -> None:
    """Write the training file of the next round from the round `before`.

    Raises:
        SetError: a command failed.
    """
    labeled = read(before / "train.csv")
    known = {row.text for row in labeled}
    rest = [row for row in pool if row.text not in known]
    if arm == "collect":
        train_file.unlink(missing_ok=True)
        write(train_file, labeled)
        collect(before / "run" / "package", rest, train_file, count, before)
    else:
        chance = random.Random(f"{seed} {before}")  # noqa: S311 - no secret
        write(train_file, [*labeled, *chance.sample(rest, min(count, len(rest)))])


def measure(name: str, seed: int, given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Run both arms of a set; yields each arm and round when its entry is written.

    Raises:
        SetError, OSError, ValueError: it cannot be measured.
    """
    source, work = folder_of(name, given.data), given.work / name / str(seed)
    pool = read(source / "train.csv")
    random.Random(seed).shuffle(pool)  # noqa: S311 - no secret
    pool = pool[:MOST_ROWS]
    test_file = write(work / "test.csv", read(source / "test.csv"))
    start = first_rows(pool, round(START * len(pool)))
    for number in range(given.rounds + 1):
        for arm in ARMS:
            # Both start with the same training.
            folder = work / ("start" if number == 0 else f"{arm}-{number}")
            key = f"{name} / {seed} / {arm} / {number}"
            entries = read_json(given.out).get("entries", {})
            if key not in entries:
                folder.mkdir(parents=True, exist_ok=True)
                train_file = folder / "train.csv"
                if number == 0:
                    write(train_file, start)
                else:
                    before = work / ("start" if number == 1 else f"{arm}-{number - 1}")
                    count = round(SHARE * len(pool))
                    label_more(arm, before, train_file, pool, count, seed)
                first = entries.get(f"{name} / {seed} / {ARMS[0]} / 0") if number == 0 else None
                found = first or {
                    "set": name,
                    "seed": seed,
                    "round": number,
                    "rows": len(read(train_file)),
                    "pool": len(pool),
                    "test_rows": len(read(test_file)),
                    **train(train_file, test_file, folder),
                    "machine": machine(PACKAGES),
                    "made": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                # Read again: another process may have measured another set meanwhile.
                entries = read_json(given.out).get("entries", {}) | {key: {**found, "arm": arm}}
                write_result(given.out, {"entries": dict(sorted(entries.items()))})
            yield arm, number


def main(arguments: list[str] | None = None) -> int:
    """Measure what the result lacks; 1 where a set failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the rows' order")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "loop")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "loop.json")
    given = parser.parse_args(arguments)
    given.work = given.work.resolve()
    failed = 0
    total = len(given.seeds) * len(given.sets) * len(ARMS) * (given.rounds + 1)
    with tqdm(total=total, desc="loop", unit="training") as bar:
        for seed in given.seeds:
            for name in given.sets:
                try:
                    for arm, number in measure(name, seed, given):
                        bar.set_postfix_str(f"{name}, {arm}, round {number}")
                        bar.update()
                except (SetError, OSError, ValueError) as error:
                    failed += 1
                    bar.write(f"{name}: {error}", file=sys.stderr)
    result: Mapping[str, Any] = read_json(given.out)
    if result:
        write_whole(given.out.with_suffix(".md"), summary(result["entries"]) + "\n")
        draw(result["entries"], given.out.with_suffix(".png"))
        print(summary(result["entries"]))
        written = [given.out.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
        print(f"results: {', '.join(map(str, written))}")
    return 1 if failed else 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
