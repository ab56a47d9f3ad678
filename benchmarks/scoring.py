"""What an engine of a cluster costs beside what scoring cannot cost less than.

    make bench-scoring
    make bench-scoring ROWS=20000

The same short rows, of Parquet in a folder, are scored in turn by the classifier called in a loop
over a list, which writes nothing, by `whetstone predict` of this machine, by Ray with one and two
actors and by Spark with one and two executors, one core each. CPU seconds are those of every
process that the command started, the engine's own included, from the start to the end, sampled four
times a second; the workers' own are what the command says. Words a text are as in five public sets.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tqdm import tqdm

from benchmarks.bench_predict import PACKAGE, example_texts
from benchmarks.load import ROOT, machine, process_tree, write_result, write_whole

PACKAGES = ("onnxruntime", "tokenizers", "pyarrow", "ray", "pyspark")
# Words a text at each tenth of the rows: the mean over the test rows of ag_news, banking77,
# go_emotions, sms_spam and sst2.
DECILES = (3, 10, 12, 14, 16, 18, 20, 23, 26, 29, 84)
SEED, FILES, LOOP_ROWS = 0, 16, 4096
SAMPLED_EVERY_SECONDS = 0.25
RAW, LOCAL = "raw loop", "local"
# The way → the options of the command; the raw loop is no command.
WAYS: dict[str, tuple[str, ...]] = {
    RAW: (),
    LOCAL: (),
    "Ray, 1 worker": ("--engine", "ray", "--num_workers", "1"),
    "Ray, 2 workers": ("--engine", "ray", "--num_workers", "2"),
    "Spark, 1 executor": ("--engine", "spark", "--spark_master", "local-cluster[1,1,1024]"),
    "Spark, 2 executors": ("--engine", "spark", "--spark_master", "local-cluster[2,1,1024]"),
}
# The most CPU, as a multiple of the raw loop's, and the least that a second worker gains.
AIMS = {LOCAL: 1.10, "Ray": 1.20, "Spark": 1.30}
AIM_OF_TWO = 1.8
SIZED_ROWS, SIZED_CORES = 10**9, 100
COST = re.compile(r"cost: ([0-9.]+) core-hours")


class Run(NamedTuple):
    """One way of scoring: seconds of CPU and of the clock, and until the first row."""

    cpu_seconds: float
    seconds: float
    first_row_seconds: float | None
    workers_cpu_seconds: float | None


def texts(count: int) -> Iterator[str]:
    """Texts of the example's words, by the same seed at each call."""
    draw = random.Random(SEED)  # noqa: S311 - rows to measure by
    words = " ".join(example_texts()).split()
    for _ in range(count):
        tenth = draw.randrange(len(DECILES) - 1)
        length = draw.randint(DECILES[tenth], DECILES[tenth + 1])
        first = draw.randrange(len(words) - length)
        yield " ".join(words[first : first + length])


def write_rows(folder: Path, count: int) -> None:
    """Rows of an id and a text, as Parquet."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    rows, share = texts(count), -(-count // FILES)
    for number in range(FILES):
        ids = list(range(number * share, min(count, (number + 1) * share)))
        table = pyarrow.table({"id": ids, "text": [next(rows) for _ in ids]})
        parquet.write_table(table, folder / f"{number:03}.parquet")


def raw_loop(folder: Path, package: Path) -> None:
    """The classifier called in a loop over a list."""
    from pyarrow import parquet

    from service.inference.classifier import Classifier

    rows = parquet.read_table(folder, columns=["text"])["text"].to_pylist()
    classifier = Classifier.load(package)
    for first in range(0, len(rows), LOOP_ROWS):
        classifier.classify(rows[first : first + LOOP_ROWS])
        if not first:
            print("first rows", flush=True)


def watch(words: list[str], out: Path | None, log: Path) -> Run:
    """Run a command to its end, and look at all its processes meanwhile."""
    began, first, used = time.monotonic(), None, {}
    with log.open("w", encoding="utf-8") as output:
        command = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, text=True)
        while command.poll() is None:
            time.sleep(SAMPLED_EVERY_SECONDS)
            try:
                tree = process_tree(command.pid)
            except psutil.NoSuchProcess:
                break
            for process in tree:
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                used[process.pid] = times.user + times.system
            if first is None and has_rows(out, log):
                first = time.monotonic() - began
    said = log.read_text("utf-8")
    if command.wait():
        raise SystemExit(f"bench-scoring: {' '.join(words)} failed:\n{said[-2000:]}")
    cost = COST.search(said)
    return Run(
        sum(used.values()),
        time.monotonic() - began,
        first,
        3600 * float(cost[1]) if cost else None,
    )


def has_rows(out: Path | None, log: Path) -> bool:
    """Whether the first rows are scored: of a command, written."""
    if out is None:
        return "first rows" in log.read_text("utf-8")
    return any(out.glob("part-*")) or any(out.parent.glob(f".{out.name}.*.parts/part-*"))


def measure(way: str, rows: Path, package: Path, folder: Path) -> Run:
    """One way, with a result of its own."""
    if way == RAW:
        words = [sys.executable, "-m", "benchmarks.scoring", "--raw_loop", str(rows)]
        return watch([*words, "--package", str(package)], None, folder / "log")
    out = folder / f"{way.replace(', ', '-').replace(' ', '-')}.parquet"
    words = [sys.executable, "-m", "whetstone", "predict", str(package), str(rows)]
    return watch([*words, "--out", str(out), *WAYS[way]], out, folder / "log")


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the documentation, and the line of sizes."""
    count, ways = result["rows"], result["ways"]
    lines = [
        f"| {count:,} rows | rows a CPU-second | times the raw loop | seconds | until the first "
        "row | engine's own share |",
        "|---|---|---|---|---|---|",
    ]
    for way, run in ways.items():
        own = run["workers_cpu_seconds"]
        share = "" if own is None else f"{max(0.0, 1 - own / run['cpu_seconds']):.0%}"
        ratio = run["cpu_seconds"] / ways[RAW]["cpu_seconds"]
        first = "" if run["first_row_seconds"] is None else f"{run['first_row_seconds']:.0f} s"
        lines.append(
            f"| {way} | {count / run['cpu_seconds']:,.0f} | {ratio:.2f} | {run['seconds']:,.0f} | "
            f"{first} | {share} |"
        )
    return "\n".join([*lines, "", gains(ways), "", sizes(result)]) + "\n"


