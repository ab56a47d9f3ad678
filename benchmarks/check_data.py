"""How long `whetstone check`, and the split in it, take on many short rows, and how much memory.

python benchmarks/check_data.py --rows 1000000 --out benchmarks/check_data.json
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training.data.dataset import read_rows, usable_data
from training.data.findings import find_errors
from training.recipe.arguments import DataArguments

LABELS = [f"label_{number}" for number in range(8)]
PACKAGES = ("whetstone", "datasets", "tokenizers", "rensa", "numpy")
SHOWN_FINDINGS = ("duplicate_rows", "conflicting_labels", "near_duplicates")


def main() -> None:
    """Write the rows, check them in a process of its own, write what that cost."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whetstone-") as folder:
        train_file, findings = Path(folder) / "train.csv", Path(folder) / "findings.json"
        write_rows(train_file, arguments.rows)
        command = [sys.executable, "-m", "whetstone", "check", "--train_file", str(train_file)]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path(folder) / "cache")}
        started = time.monotonic()
        subprocess.run(
            [*command, "--json", str(findings)],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - started
        found = json.loads(findings.read_text("utf-8"))["findings"]
        split_seconds = measure_split(train_file)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    results = {
        "rows": arguments.rows,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "split_cpu_seconds": round(split_seconds, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "findings": {f["code"]: f["count"] for f in found if f["code"] in SHOWN_FINDINGS},
        **machine(),
    }
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def write_rows(path: Path, count: int) -> None:
    """Rows of 8 to 14 invented words; one in fifty repeats another, one in fifty nearly so."""
    chosen = random.Random(0)  # noqa: S311 - not a secret
    words = [
        "".join(chosen.choices("abcdefghilmnoprstu", k=k)) for k in (3, 4, 5) for _ in range(900)
    ]
    texts: list[str] = []
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        for row in range(count):
            text = " ".join(chosen.choices(words, k=chosen.randint(8, 14)))
            if row % 50 == 1:
                text = texts[chosen.randrange(len(texts))]
            elif row % 50 == 2:
                text = texts[chosen.randrange(len(texts))] + " x"
            if len(texts) < 100_000:
                texts.append(text)
            writer.writerow([text, chosen.choice(LABELS)])


def measure_split(train_file: Path) -> float:
    """CPU-seconds that setting validation rows aside takes, near-duplicates and all."""
    arguments = DataArguments(train_file=str(train_file))
    rows = read_rows(arguments)
    errors = find_errors(rows)
    started = time.process_time()
    usable_data(rows, errors, arguments, seed=0)
    return time.process_time() - started


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
