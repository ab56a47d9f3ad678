"""What a handful of rows a label gives: the defaults beside a regression, TF-IDF and SetFit.

    make bench-few DATA=FOLDER
    python -m benchmarks.few_rows --data FOLDER --sets banking77 --rows 8 --seeds 0 1

FOLDER holds a folder for each set with train.csv and test.csv (columns text,label). Of a set so
many rows of each label are drawn by the seed, and every method gets the same; Whetstone sets its
validation rows aside from them. All are measured on the same sample of the test rows. SetFit pairs
every row with every other one: where that takes longer than a limit it is stopped, and said to be.
What is in the result already is not measured again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.bench_quality import SetError, folder_of, read_json, whetstone, write_recipe
from benchmarks.few_rows_report import draw, summary
from benchmarks.load import ROOT, end_by_signals, machine, write_result, write_whole

SETS = ("banking77", "ag_news", "sms_spam")
ROWS = (4, 8, 16, 64)
SEEDS = (0, 1, 2, 3, 4)
TEST_ROWS = 1000
TEXTS_AT_ONCE = 64
# Of SetFit. Training and answering of the other methods takes minutes.
LIMIT_SECONDS = 600
PACKAGES = ("whetstone", "torch", "transformers", "scikit-learn", "tokenizers")
PEER = ROOT / "benchmarks" / "setfit_peer.py"
PEER_PACKAGES = ROOT / "benchmarks" / "peers" / "setfit.txt"


class Table(NamedTuple):
    """Texts and the label of each."""

    texts: list[str]
    labels: list[str]


class Cell(NamedTuple):
    """What one measurement is of."""

    set: str
    rows: int
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the result."""
        return " / ".join([self.set, str(self.rows), self.method, str(self.seed)])


def read(path: Path) -> Table:
    """A file's texts and labels."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return Table([row["text"] for row in rows], [row["label"] for row in rows])


def write(table: Table, path: Path) -> Path:
    """`table` as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("text", "label"), *zip(*table, strict=True)])
    return path


def draw_training_rows(table: Table, count: int, seed: int) -> Table:
    """`count` rows of each label, or all that it has, in random order."""
    chance = random.Random(f"{count} {seed}")  # noqa: S311 - no secret
    chosen: list[int] = []
    for label in sorted(set(table.labels)):
        places = [row for row, own in enumerate(table.labels) if own == label]
        chosen += chance.sample(places, min(count, len(places)))
    chance.shuffle(chosen)
    return Table([table.texts[row] for row in chosen], [table.labels[row] for row in chosen])


def sample_of_test(table: Table) -> Table:
    """The same TEST_ROWS rows for every method and seed."""
    chosen = random.Random(0).sample(range(len(table.texts)), min(TEST_ROWS, len(table.texts)))  # noqa: S311 - no secret
    return Table([table.texts[row] for row in chosen], [table.labels[row] for row in chosen])


def by_whetstone(train: Path, test: Path, folder: Path) -> list[str]:
    """The answers of the checkpoint that `whetstone train` makes by its defaults."""
    import torch
    from transformers import AutoTokenizer

    from training.finetuning.pooling import load_checkpoint

    recipe = write_recipe("few", test.parent, train, folder)
    whetstone("train", [recipe], folder / "train.log", 1)
    checkpoint = folder / "run" / "checkpoint"
    model, tokenizer = load_checkpoint(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    texts, answers = read(test).texts, []
    reading = {"truncation": True, "max_length": 256, "padding": True, "return_tensors": "pt"}
    with torch.inference_mode():
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            batch = tokenizer(texts[first : first + TEXTS_AT_ONCE], **reading)
            best = model(**batch).logits.argmax(dim=1).tolist()
            answers += [model.config.id2label[label] for label in best]
    return answers


def by_regression(train: Path, test: Path, folder: Path) -> list[str]:
    """Of a regression over the frozen encoder's means; its strength by cross-validation."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from transformers import AutoModel, AutoTokenizer

    from training.finetuning.base_models import embedded_folder

    base = str(embedded_folder())
    model, tokenizer = AutoModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)

    @torch.inference_mode()
    def vectors(texts: Sequence[str]) -> np.ndarray:
        found = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            batch = tokenizer(
                list(texts[first : first + TEXTS_AT_ONCE]),
                truncation=True,
                max_length=256,
                padding=True,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = model(**batch).last_hidden_state
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean).numpy())
        return np.concatenate(found)

    rows = read(train)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": [1, 3, 10, 30, 100]}, cv=min(4, _fewest(rows))
    )
    fitted = search.fit(vectors(rows.texts), rows.labels)
    return [str(label) for label in fitted.predict(vectors(read(test).texts))]


def by_tfidf(train: Path, test: Path, folder: Path) -> list[str]:
    """Of a regression over words and pairs of them; its strength by cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    rows = read(train)
    pipeline = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(max_iter=1000)
    )
    search = GridSearchCV(
        pipeline, {"logisticregression__C": [1, 10, 100]}, cv=min(4, _fewest(rows))
    )
    fitted = search.fit(rows.texts, rows.labels)
    return [str(label) for label in fitted.predict(read(test).texts)]


