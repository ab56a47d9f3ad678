"""Evaluation: the numbers are right, and measured by the code that serves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.inference.classifier import Classifier
from tests.conftest import example_rows
from training.data.leakage import find_leakage
from training.data.splits import Split
from training.evaluation.evaluate import evaluate, evaluate_validation, headline, write_metrics
from training.evaluation.metrics import single_label_metrics
from training.evaluation.output import print_metrics
from training.recipe.arguments import ExportArguments


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(scope="module")
def rows() -> Split:
    """Test rows of the example, not in the order of their labels."""
    found = example_rows("test")[:60]
    return Split([row["text"] for row in found], [(row["label"],) for row in found])


def all_right(labels: list[str]) -> dict[str, Any]:
    """Metrics of one right answer for each label."""
    return single_label_metrics(labels, labels, labels)


def f1(label: str, truth: list[str], chosen: list[str]) -> float:
    """F1 of one label, from its definition."""
    hits = sum(a == b == label for a, b in zip(truth, chosen, strict=True))
    return 2 * hits / (truth.count(label) + chosen.count(label))


def test_metrics_are_those_computed_by_hand() -> None:
    metrics = single_label_metrics(["a", "b", "c"], list("aaabb"), list("abbbb"))
    assert metrics["rows"] == 5
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["micro_f1"] == pytest.approx(3 / 5)
    # F1 is 1/2 for a and 2/3 for b; c does not occur, so it does not count.
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["weighted_f1"] == pytest.approx((3 * 1 / 2 + 2 * 2 / 3) / 5)
    assert metrics["per_label"] == {
        "a": pytest.approx({"precision": 1, "recall": 1 / 3, "f1": 1 / 2, "support": 3}),
        "b": pytest.approx({"precision": 1 / 2, "recall": 1, "f1": 2 / 3, "support": 2}),
        "c": {"precision": 0, "recall": 0, "f1": 0, "support": 0},
    }


def test_a_label_that_is_only_answered_counts_in_the_macro_average() -> None:
    metrics = single_label_metrics(["a", "b", "c", "d"], ["a", "b"], ["a", "c"])
    assert metrics["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)
    assert metrics["micro_f1"] == pytest.approx(1 / 2)


def test_confusion_has_a_row_for_each_true_label_in_the_order_of_the_labels() -> None:
    metrics = single_label_metrics(["b", "c", "a"], list("aaabb"), list("abbbb"))
    assert metrics["labels"] == ["b", "c", "a"]
    assert metrics["confusion"] == [[2, 0, 0], [0, 0, 0], [2, 0, 1]]


def test_metrics_are_json() -> None:
    metrics = single_label_metrics(["a", "b", "c"], list("aaabb"), list("abbbb"))
    assert json.loads(json.dumps(metrics)) == metrics


def test_the_headline_is_a_few_numbers_of_the_metrics() -> None:
    metrics = all_right(["a", "b"])
    assert headline(metrics) == {
        "rows": 2,
        "accuracy": 1.0,
        "micro_f1": 1.0,
        "macro_f1": 1.0,
        "weighted_f1": 1.0,
    }


def test_metrics_of_a_package_are_those_of_its_answers(classifier: Classifier, rows: Split) -> None:
    metrics, answers = evaluate(classifier, rows, "test split")
    chosen = [answer.label for answer in classifier.classify(rows.texts)]
    assert [answer.label for answer in answers] == chosen
    labels = list(classifier.manifest.labels)
    truth = [names[0] for names in rows.labels]
    pairs = Counter(zip(truth, chosen, strict=True))
    scores = {label: f1(label, truth, chosen) for label in labels}
    assert metrics["rows"] == 60
    assert metrics["labels"] == labels
    assert metrics["confusion"] == [[pairs[true, said] for said in labels] for true in labels]
    assert metrics["accuracy"] == pytest.approx(sum(pairs[x, x] for x in labels) / 60)
    assert metrics["macro_f1"] == pytest.approx(sum(scores.values()) / len(labels))
    assert {label: metrics["per_label"][label]["f1"] for label in labels} == pytest.approx(scores)
    # Else the comparison says little.
    assert len(set(chosen)) > 1


def test_metrics_file_holds_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "made" / "metrics.json"
    metrics = all_right(["Rücksendung", "lob 👍"])
    write_metrics(metrics, path)
    assert json.loads(path.read_text("utf-8")) == metrics
    assert "Rücksendung" in path.read_text("utf-8")


@pytest.mark.parametrize("bad", [{"a"}, "\ud800"], ids=["not JSON", "not UTF-8"])
def test_metrics_that_cannot_be_written_leave_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(all_right(["a", "b"]), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, UnicodeEncodeError)):
        write_metrics({"rows": 1, "labels": bad}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_shows_each_label_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = single_label_metrics(["late", "lovely"], ["late"] * 3, ["late"] * 2 + ["lovely"])
    print_metrics(metrics, "tiny on mine.csv")
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "late" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "late",
        "1.00",
        "0.67",
        "0.80",
        "3",
    ]
    assert "tiny on mine.csv" in shown
    assert "3 rows: accuracy 0.67, macro-F1 0.40" in shown


@pytest.mark.parametrize("label", ["[urgent]", "[/b]", "a[bold]b", ":thumbs_up:"])
def test_the_table_shows_a_label_as_it_is(label: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(all_right([label, "other"]), f"{label} on mine.csv")
    assert capsys.readouterr().out.count(label) == 3


def test_the_screen_shows_the_confusions(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(single_label_metrics(["a", "b"], ["a", "b", "b"], ["a", "a", "b"]), "few")
    shown = capsys.readouterr().out
    assert "by answer" in shown
    many = [f"label {number:02}" for number in range(20)]
    print_metrics(single_label_metrics(many, many, [many[1], *many[1:]]), "many")
    shown = capsys.readouterr().out.split("most confused")[1]
    (pair,) = [line for line in shown.splitlines() if "label 00" in line]
    assert "label 01" in pair
    assert "label 02" not in shown


def test_metrics_say_on_which_rows_they_rest(classifier: Classifier, rows: Split) -> None:
    new, answers = evaluate(classifier, rows, "test.csv")
    assert new["rests_on"] == headline(new)["rests_on"] == "rows that the package was not made with"
    found = example_rows("train")[:8]
    seen = Split([row["text"] for row in found], [(row["label"],) for row in found])
    mixed = Split([*rows.texts[:12], *seen.texts], [*rows.labels[:12], *seen.labels])
    flattered, _ = evaluate(classifier, mixed, "mixed.csv")
    looked = find_leakage(classifier.manifest, mixed.texts)
    assert looked is not None
    assert 0 < len(looked.rows) <= 8
    assert f"rows of which {len(looked.rows)} were there" in flattered["rests_on"]
    # Nothing was fitted to validation but the checkpoint: answers are the package's own.
    chosen, same = evaluate_validation(classifier, ExportArguments(), rows)
    assert chosen["rests_on"] == "validation rows, which also chose the checkpoint"
    assert [a.label for a in same] == [a.label for a in answers]


@pytest.mark.parametrize(
    ("count", "groups", "said"),
    [
        (40, None, "fitted to others of them (out-of-fold)"),
        (40, 2, "fitted to others of them (out-of-fold)"),
        # No fold is left to fit to.
        (40, 1, "the calibration and the thresholds"),
        (9, None, "the calibration and the thresholds"),
    ],
)
def test_validation_rows_are_answered_out_of_fold_where_they_are_enough(
    classifier: Classifier, rows: Split, count: int, groups: int | None, said: str
) -> None:
    changed = Classifier.__new__(Classifier)
    manifest = classifier.manifest.model_copy(update={"abstain_threshold": 0.1})
    changed.__dict__.update(classifier.__dict__ | {"manifest": manifest})
    numbers = None if groups is None else np.arange(count) % groups
    some = Split(rows.texts[:count], rows.labels[:count], groups=numbers)
    metrics, _ = evaluate_validation(changed, ExportArguments(abstain_precision=0.1), some)
    assert metrics["rests_on"].endswith(said)
    assert metrics["abstention"]["threshold"] == 0.1
