"""The project's own files agree with each other, and the documentation's figures are measured."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from setuptools import find_packages

from benchmarks import (
    bench_kills,
    bench_predict,
    bench_soak,
    bench_threads,
    bench_train,
    champions,
    checkpoint_choices,
    optimism,
    promises,
    quality_report,
    scale,
    scoring,
    serve_report,
    sizing,
)
from service.metrics import metrics_table
from service.settings import settings_table
from tests.conftest import EXAMPLE, ROOT
from tests.documentation import text_of_pages
from training.recipe.load import load_recipe

SERVING = ROOT / "service" / "requirements.txt"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins(path: Path) -> dict[str, str]:
    """`name==version` lines, names as the package index writes them."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, f"{path.name}: {line} is not pinned"
            found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def test_serving_pins_are_the_projects_pins() -> None:
    everything = pins(ROOT / "constraints.txt")
    for name, version in pins(SERVING).items():
        assert everything.get(name) == version, name


def test_every_extra_and_group_is_pinned() -> None:
    everything = pins(ROOT / "constraints.txt")
    extras = PYPROJECT["project"]["optional-dependencies"]
    for requirements in (*extras.values(), *PYPROJECT["dependency-groups"].values()):
        for requirement in requirements:
            name = re.split(r"[\[<>= ]", requirement)[0]
            assert re.sub(r"[-_.]+", "-", name).lower() in everything


def test_serving_installs_no_training_package() -> None:
    training = {"torch", "transformers", "datasets", "optimum", "optimum-onnx", "scikit-learn"}
    assert not training & set(pins(SERVING))


def test_both_builds_read_the_one_list() -> None:
    relative = str(SERVING.relative_to(ROOT))
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == [relative]
    bentofile = yaml.safe_load((ROOT / "bentofile.yaml").read_text("utf-8"))
    assert bentofile["python"]["requirements_txt"] == f"./{relative}"


def test_every_package_is_installed() -> None:
    """The image that trains installs the project as it is built."""
    found = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_packages(str(ROOT), include=found)
    rooms = ("service", "training", "release", "monitoring", "whetstone")
    folders = {
        path.parent.relative_to(ROOT)
        for room in rooms
        for path in (ROOT / room).rglob("__init__.py")
    }
    expected = {".".join(folder.parts) for folder in folders}
    assert set(packages) == expected


def rows(split: str) -> list[tuple[str, str]]:
    with (EXAMPLE / f"{split}.csv").open(newline="", encoding="utf-8") as handle:
        return [(row["text"], row["label"]) for row in csv.DictReader(handle)]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def test_the_example_has_its_rows_and_labels() -> None:
    train, test = rows("train"), rows("test")
    assert len(train) >= 600
    assert len(test) >= 200
    counts = Counter(label for _, label in train)
    assert len(counts) == 8
    assert set(counts) == {label for _, label in test}
    assert max(counts.values()) > 1.5 * min(counts.values()), "unequal in number"


def test_no_example_row_stands_twice_or_nearly_so() -> None:
    everything = [(text, words(text)) for text, _ in rows("train") + rows("test")]
    assert len({text for text, _ in everything}) == len(everything)
    for (one, first), (other, second) in combinations(everything, 2):
        assert len(first & second) < 0.8 * len(first | second), (one, other)


def test_no_test_row_of_the_example_is_like_a_training_row() -> None:
    train = [(text, words(text)) for text, _ in rows("train")]
    for text, bag in ((text, words(text)) for text, _ in rows("test")):
        for other, second in train:
            assert len(bag & second) <= 0.6 * len(bag | second), (text, other)


def test_example_texts_vary_in_length() -> None:
    lengths = [len(text.split()) for text, _ in rows("train")]
    assert min(lengths) <= 3
    assert max(lengths) >= 30


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.glob("examples/*/recipe.yaml")), ids=lambda path: path.parent.name
)
def test_every_recipe_loads_also_with_files_instead_of_the_hub(recipe: Path) -> None:
    loaded = load_recipe(recipe, {})
    assert loaded.data.name == recipe.parent.name
    files = load_recipe(recipe, {"train_file": "a.csv", "test_file": "b.csv"})
    assert (files.data.dataset_name, files.data.text_column) == (None, "text")
    assert (files.data.train_file, files.data.label_column) == (["a.csv"], "label")


