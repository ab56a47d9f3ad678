"""What scoring a file costs beside what it cannot cost less than.

    make bench-predict

The same rows, scored three ways, each in a process of its own, one after another in every round:
`whetstone predict` from a file to a file; the raw loop, which tokenizes the texts, sorts all of
them by length and runs the same graph batch by batch, in one thread, and writes nothing; and a
transformers `pipeline` over `datasets` with the checkpoint that the package was made from. CPU
seconds of all threads, without imports and loading. Short rows are the example's; mixed ones are
made of them, up to some twenty together.

Memory is measured with a model that computes nothing, as five million rows through a real one
would take this machine half a day: the most that the process ever held, by rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result

PACKAGE = ROOT / "runs" / "bench" / "package"
CHECKPOINT = ROOT / "runs" / "bench" / "checkpoint"
EXAMPLE = ROOT / "examples" / "support_tickets"
PACKAGES = ("onnxruntime", "tokenizers", "pyarrow", "transformers", "torch", "datasets")
WAYS = ("whetstone", "raw loop", "pipeline")
AIM = 1.08
MOST_JOINED = 20


def example_texts() -> list[str]:
    """The example's texts."""
    found = []
    for name in ("train", "test"):
        with (EXAMPLE / f"{name}.csv").open(newline="", encoding="utf-8") as handle:
            found += [row["text"] for row in csv.DictReader(handle)]
    return found


def write_rows(path: Path, count: int, mixed: bool) -> None:
    """Rows of an id and a text; mixed ones of any length."""
    texts, draw = example_texts(), random.Random(0)  # noqa: S311 - rows to measure by
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["id", "text"])
        for number in range(count):
            joined = min(MOST_JOINED, int(draw.paretovariate(1.0))) if mixed else 1
            writer.writerow([number, " ".join(draw.choice(texts) for _ in range(joined))])