def _fewest(rows: Table) -> int:
    return min(rows.labels.count(label) for label in set(rows.labels))


def by_setfit(train: Path, test: Path, folder: Path) -> list[str] | None:
    """Of SetFit by its defaults, from the same base; None where it was stopped at the limit.

    Raises:
        SetError: it failed.
    """
    from training.finetuning.base_models import embedded_folder

    python = ROOT / "runs" / "few-setfit" / "bin" / "python"
    answers = folder / "answers.json"
    log = folder / "setfit.log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as handle:
        try:
            status = subprocess.run(
                [python, PEER, embedded_folder(), train, test, answers],
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                timeout=LIMIT_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            return None
    if status:
        raise SetError(f"setfit failed: see {log}")
    found: list[str] = json.loads(answers.read_text("utf-8"))
    return found


def make_setfit_environment() -> None:
    """SetFit in an environment of its own, once; with this one's torch, which is large.

    Raises:
        SetError: it cannot be installed.
    """
    folder = ROOT / "runs" / "few-setfit"
    if (folder / ".installed").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    import torch

    words = [sys.executable, "-m", "venv", folder]
    pinned = f"torch=={torch.__version__.partition('+')[0]}"
    install = [folder / "bin" / "pip", "install", "--quiet", pinned, "-r", PEER_PACKAGES]
    for command in (words, install):
        if subprocess.run(command, check=False).returncode:
            raise SetError("setfit cannot be installed: see above; --methods leaves it out")
    (folder / ".installed").touch()


METHODS: dict[str, Callable[[Path, Path, Path], list[str] | None]] = {
    "whetstone": by_whetstone,
    "regression": by_regression,
    "tfidf": by_tfidf,
    "setfit": by_setfit,
}


def measure(cell: Cell, data: Path, work: Path) -> dict[str, Any]:
    """The entry of one cell.

    Raises:
        SetError, OSError: it cannot be measured.
    """
    source = folder_of(cell.set, data)
    folder = work / cell.set / f"{cell.rows}-{cell.seed}" / cell.method
    shutil.rmtree(folder, ignore_errors=True)
    rows = draw_training_rows(read(source / "train.csv"), cell.rows, cell.seed)
    sample = sample_of_test(read(source / "test.csv"))
    train = write(rows, folder / "train.csv")
    test = write(sample, folder / "test.csv")
    began, before = time.monotonic(), _cpu_seconds()
    answers = METHODS[cell.method](train, test, folder)
    spent = _cpu_seconds() - before
    accuracy = None
    if answers is not None:
        accuracy = sum(map(str.__eq__, answers, sample.labels)) / len(sample.texts)
    record = read_json(folder / "run" / "training.json")
    shutil.rmtree(folder / "run", ignore_errors=True)
    return {
        **cell._asdict(),
        # None where it was stopped at the limit.
        "accuracy": accuracy,
        "training_rows": len(rows.texts),
        "test_rows": len(sample.texts),
        # With the answers to the test rows.
        "cpu_seconds": round(spent, 1),
        "seconds": round(time.monotonic() - began, 1),
        **({"kept_step": record["kept_step"]} if record else {}),
        "machine": machine(PACKAGES),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def was_stopped(cell: Cell, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether another seed of the same took longer than the limit: this one would, too."""
    return any(
        entry["accuracy"] is None
        for entry in entries.values()
        if (entry["set"], entry["rows"], entry["method"]) == cell[:3]
    )


def _cpu_seconds() -> float:
    """Of this process and those that it has started and that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def make_parser(
    description: str | None, work: str, out: str, *, rows: Sequence[int], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """The options of a benchmark with few rows of public sets, and its defaults.

    Args:
        work: the name of the folder below `runs/`.
        out: the file name of the result.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(rows), help="of each label")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / work)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / out)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure the cells that the result lacks; 1 where one of them failed."""
    parser = make_parser(__doc__, "few", "few_rows.json", rows=ROWS, seeds=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args(arguments)
    if min(given.rows) < 2:
        parser.error("--rows are from 2 on: one is set aside")
    entries: dict[str, Mapping[str, Any]] = read_json(given.out).get("entries", {})
    # Every seed of all before the next: an interrupted run has something of everything.
    wanted = [
        Cell(name, rows, method, seed)
        for seed in given.seeds
        for rows in given.rows
        for name in given.sets
        for method in given.methods
    ]
    failed = 0
    with tqdm([cell for cell in wanted if cell.key not in entries], unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            # Read each time: another process may measure other sets into the same result.
            entries = read_json(given.out).get("entries", {})
            if cell.key in entries or was_stopped(cell, entries):
                continue
            try:
                if cell.method == "setfit":
                    make_setfit_environment()
                found = measure(cell, given.data, given.work.resolve())
            except (SetError, OSError) as error:
                failed += 1
                bar.write(f"{cell.key}: {error}", file=sys.stderr)
                continue
            entries = read_json(given.out).get("entries", {}) | {cell.key: found}
            write_result(given.out, {"entries": dict(sorted(entries.items()))})
    if entries:
        write_whole(given.out.with_suffix(".md"), summary(entries) + "\n")
        draw(entries, given.out.with_suffix(".png"))
        print(summary(entries))
    return 1 if failed else 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
