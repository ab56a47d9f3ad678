"""`whetstone tune`: a study that can be stopped, and a recipe that is no worse."""

from __future__ import annotations

import dataclasses
import signal
import sqlite3
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from transformers import TrainingArguments

from tests.conftest import ROOT
from tests.training.finetuning.test_resume import SECONDS, finish, start
from training.common.errors import RecipeError, RunError
from training.common.layout import LOCK_FILE
from training.finetuning.formulas import LONG_ROW, batch_size
from training.finetuning.search import BestOfTrial
from training.finetuning.train import train
from training.finetuning.tune import BATCH_SIZE, STUDY, batch_sizes, search_space, tune
from training.recipe.load import load_recipe
from whetstone.main import main

FAST = {"num_train_epochs": "2", "per_device_train_batch_size": "16"}


def words(recipe: Path, folder: Path, trials: int) -> list[str]:
    keys = [word for key, value in FAST.items() for word in (f"--{key}", value)]
    return ["tune", str(recipe), "--output_dir", str(folder), "--trials", str(trials), *keys]


@pytest.fixture(scope="module")
def open_recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe without its learning rate, which is to be found."""
    content = yaml.safe_load(tiny_recipe.read_text("utf-8"))
    del content["learning_rate"]
    path = tiny_recipe.with_name("open.yaml")
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def test_the_best_trial_becomes_a_recipe(
    open_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(open_recipe, tmp_path / "run", 3)) == 0
    printed = capsys.readouterr().out
    assert printed.count("trial ") >= 3
    folder = tmp_path / "run" / "tuning"
    assert f"next: whetstone run {folder / 'recipe.yaml'}\n" in printed
    assert (folder / "trials.png").stat().st_size > 5_000
    found = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    # What was given stays; it is a recipe that can be run from anywhere.
    assert found["num_train_epochs"] == 2 and found["per_device_train_batch_size"] == 16
    recipe = load_recipe(folder / "recipe.yaml", {})
    assert {"learning_rate", "weight_decay"} <= set(recipe.training)
    assert Path((recipe.data.train_file or [""])[0]).is_absolute()
    # The trials' patience, whatever would be computed from the epochs found.
    assert recipe.tuning.early_stopping_patience == 0
    # Trials are no run: the recipe's own can be made beside them, and each trial has its curve.
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, LOCK_FILE}
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {
        "trial-1",
        "trial-2",
        "trial-3",
    }
    assert train(recipe).record["finished"]
    assert main(words(open_recipe, tmp_path / "run", 3)) == 0
    assert f"next: whetstone run {folder / 'recipe.yaml'} --overwrite\n" in capsys.readouterr().out


def test_a_search_continues_with_its_finished_trials(open_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(open_recipe, {"output_dir": str(tmp_path / "run"), **FAST})
    before = tune(recipe, 1)
    assert [trial.number for trial in before.trials] == [0]
    # The first one is the recipe as it would have been trained.
    assert before.best.params["weight_decay"] == 0.01
    after = tune(recipe, 2)
    assert [trial.number for trial in after.trials] == [0, 1]
    # Every sitting searches on, and does not try the same again.
    third = tune(recipe, 3)
    rates = [trial.params["learning_rate"] for trial in third.trials]
    assert len(set(rates)) == 3
    assert after.trials[0].value == before.trials[0].value
    assert after.trials[0].datetime_complete == before.trials[0].datetime_complete
    with pytest.raises(RunError, match="of another recipe"):
        tune(load_recipe(open_recipe, {"output_dir": str(tmp_path / "run"), "seed": "7"}), 1)
    assert len(tune(recipe, 1, overwrite=True).trials) == 1


def test_a_recipe_that_leaves_nothing_open_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"weight_decay": "0", **FAST}
    with pytest.raises(RecipeError, match="gives every key that tune searches"):
        tune(load_recipe(tiny_recipe, {"output_dir": str(tmp_path), **keys}), 1)


def test_every_default_batch_is_one_of_the_choices() -> None:
    """A study that was begun on another device has to know the same."""
    found = {
        batch_size(parameters, seen, cuda=cuda)
        for parameters in (23_000_000, 110_000_000)
        for seen in (0, 20_000, 40_000, 100_000, 10_000_000)
        for cuda in (True, False)
    }
    assert {16, 32, 64, 128} == found <= set(batch_sizes(LONG_ROW))


@pytest.mark.parametrize(
    ("longest", "sizes"),
    [
        (12, (8, 16, 32, 64, 128)),
        (LONG_ROW, (8, 16, 32, 64, 128)),
        (LONG_ROW + 1, (8, 16, 32, 64)),
        (4 * LONG_ROW, (8, 16, 32)),
        (100 * LONG_ROW, (8, 16)),
    ],
)
def test_batches_of_long_rows_are_smaller_and_have_the_defaults(
    longest: int, sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(longest) == sizes
    for cuda in (True, False):
        for seen in (0, 40_000, 10_000_000):
            assert batch_size(110_000_000, seen, cuda=cuda, longest=longest) in sizes


def test_the_batches_of_one_study_stay_the_same(tiny_recipe: Path, tmp_path: Path) -> None:
    """Also where another rule chose them: Optuna refuses others."""
    recipe = dataclasses.replace(load_recipe(tiny_recipe, {}), training={})
    study = optuna.create_study()
    for longest in (LONG_ROW, 4 * LONG_ROW):
        trial = study.ask()
        search_space(recipe, TrainingArguments(str(tmp_path)), longest)[BATCH_SIZE](trial)
        assert trial.distributions[BATCH_SIZE].choices == batch_sizes(LONG_ROW)


def test_a_trial_without_room_on_the_device_is_stopped_and_the_search_goes_on(
    open_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure, calls = BestOfTrial.__call__, []

    def without_room_at_first(self: BestOfTrial, metrics: dict[str, float]) -> float:
        calls.append(metrics)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return measure(self, metrics)

    monkeypatch.setattr(BestOfTrial, "__call__", without_room_at_first)
    tuned = tune(load_recipe(open_recipe, {"output_dir": str(tmp_path / "run"), **FAST}), 2)
    states = [trial.state for trial in tuned.trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE]
    assert "trial 1: stopped, as the device has no more room" in capsys.readouterr().out


def test_the_number_of_trials_is_required(
    open_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([], ["--trials", "0"], ["--trials", "many"]):
        with pytest.raises(SystemExit) as ended:
            main(["tune", str(open_recipe), "--output_dir", str(tmp_path), *given])
        assert ended.value.code == 2
        assert "--trials N is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_that_is_killed_is_continued(open_recipe: Path, tmp_path: Path) -> None:
    command = ["-m", "whetstone", *words(open_recipe, tmp_path / "run", 4)]
    study = tmp_path / "run" / "tuning" / STUDY
    process = start(command, cwd=ROOT)

    def states() -> list[str]:
        if not study.is_file():
            return []
        with sqlite3.connect(f"file:{study}?mode=ro", uri=True) as database:
            tables = database.execute("select 1 from sqlite_master where name = 'trials'")
            if tables.fetchone() is None:
                return []
            return [state for (state,) in database.execute("select state from trials")]

    deadline = time.monotonic() + SECONDS
    while "COMPLETE" not in states() or "RUNNING" not in states():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = states().count("COMPLETE")
    printed = finish(command)
    assert f"trial {done + 1}:" in printed or f"trial {done + 2}:" in printed
    found = states()
    assert "RUNNING" not in found
    assert sum(state in ("COMPLETE", "PRUNED") for state in found) == 4
    assert found.count("FAIL") == 1