def texts_of(path: Path) -> list[str]:
    """The texts of written rows."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [row["text"] for row in csv.DictReader(handle)]


def whetstone(path: Path) -> Callable[[], object]:
    """Ours, from a file to a file."""
    from service.inference.classifier import Classifier
    from training.recipe.arguments import DataArguments
    from training.scoring.predict import predict

    classifier = Classifier.load(PACKAGE)
    return lambda: predict(classifier, path, path.with_suffix(".out.csv"), DataArguments())


def raw_loop(path: Path) -> Callable[[], object]:
    """The tokenizer and the graph, by nothing but their own libraries."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))
    tokenizer.no_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(PACKAGE / "model.onnx"), options)
    names = [node.name for node in session.get_inputs()]
    texts = texts_of(path)

    def run() -> None:
        encoded = sorted(tokenizer.encode_batch_fast(texts), key=len, reverse=True)
        first = 0
        while first < len(encoded):
            length = len(encoded[first])
            batch = encoded[first : first + max(1, min(32, 4096 // length))]
            shape = (len(batch), length)
            feed = {name: np.zeros(shape, dtype=np.int64) for name in names}
            for row, one in enumerate(batch):
                feed["input_ids"][row, : len(one)] = one.ids
                feed["attention_mask"][row, : len(one)] = 1
            session.run(["logits"], feed)[0].argmax(axis=1)
            first += len(batch)

    return run


def pipeline(path: Path) -> Callable[[], object]:
    """transformers' own way, as its documentation shows it for a data set."""
    from datasets import Dataset
    from transformers import pipeline as make_pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    rows = Dataset.from_dict({"text": texts_of(path)})
    model = make_pipeline("text-classification", str(CHECKPOINT), device="cpu")
    options = {"batch_size": 32, "truncation": True, "max_length": 512}
    return lambda: list(model(KeyDataset(rows, "text"), **options))


def nothing_computed(path: Path) -> Callable[[], object]:
    """Ours, with a model that answers zeros."""
    from service.inference.classifier import Classifier
    from training.recipe.arguments import DataArguments
    from training.scoring.predict import predict

    classifier = Classifier.load(PACKAGE)
    labels = len(classifier.manifest.labels)
    classifier.logits = lambda windows: np.zeros((len(windows), labels), np.float32)  # type: ignore[method-assign]
    return lambda: predict(classifier, path, path.with_suffix(".out.csv"), DataArguments())


def measure(way: str, path: Path) -> dict[str, float]:
    """CPU and wall seconds of one way, and the most memory this process ever held, in MB."""
    made = {
        "whetstone": whetstone,
        "raw loop": raw_loop,
        "pipeline": pipeline,
        "memory": nothing_computed,
    }[way](path)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    made()
    return {
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.monotonic() - began,
        "loaded_mb": loaded / 1024,
        "most_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_own_process(way: str, path: Path) -> dict[str, float]:
    """The same, in a process that does nothing else."""
    words = [sys.executable, "-m", "benchmarks.bench_predict", "--measure", way, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"bench_predict: {way} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(path: Path, rows: int, rounds: int, bar: tqdm[Any]) -> dict[str, Any]:
    """CPU milliseconds a row of each way, and its ratio to the raw loop of the same round."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(in_own_process(way, path))
            bar.update()
    found = {}
    for way, measured in runs.items():
        ratios = [
            one["cpu_seconds"] / raw["cpu_seconds"]
            for one, raw in zip(measured, runs["raw loop"], strict=True)
        ]
        found[way] = {
            "cpu_milliseconds_a_row": 1000
            * statistics.median(one["cpu_seconds"] for one in measured)
            / rows,
            "seconds": statistics.median(one["seconds"] for one in measured),
            "ratio_to_raw_loop": statistics.median(ratios),
            "ratios": ratios,
            "most_mb": max(one["most_mb"] for one in measured),
        }
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables for the README."""
    lines: list[str] = []
    if result["cpu"]:
        lines = [
            "| rows | way | CPU-ms a row | times the raw loop | seconds | most memory, MB |",
            "|---|---|---|---|---|---|",
        ]
    for kind, found in result["cpu"].items():
        for way in WAYS:
            one = found["ways"][way]
            lines.append(
                f"| {found['rows']:,} {kind} | {way} | {one['cpu_milliseconds_a_row']:.2f} | "
                f"{one['ratio_to_raw_loop']:.2f} | {one['seconds']:.1f} | {one['most_mb']:.0f} |"
            )
    lines += ["", "| rows | most memory, MB | CPU-µs a row |", "|---|---|---|"]
    for one in result["memory"]:
        micro = 1e6 * one["cpu_seconds"] / one["rows"]
        lines.append(f"| {one['rows']:,} | {one['most_mb']:.0f} | {micro:.0f} |")
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    """Write rows, score them each way, write what that cost."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=4000, help="short ones; of mixed a quarter; 0: memory alone"
    )
    parser.add_argument(
        "--memory_rows", type=int, nargs="*", default=[100_000, 1_000_000, 5_000_000]
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "predict.json"
    )
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], Path(given.measure[1]))))
        return
    result: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "rounds": given.rounds,
        "aim": AIM,
        "cpu": {},
        "memory": [],
    }
    total = (2 * given.rounds * len(WAYS) if given.rows else 0) + len(given.memory_rows)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, desc="bench-predict") as bar:
        kinds = {"short": given.rows, "mixed": given.rows // 4} if given.rows else {}
        for kind, count in kinds.items():
            path = Path(folder) / f"{kind}.csv"
            write_rows(path, count, kind == "mixed")
            ways = compare(path, count, given.rounds, bar)
            result["cpu"][kind] = {"rows": count, "ways": ways}
        for count in given.memory_rows:
            path = Path(folder) / "many.csv"
            write_rows(path, count, mixed=False)
            result["memory"].append({"rows": count, **in_own_process("memory", path)})
            bar.update()
    write_result(given.out, result)
    given.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    print(f"written: {given.out}, {given.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
