"""`bench-few`: the same rows for every method, nothing measured twice, the table and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import few_rows
from benchmarks.few_rows import (
    Cell,
    Table,
    by_tfidf,
    draw_training_rows,
    main,
    read,
    sample_of_test,
)
from benchmarks.few_rows_report import draw, summary
from tests.conftest import example_rows, write_csv


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        folder = tmp_path / "data" / "tiny"
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / f"{part}.csv", example_rows(part))
    return tmp_path / "data"


def test_so_many_rows_of_each_label_are_drawn_by_the_seed(data: Path) -> None:
    table = read(data / "tiny" / "train.csv")
    found = draw_training_rows(table, 8, 0)
    assert {found.labels.count(label) for label in set(table.labels)} == {8}
    assert set(zip(*found, strict=True)) <= set(zip(*table, strict=True))
    assert found == draw_training_rows(table, 8, 0) != draw_training_rows(table, 8, 1)
    assert len(draw_training_rows(Table(["a", "b"], ["x", "y"]), 8, 0).texts) == 2
    many = Table([str(number) for number in range(3000)], ["x"] * 3000)
    assert len(set(sample_of_test(many).texts)) == 1000


def test_every_method_gets_the_same_and_nothing_is_measured_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, Table, Table]] = []

    def method(name: str) -> Any:
        def answers(train: Path, test: Path, folder: Path) -> list[str]:
            seen.append((name, read(train), read(test)))
            return by_tfidf(train, test, folder)

        return answers

    monkeypatch.setattr(
        few_rows, "METHODS", {name: method(name) for name in ("tfidf", "whetstone")}
    )
    words = ["--data", str(data), "--sets", "tiny", "--rows", "8", "--seeds", "0", "1"]
    words += ["--out", str(tmp_path / "few.json"), "--work", str(tmp_path / "work")]
    assert main([*words, "--methods", "tfidf"]) == 0
    assert main([*words, "--methods", "tfidf", "whetstone"]) == 0
    assert [name for name, *_ in seen] == ["tfidf", "tfidf", "whetstone", "whetstone"]
    assert seen[0][1:] == seen[2][1:] and seen[0][1] != seen[1][1]
    entries = json.loads((tmp_path / "few.json").read_text("utf-8"))["entries"]
    assert len(entries) == 4 and entries["tiny / 8 / tfidf / 0"]["training_rows"] == 24
    assert entries["tiny / 8 / tfidf / 0"]["accuracy"] > 0.34
    assert "| `tiny` | 8 |" in (tmp_path / "few.md").read_text("utf-8")
    assert "(2; " in capsys.readouterr().out
    assert (tmp_path / "few.png").stat().st_size > 5_000


def test_what_another_process_measures_meanwhile_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", str(data), "--sets", "tiny", "--rows", "8", "--methods", "tfidf"]
    words += ["--out", str(tmp_path / "few.json"), "--seeds"]
    measured = []

    def with_another(train: Path, test: Path, folder: Path) -> list[str]:
        measured.append(folder)
        if len(measured) == 1:
            assert main([*words, "1", "--work", str(tmp_path / "other")]) == 0
        return by_tfidf(train, test, folder)

    monkeypatch.setattr(few_rows, "METHODS", {"tfidf": with_another})
    assert main([*words, "0", "1", "--work", str(tmp_path / "work")]) == 0
    entries = json.loads((tmp_path / "few.json").read_text("utf-8"))["entries"]
    assert list(entries) == [Cell("tiny", 8, "tfidf", seed).key for seed in (0, 1)]
    assert len(measured) == 2


def test_a_method_that_fails_leaves_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise few_rows.SetError("setfit cannot be installed")

    monkeypatch.setattr(few_rows, "make_setfit_environment", fails)
    words = ["--data", str(data), "--sets", "tiny", "nowhere", "--rows", "4", "--seeds", "0"]
    words += ["--methods", "setfit", "tfidf", "--out", str(tmp_path / "few.json")]
    assert main([*words, "--work", str(tmp_path / "work")]) == 1
    assert list(json.loads((tmp_path / "few.json").read_text("utf-8"))["entries"]) == [
        Cell("tiny", 4, "tfidf", 0).key
    ]
    assert "setfit cannot be installed" in capsys.readouterr().err


def test_what_takes_too_long_is_stopped_said_and_not_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "runs" / "few-setfit" / "bin" / "python"
    slow.parent.mkdir(parents=True)
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(few_rows, "ROOT", tmp_path)
    monkeypatch.setattr(few_rows, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(few_rows, "make_setfit_environment", lambda: None)
    words = ["--data", str(data), "--sets", "tiny", "--rows", "8", "--seeds", "0", "1", "2"]
    words += ["--methods", "setfit", "--out", str(tmp_path / "few.json")]
    assert main([*words, "--work", str(tmp_path / "work")]) == 0
    entries = json.loads((tmp_path / "few.json").read_text("utf-8"))["entries"]
    assert list(entries) == [Cell("tiny", 8, "setfit", 0).key]
    assert "| stopped after " in (tmp_path / "few.md").read_text("utf-8")


def test_the_table_says_what_was_not_run(tmp_path: Path) -> None:
    def entry(rows: int, method: str, accuracy: float) -> dict[str, Any]:
        fixed = {"set": "a_set", "seed": 0, "cpu_seconds": 12.3, "test_rows": 1000}
        return {"rows": rows, "method": method, "accuracy": accuracy, **fixed}

    found = {
        str(number): entry(*given)
        for number, given in enumerate(
            [(8, "whetstone", 0.8), (8, "whetstone", 0.9), (8, "tfidf", 0.5), (64, "tfidf", 0.6)]
        )
    }
    table = summary(found)
    assert "| `a_set` | 8 | 0.850 ± 0.071 (2; 12 s) | 0.500 (1; 12 s) |" in table
    assert "| `a_set` | 64 | - | 0.600 (1; 12 s) |" in table
    draw(found, tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 5_000