def gains(ways: Mapping[str, Any]) -> str:
    """How much faster two workers are than one, and whether that is what was wanted."""
    pairs = (("Ray, 1 worker", "Ray, 2 workers"), ("Spark, 1 executor", "Spark, 2 executors"))
    found = []
    for one, two in pairs:
        gain = ways[one]["seconds"] / ways[two]["seconds"]
        judged = "met" if gain >= AIM_OF_TWO else "missed"
        found.append(f"{two} {gain:.2f} times as fast as one ({judged})")
    return (
        f"A worker or an executor has one core; the raw loop and `local` use all. Start and end "
        f"included: {', '.join(found)}. At least {AIM_OF_TWO} times was wanted."
    )


def sizes(result: Mapping[str, Any]) -> str:
    """How long a billion such rows take on a hundred cores, as a sentence."""
    found = []
    for way in ("Ray, 2 workers", "Spark, 2 executors"):
        hours = result["ways"][way]["cpu_seconds"] / result["rows"] * SIZED_ROWS / 3600
        engine = way.partition(",")[0]
        found.append(f"{hours:,.0f} core-hours ({hours / SIZED_CORES:,.0f} hours) with {engine}")
    return f"A billion such rows on {SIZED_CORES} such cores: {' and '.join(found)}."


def draw(result: Mapping[str, Any], path: Path) -> None:
    """CPU of each way as a multiple of the raw loop's, with the aims."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import save_figure

    ways = result["ways"]
    ratios = [run["cpu_seconds"] / ways[RAW]["cpu_seconds"] for run in ways.values()]
    figure, axis = pyplot.subplots(figsize=(6.4, 2.8), layout="constrained")
    axis.barh(list(ways), ratios, color="#3b6ea5", height=0.6)
    for place, way in enumerate(ways):
        aim = next((aim for name, aim in AIMS.items() if way.startswith(name)), None)
        if aim is not None:
            axis.plot([aim, aim], [place - 0.4, place + 0.4], color="#c0392b")
    axis.invert_yaxis()
    axis.set_xlabel("CPU, as a multiple of the raw loop's (red: the aim)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="#e3e5e7")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def main() -> None:
    """Write rows, score them each way, write what that cost."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--package", type=Path, default=PACKAGE)
    parser.add_argument("--raw_loop", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scoring.json")
    given = parser.parse_args()
    if given.raw_loop:
        raw_loop(given.raw_loop, given.package)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ways: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as name, tqdm(WAYS, desc="bench-scoring") as bar:
        folder = Path(name)
        write_rows(folder / "rows", given.rows)
        for way in bar:
            ways[way] = measure(way, folder / "rows", given.package, folder)._asdict()
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "rows": given.rows,
        "aims": {**AIMS, "two workers": AIM_OF_TWO},
        "ways": ways,
    }
    write_result(given.out, result)
    write_whole(given.out.with_suffix(".md"), markdown(result))
    draw(result, given.out.with_suffix(".png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
