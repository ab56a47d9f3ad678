"""What `whetstone compare` says of challengers whose worth is known, on public data.

    python -m benchmarks.champions --data FOLDER

FOLDER holds `banking77` and `sms_spam`, each with train.csv and test.csv (columns text, label). Of
each a champion is trained for two epochs, a challenger as the defaults have it, and one on labels
that were dealt out at random. What is trained or exported already in the work folder is kept, so an
interrupted run goes on. On two cores: an hour.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result

SETS = ("sms_spam", "banking77")
# Run folder and keys of each training. Random labels teach nothing, however long.
TRAININGS = {
    "two-epochs": ["--num_train_epochs", "2"],
    "full": [],
    "shuffled": ["--num_train_epochs", "2"],
}
# Package, its training and its precision.
PACKAGES = {
    "two-epochs": ("two-epochs", "fp32"),
    "full": ("full", "fp32"),
    "shuffled": ("shuffled", "fp32"),
    "int8": ("full", "int8"),
}
# What is said of it, champion and challenger.
COMPARISONS = (
    ("two epochs; the defaults", "two-epochs", "full"),
    ("the defaults; two epochs", "full", "two-epochs"),
    ("the defaults; the same package", "full", "full"),
    ("the defaults; its int8", "full", "int8"),
    ("the defaults; trained on labels dealt out at random", "full", "shuffled"),
)
VERDICTS = {0: "promote", 3: "refuse", 4: "inconclusive"}


def whetstone(*words: str | Path) -> int:
    """Run a verb; its status, if that is one of a verdict.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "whetstone", *map(str, words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode not in VERDICTS:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.returncode


def shuffle_labels(source: Path, target: Path) -> None:
    """The rows of `source` with their labels dealt out at random."""
    with source.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)  # noqa: S311 - no secret
    with target.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["text", "label"])
        writer.writeheader()
        writer.writerows(
            {"text": row["text"], "label": label} for row, label in zip(rows, labels, strict=True)
        )


def make_packages(name: str, data: Path, work: Path) -> None:
    """Train and export what is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    shuffle_labels(data / "train.csv", work / "shuffled.csv")
    recipe = ROOT / "examples" / name / "recipe.yaml"
    for package, (training, precision) in tqdm(PACKAGES.items(), desc=name, unit="package"):
        if (work / "packages" / package / "manifest.json").exists():
            continue
        train_file = work / "shuffled.csv" if training == "shuffled" else data / "train.csv"
        keys = ["--train_file", train_file, "--test_file", data / "test.csv", *TRAININGS[training]]
        keys += ["--precision", precision, "--output_dir", work / training]
        whetstone("train", recipe, *keys)
        whetstone("export", recipe, *keys)
        (work / "packages").mkdir(exist_ok=True)
        shutil.move(work / training / "package", work / "packages" / package)


def compare(name: str, data: Path, work: Path) -> list[dict[str, Any]]:
    """Every comparison as a line of the table."""
    lines = []
    for what, champion, challenger in COMPARISONS:
        folder = work / "comparisons" / f"{champion}-{challenger}"
        packages = [work / "packages" / side for side in (champion, challenger)]
        options = ["--data", data / "test.csv", "--output_dir", folder]
        status = whetstone("compare", *packages, *options)
        found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        lines.append(
            {
                "data": name,
                "comparison": what,
                "verdict": found["verdict"],
                "exit_status": status,
                "rows": found["data"]["rows"],
                "macro_f1": found["differences"]["macro_f1"],
                "accuracy": found["differences"]["accuracy"],
                "mcnemar": found["mcnemar"],
                "flips": found["flips"],
                "reasons": found["reasons"],
                "rows_it_was_made_with": found["challenger"]["rows_it_was_made_with"],
            }
        )
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the README."""
    lines = [
        "| data, rows | champion; challenger | verdict | macro-F1 | difference, 95 % interval | "
        "only one right |",
        "|---|---|---|---|---|---|",
    ]
    for one in result["comparisons"]:
        macro, changed = one["macro_f1"], one["mcnemar"]
        difference = (
            f"{macro['point']:+.3f} ({macro['low']:+.3f} to {macro['high']:+.3f})"
            if macro["low"] or macro["high"]
            else "0"
        )
        cells = [
            f"`{one['data']}`, {one['rows']:,}",
            one["comparison"],
            one["verdict"],
            f"{macro['before']:.3f}, {macro['after']:.3f}",
            difference,
            f"{changed['only_champion_right']:,}, {changed['only_challenger_right']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, export, compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/champions")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/champions.json")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for name in arguments.sets:
        make_packages(name, arguments.data.resolve() / name, arguments.work / name)
        lines += compare(name, arguments.data.resolve() / name, arguments.work / name)
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "comparisons": lines,
    }
    print(markdown(result))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
