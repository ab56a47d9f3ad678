"""`bench-choices`: what each choice of weights is worth, from trainings that are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoint_choices
from benchmarks.checkpoint_choices import choose, draw, main, markdown
from benchmarks.few_rows import Table
from tests.conftest import example_rows, write_csv


def test_no_row_is_in_two_parts() -> None:
    labels = [label for label in "abc" for _ in range(400)]
    parts = draw(Table([str(number) for number in range(1200)], labels), 8, 0)
    texts = {part: set(own.texts) for part, own in parts.items()}
    assert {part: len(own) for part, own in texts.items()} == {
        "validation": 2,
        "train": 22,
        "all": 24,
        "held_out": 1000,
    }
    assert texts["all"] == texts["train"] | texts["validation"]
    assert not texts["all"] & texts["held_out"]
    assert [parts["all"].labels.count(label) for label in "abc"] == [8, 8, 8]


def test_a_choice_is_worth_what_its_step_reaches_on_the_rows_held_out() -> None:
    seen = [
        {"step": step, "macro_f1": score} for step, score in enumerate([0.2, 0.9, 0.85, 0.8, 0.8])
    ]
    worth = {0: 0.1, 1: 0.5, 2: 0.6, 3: 0.7, 4: 0.75}
    few = {"regression": 0.1, "best": 0.5, "kept": 0.75, "last": 0.75}
    assert choose(seen, worth, 8) == few
    # Of many rows, a tenth more is surely better.
    assert choose(seen, worth, 1000) == few | {"kept": 0.5}


def test_two_trainings_with_other_validation_rows_have_the_same_weights(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trainings: this is what the comparison rests on."""
    source = tmp_path / "data" / "tiny"
    source.mkdir(parents=True)
    for part in ("train", "test"):
        write_csv(source / f"{part}.csv", example_rows(part))
    weights: dict[str, bytes] = {}
    remove = shutil.rmtree

    def keep_weights(folder: Path, **options: Any) -> None:
        model = folder / "checkpoint" / "model.safetensors"
        if model.is_file():
            weights[folder.name] = model.read_bytes()
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", keep_weights)
    # The last weights are kept, whatever the validation rows say of them.
    keys = {"load_best_model_at_end": False, "train_on_all_rows": False, "num_train_epochs": 2}
    keys |= {"model_name_or_path": str(tiny_base), "max_length": 32}
    monkeypatch.setattr(checkpoint_choices, "KEYS", keys)
    words = ["--data", str(source.parent), "--sets", "tiny", "--seeds", "0"]
    words += ["--out", str(tmp_path / "choices.json"), "--work", str(tmp_path / "work")]
    assert main(words) == 0
    assert weights["seen"] == weights["worth"] != weights["whole"]
    result = json.loads((tmp_path / "choices.json").read_text("utf-8"))
    assert set(result["entries"]["tiny / 8 / 0"]["accuracy"]) == set(checkpoint_choices.TITLES)
    assert "| `tiny` | 8 | 1 |" in markdown(result)