def test_the_documentation_has_the_tables_of_the_code() -> None:
    """`python -m service.settings` and `python -m service.metrics` print them."""
    assert settings_table() in text_of_pages()
    assert metrics_table() in text_of_pages()


def test_the_documentation_counts_the_examples_rows() -> None:
    text = " ".join(text_of_pages().split())
    assert f"{len(rows('train')):,} to train on and {len(rows('test'))} to test on" in text
    assert f"{len(rows('train')):,} messages to train on and {len(rows('test'))} to test on" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("serve", serve_report.summary),
        ("sizing", sizing.markdown),
        ("soak", bench_soak.sentence),
        ("champions", champions.markdown),
        ("train", bench_train.markdown),
        ("train-card", bench_train.markdown),
        ("threads", bench_threads.markdown),
        ("scale", scale.markdown),
        ("scoring", scoring.markdown),
        ("kills", bench_kills.sentence),
        ("predict", bench_predict.markdown),
        ("predict-memory", bench_predict.markdown),
        ("quality", quality_report.summary),
        ("promises", promises.markdown),
        ("optimism", optimism.markdown),
        ("choices", checkpoint_choices.markdown),
    ],
)
def test_the_figures_of_the_documentation_are_those_of_the_benchmarks(
    name: str, written: Callable[[dict[str, Any]], str]
) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    assert written(result).strip() in text_of_pages()


def test_the_table_of_the_gates_is_the_simulations() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "gates.json").read_text("utf-8"))
    text = " ".join(text_of_pages().split())
    cases = {(v["task"], v["rows"], v["points_worse"]): v for v in result["verdicts"]}
    for rows in (100, 300, 1000, 3000):
        found = [cases["single_label", rows, points] for points in (0.0, 1.0, 2.0, 3.0)]
        cells = [f"{row['passed']:.0%} pass, {row['refused']:.0%} refused" for row in found]
        assert f"| {rows:,} | {' | '.join(cells)} |" in text
    rules = cases["single_label", 1000, 0.0]["rules"]
    assert (
        f"the interval refuses {rules['significance']:.0%} of the candidates that are as good"
        in text
    )
    assert not rules["label"] + rules["agreement"] + rules["drop"]
    drop = cases["single_label", 300, 0.0]["rules"]["drop"]
    assert f"On 300 rows, the drop of macro-F1 refuses {drop:.0%}." in text
    many, few = (cases["multi_label", rows, 0.0]["refused"] for rows in (1000, 300))
    assert f"{many:.0%} of them are refused on 1,000 rows and {few:.0%} on 300" in text
    many, few = (cases["multi_label", rows, 2.0]["passed"] for rows in (1000, 300))
    assert f"Of those 2 points worse, {many:.1%} and {few:.0%} pass." in text


def test_the_table_of_verdicts_is_the_simulations() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "promotion.json").read_text("utf-8"))
    text = " ".join(text_of_pages().split())
    cases = {(v["rows"], v["points"]): v for v in result["verdicts"]}
    for rows in (200, 1000, 3000):
        found = [cases[rows, points] for points in (-3.0, -2.0, 0.0, 2.0)]
        cells = [f"{v['promote']:.0%} / {v['refuse']:.0%} / {v['inconclusive']:.0%}" for v in found]
        assert f"| {rows:,} | {' | '.join(cells)} |" in text
    assert f"the other wrong in {result['changed']:.0%} of the rows" in text


def test_the_figure_of_int8_by_batch_is_the_benchmarks() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "int8.json").read_text("utf-8"))
    change = result["graphs"]["int8 by batch"]["largest_change_by_neighbours"]
    text = text_of_pages().replace("\n", " ")
    assert f"changed by up to {change:.2f} with the texts beside it" in text
    assert result["graphs"]["int8 by token"]["largest_change_by_neighbours"] < 1e-5
