"""Small models of public sets for `benchmarks.explain`, each trained once and then kept."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_quality import draw_rows, folder_of, whetstone, write_recipe

# A share of each set, and few epochs: what is measured is how well answers are explained.
ROWS = {"sms_spam": 1500, "sst2": 2000, "banking77": 3000}
KEYS = ("--num_train_epochs=3", "--max_length=128")


def package_of(name: str, data: Path, work: Path, threads: int | None = None) -> Path:
    """The package of a set; what is trained or exported already is kept.

    Raises:
        SetError: its files are not there, or a verb failed.
        OSError, ValueError, csv.Error: its files cannot be read.
    """
    source, folder = folder_of(name, data), work / name
    train_file = folder / "train.csv"
    if not train_file.is_file() and not draw_rows(source / "train.csv", train_file, ROWS[name]):
        train_file = source / "train.csv"
    recipe = write_recipe(name, source, train_file, folder)
    package = folder / "run" / "package"
    for verb, made in (("train", folder / "trained"), ("export", package / "manifest.json")):
        if not made.is_file():
            whetstone(verb, [recipe, *KEYS], folder / f"{verb}.log", threads)
            made.touch()
    return package
