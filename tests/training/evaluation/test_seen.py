"""Test rows that training has seen: which they are, and the score without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.package.manifest import read_manifest
from tests.conftest import example_rows, write_csv
from tests.training.evaluation.test_report import Case, binary, several
from training.data import near_duplicates, splits
from training.data.dataset import load_data
from training.data.near_duplicates import groups_of_splits
from training.data.splits import Split
from training.evaluation.report.report import write_report
from training.evaluation.seen import (
    SeenRows,
    equally_seen,
    nearly_seen,
    unseen_metrics,
    unseen_sentence,
)
from training.recipe.arguments import DataArguments
from whetstone.main import main

KNOWN = ["Ticket 11: where is the parcel that I ordered?", "short", "something else altogether"]


def test_near_duplicates_of_known_texts_are_found_whatever_stands_beside_them() -> None:
    texts = ["new words in here", "TICKET 999 where is the parcel that I ordered", "Short!", "new"]
    # Two that are like each other, and like no known text.
    texts += ["my invoice of this month is wrong", "my invoice of this month is wrong!!"]

    def found(texts: list[str], known: list[str]) -> SeenRows:
        return nearly_seen(groups_of_splits({"train": known, "test": texts}))

    assert found(texts, KNOWN) == SeenRows((1, 2), 6, "near-duplicates")
    assert found(texts, []).rows == ()
    assert found(KNOWN, KNOWN).rows == (0, 1, 2)


def test_near_duplicates_are_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    looked_at: list[int] = []
    once = near_duplicates.similar_groups

    def counted(texts: Any, *seed: int) -> np.ndarray:
        looked_at.append(len(texts))
        return once(texts, *seed)

    for module in (near_duplicates, splits):
        monkeypatch.setattr(module, "similar_groups", counted)
    train, test = example_rows("train")[:200], example_rows("test")[:50]
    files = {
        name: str(write_csv(tmp_path / f"{name}.csv", rows))
        for name, rows in (("train", train), ("test", [*test, train[0]]))
    }
    words = ["check", "--train_file", files["train"], "--test_file", files["test"]]
    assert main([*words, "--model_name_or_path", str(tiny_base), "--max_length", "64"]) == 0
    assert looked_at == [251]
    arguments = DataArguments(train_file=[files["train"]], test_file=[files["test"]])
    data = load_data(arguments, seed=0)
    assert 50 in nearly_seen(data.similar).rows
    assert looked_at == [251, 251]


def test_a_package_knows_equal_texts_only(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package)
    known = example_rows("train")[0]["text"]
    found = equally_seen(["a new one", known, f"{known}!"], manifest)
    assert found == SeenRows((1,), 3, "equal texts")
    older = manifest.model_copy(update={"provenance": {}})
    assert equally_seen([known], older) is None


def found_for(case: Case, rows: tuple[int, ...]) -> dict[str, Any]:
    split = Split(case.texts, case.truth)
    seen = SeenRows(rows, len(split), "near-duplicates")
    return unseen_metrics(case.manifest, split, case.answers(), seen)


@pytest.mark.parametrize("case", [binary(), several()], ids=["one", "several"])
def test_the_score_without_seen_rows_is_that_of_the_other_rows(case: Case) -> None:
    answers = case.answers()
    right = [
        set(truth) == set(answer.answer) for truth, answer in zip(case.truth, answers, strict=True)
    ]
    rows = tuple(row for row, one in enumerate(right) if one)[:80]
    found = found_for(case, rows)
    assert (found["seen"], found["with"]["rows"]) == (80, len(right))
    assert found["without"]["rows"] == len(right) - 80
    # What was left out was right: without it all scores are lower.
    for name, score in found["without"]["metrics"].items():
        whole = found["with"]["metrics"][name]
        assert score["low"] <= score["value"] <= score["high"]
        assert score["value"] < whole["value"]
    if case.manifest.task == "single_label":
        others = [one for row, one in enumerate(right) if row not in rows]
        assert found["without"]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(others))
    sentence = unseen_sentence(found)
    assert sentence is not None
    assert sentence.startswith(
        f"80 of {len(right)} rows are near-duplicates of training texts; the"
    )


def test_no_row_or_every_row_may_be_seen() -> None:
    case = binary()
    found = found_for(case, ())
    assert found["with"] == found["without"]
    assert unseen_sentence(found) is None
    found = found_for(case, tuple(range(len(case.texts))))
    assert found["without"] is None
    assert "no row is left" in str(unseen_sentence(found))


@pytest.mark.parametrize("rows", [(), (1, 2, 3), tuple(range(200))])
def test_the_report_shows_both_scores(tmp_path: Path, rows: tuple[int, ...]) -> None:
    case, path = binary(), tmp_path / "index.html"
    split, answers = Split(case.texts, case.truth), case.answers()
    metrics = case.measured().metrics | {"unseen": found_for(case, rows)}
    write_report(path, case.manifest, split, answers, metrics, where="test.csv")
    content = path.read_text("utf-8")
    assert f"Of 200 rows {len(rows)} are near-duplicates of texts of training." in content
    assert "those not near-duplicates of a text of training" in content


def test_evaluate_says_what_was_seen(
    tiny_run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = example_rows("train"), example_rows("test")[:20]
    nearly = [row | {"text": row["text"].upper() + "!!"} for row in train[:10]]
    file = write_csv(tmp_path / "test.csv", [*test, *train[:5], *nearly])
    words = ["evaluate", str(tiny_run_folder / "package"), str(file)]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert (
        "5 of 35 rows are equal to training texts; the other 30: accuracy"
        in capsys.readouterr().out
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert (metrics["unseen"]["by"], metrics["unseen"]["seen"]) == ("equal texts", 5)
    assert "those not equal to a text of training" in (
        tmp_path / "out" / "report" / "index.html"
    ).read_text("utf-8")
