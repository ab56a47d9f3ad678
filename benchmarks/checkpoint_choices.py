"""Which weights to ship where rows are few: five choices, on rows that no test file has.

    make bench-choices DATA=FOLDER
    python -m benchmarks.checkpoint_choices --data FOLDER --sets banking77 --rows 8 --seeds 0 1

FOLDER holds a folder for each set with train.csv (columns text,label). Of each label so many rows
are drawn by the seed, and HELD_OUT_ROWS others are held out: the choices are compared on these.

A cell is three trainings. Two have the same training rows and the same seed, and so the same
weights after each epoch. One of them is evaluated on the few validation rows, as users have them,
the other on the rows held out: for every choice that the first suggests, the second says what it is
worth. The third is trained on the validation rows, too. What is in the result already is not
measured again.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks.bench_quality import SetError, folder_of, read_json, whetstone
from benchmarks.few_rows import PACKAGES, Table, make_parser, read, write
from benchmarks.few_rows_report import mean_and_spread
from benchmarks.load import end_by_signals, machine, write_result
from training.data.validation_share import validation_share
from training.finetuning.checkpoint_choice import Evaluation, choose_step

ROWS = (8,)
SEEDS = (0, 1, 2)
HELD_OUT_ROWS = 1000
TITLES = {
    "regression": "regression alone (epoch 0)",
    "best": "best epoch on validation",
    "kept": "last, or surely better",
    "last": "last epoch",
    "all_rows": "last epoch, of all rows",
}
# Both change the weights by the validation rows: here only the choice may.
KEYS = {"train_on_all_rows": False, "early_stopping_patience": 0}


def draw(rows: Table, count: int, seed: int) -> dict[str, Table]:
    """`count` rows of each label, some of them for validation, and rows that are held out."""
    chance = random.Random(f"choices {count} {seed}")  # noqa: S311 - no secret
    places = list(range(len(rows.texts)))
    chance.shuffle(places)
    taken = dict.fromkeys(sorted(set(rows.labels)), 0)
    drawn, others = [], []
    for place in places:
        taken[rows.labels[place]] += 1
        (drawn if taken[rows.labels[place]] <= count else others).append(place)
    chance.shuffle(drawn)
    aside = round(validation_share(len(drawn)).value * len(drawn))
    parts = {
        "validation": drawn[:aside],
        "train": drawn[aside:],
        "all": drawn,
        "held_out": others[:HELD_OUT_ROWS],
    }
    return {
        part: Table([rows.texts[place] for place in own], [rows.labels[place] for place in own])
        for part, own in parts.items()
    }


def train(folder: Path, name: str, train_part: str, validation_part: str) -> dict[str, Any]:
    """The record of a training with two of the files in `folder`.

    Raises:
        SetError: it failed.
    """
    recipe = folder / f"{name}.yaml"
    files = {"train_file": train_part, "validation_file": validation_part}
    keys = {key: str(folder / f"{part}.csv") for key, part in files.items()}
    keys |= {"name": name, "output_dir": str(folder / name)}
    recipe.write_text(yaml.safe_dump(keys | KEYS), "utf-8")
    whetstone("train", [recipe], folder / f"{name}.log", 1)
    record = read_json(folder / name / "training.json")
    shutil.rmtree(folder / name)
    return record


def measure(name: str, rows: int, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """The entry of one cell: the accuracy of each choice on the rows held out.

    Raises:
        SetError, OSError: it cannot be measured.
    """
    folder = work / name / f"{rows}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    parts = draw(read(folder_of(name, data) / "train.csv"), rows, seed)
    for part, own in parts.items():
        write(own, folder / f"{part}.csv")
    seen = train(folder, "seen", "train", "validation")
    worth = train(folder, "worth", "train", "held_out")
    whole = train(folder, "whole", "all", "held_out")
    if seen["max_length"] != worth["max_length"]:
        raise SetError(f"{name}: the two trainings cut texts at different lengths")
    accuracy = choose(
        seen["evaluations"],
        {each["step"]: each["accuracy"] for each in worth["evaluations"]},
        len(parts["validation"].texts),
    )
    return {
        "set": name,
        "rows": rows,
        "seed": seed,
        "parts": {part: len(own.texts) for part, own in parts.items()},
        "accuracy": accuracy | {"all_rows": whole["evaluations"][-1]["accuracy"]},
        "machine": machine(PACKAGES),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def choose(
    seen: Sequence[Mapping[str, float]], worth: Mapping[int, float], rows: int
) -> dict[str, float]:
    """What each choice is worth.

    Args:
        seen: evaluations on the validation rows.
        worth: by step, the accuracy on the rows held out.
        rows: the number of validation rows.
    """
    scores = [Evaluation(int(each["step"]), each["macro_f1"]) for each in seen]
    steps = {
        "regression": scores[0].step,
        "best": max(scores, key=lambda each: each.score).step,
        "kept": choose_step(scores, rows, greater=True),
        "last": scores[-1].step,
    }
    return {choice: worth[step] for choice, step in steps.items()}


def markdown(result: Mapping[str, Any]) -> str:
    """A line for each set and number of rows: means over seeds, with standard deviations."""
    found: dict[tuple[str, int], list[Any]] = {}
    for entry in result["entries"].values():
        found.setdefault((entry["set"], entry["rows"]), []).append(entry)
    head = ("set", "rows a label", "seeds", *TITLES.values())
    lines = [f"| {' | '.join(head)} |", f"{'|---' * len(head)}|"]
    for (name, rows), entries in sorted(found.items()):
        cells = [
            mean_and_spread([entry["accuracy"][choice] for entry in entries]) for choice in TITLES
        ]
        lines.append(f"| `{name}` | {rows} | {len(entries)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the cells that the result lacks; 1 where one of them failed."""
    parser = make_parser(__doc__, "choices", "choices.json", rows=ROWS, seeds=SEEDS)
    given = parser.parse_args(arguments)
    if min(given.rows) < 2:
        parser.error("--rows are from 2 on: one is set aside")
    entries: dict[str, Any] = read_json(given.out).get("entries", {})
    wanted = {
        f"{name} / {rows} / {seed}": (name, rows, seed)
        for seed in given.seeds
        for rows in given.rows
        for name in given.sets
    }
    failed = 0
    with tqdm([key for key in wanted if key not in entries], unit="cell") as bar:
        for key in bar:
            bar.set_postfix_str(key)
            # Read each time: another process may measure other cells into the same result.
            if key in read_json(given.out).get("entries", {}):
                continue
            try:
                found = measure(*wanted[key], given.data, given.work.resolve())
            except (SetError, OSError) as error:
                failed += 1
                bar.write(f"{key}: {error}", file=sys.stderr)
                continue
            entries = read_json(given.out).get("entries", {}) | {key: found}
            write_result(given.out, {"entries": dict(sorted(entries.items()))})
    if entries:
        print(markdown({"entries": entries}))
    return 1 if failed else 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
