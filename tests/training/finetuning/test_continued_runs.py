"""A run folder: one process at a time, one recipe; an unfinished run is continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tests.conftest import example_rows, write_csv
from tests.training.finetuning.test_train import recipe_at
from training.common.errors import BaseModelError, InterruptedRunError, RunError
from training.common.layout import CHECKPOINT, LOCK_FILE, RECORD
from training.evaluation.metrics import validation_metrics
from training.finetuning.base_checks import refuse_misfit
from training.finetuning.callbacks import Progress, StopEarly
from training.finetuning.lock import run_lock
from training.finetuning.record import open_run
from training.finetuning.resume import drop_torn_checkpoints, last_checkpoint
from training.finetuning.train import train


def test_a_run_killed_after_it_had_stopped_early_trains_no_more(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"learning_rate": "1e-12", "num_train_epochs": "4", "early_stopping_patience": "1"}
    alone = train(recipe_at(tiny_recipe, tmp_path / "alone", **keys)).record
    recipe = recipe_at(tiny_recipe, tmp_path / "killed", **keys)
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    record = train(recipe).record
    assert record["evaluations"] == alone["evaluations"]
    assert record["kept_step"] == alone["kept_step"]
    one, other = (
        tmp_path / name / CHECKPOINT / "model.safetensors" for name in ("alone", "killed")
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_run_killed_after_its_last_epoch_keeps_trained_weights(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that epoch would have been the one to stop early at."""
    keys = {"num_train_epochs": "2", "early_stopping_patience": "1"}
    monkeypatch.setattr(
        StopEarly, "is_time", lambda _self, _args, state: state.global_step >= state.max_steps
    )
    alone = train(recipe_at(tiny_recipe, tmp_path / "alone", **keys))
    steps = alone.record["kept_step"]
    assert steps == alone.record["evaluations"][-1]["step"]
    recipe = recipe_at(tiny_recipe, tmp_path / "killed", **keys)
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    killed = train(recipe)
    assert killed.record["kept_step"] == steps
    one, other = (run.checkpoint / "model.safetensors" for run in (alone, killed))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stops_early", [True, False], ids=["stopped early", "last epoch"])
def test_a_run_that_was_moved_still_finds_its_best_checkpoint(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_early: bool
) -> None:
    # The first of three epochs is the best one: whatever comes after it is worse.
    evaluated: list[float] = []

    def falling(*given: Any) -> dict[str, float]:
        evaluated.append(1.0 - len(evaluated) / 10)
        return validation_metrics(*given) | {"macro_f1": evaluated[-1]}

    keys = {"num_train_epochs": "3", "early_stopping_patience": "0"}
    if stops_early:
        keys = {"num_train_epochs": "6", "early_stopping_patience": "1"}
        monkeypatch.setattr(StopEarly, "is_time", lambda *_: len(evaluated) >= 3)
    monkeypatch.setattr("training.finetuning.trainer.validation_metrics", falling)
    uninterrupted = train(recipe_at(tiny_recipe, tmp_path / "whole", **keys))
    assert uninterrupted.record["kept_step"] == 28
    evaluated.clear()
    # Killed while the best model is saved, then moved to where there is room.
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe_at(tiny_recipe, tmp_path / "before", **keys))
    shutil.move(tmp_path / "before", tmp_path / "after")
    run = train(recipe_at(tiny_recipe, tmp_path / "after", **keys))
    assert run.record["kept_step"] == 28
    files = [folder.checkpoint / "model.safetensors" for folder in (run, uninterrupted)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_whose_best_checkpoint_is_gone_does_not_end_with_another(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That of the rehearsal, two epochs, and again that of a rehearsal.
    scores = iter([0.5, 0.9, 0.1, 0.5])
    monkeypatch.setattr(
        "training.finetuning.trainer.validation_metrics",
        lambda *given: validation_metrics(*given) | {"macro_f1": next(scores)},
    )
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="2")
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    kept = last_checkpoint(tmp_path / "run")
    state_file = Path(str(kept)) / "trainer_state.json"
    state = json.loads(state_file.read_text("utf-8"))
    state_file.write_text(json.dumps(state | {"best_model_checkpoint": "elsewhere/checkpoint-1"}))
    with pytest.raises(RunError, match=r"checkpoint-1 is gone: restore it"):
        train(recipe)
    assert last_checkpoint(tmp_path / "run") == kept


def test_a_base_that_got_other_weights_makes_another_run(
    tiny_recipe: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    keys = {"model_name_or_path": str(base), "num_train_epochs": "1"}
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **keys)
    unfinished = recipe_at(tiny_recipe, tmp_path / "unfinished", **keys)
    train(recipe)
    with monkeypatch.context() as patch:
        patch.setattr("training.finetuning.train.make_head_start", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(unfinished)
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, base / "model.safetensors")
    with pytest.raises(RunError, match="trained from other weights"):
        train(recipe)
    with pytest.raises(RunError, match="begun with base_model"):
        train(unfinished)
    # A finished run needs no base any more.
    shutil.rmtree(base)
    assert train(recipe).record["finished"]


LOCKED = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_locked(folder: Path) -> bool:
    """Whether another process finds the lock of a run folder taken."""
    found = subprocess.run(
        [sys.executable, "-c", LOCKED, folder / LOCK_FILE], capture_output=True, text=True
    )
    assert found.returncode == 0 or "BlockingIOError" in found.stderr
    return found.returncode != 0


def test_a_folder_is_locked_while_it_is_trained_in(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found: list[bool] = []

    class Look(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            found.append(is_locked(folder))

    train(recipe_at(tiny_recipe, folder, num_train_epochs="1"), callbacks=[Look()])
    assert found == [True]
    assert not is_locked(folder)


def test_two_processes_do_not_train_in_one_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    hold = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "print(flush=True); sys.stdin.read()", folder / LOCK_FILE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(RunError, match="another process works in"):
            train(recipe_at(tiny_recipe, folder, num_train_epochs="1"))
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
        holder.kill()
    assert train(recipe_at(tiny_recipe, folder, num_train_epochs="1")).record["finished"]


def test_a_run_that_another_process_has_trained_meanwhile_is_not_trained_again(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")

    def meanwhile(*given: Any) -> None:
        refuse_misfit(*given)
        monkeypatch.setattr("training.finetuning.plan.refuse_misfit", refuse_misfit)
        train(recipe)

    monkeypatch.setattr("training.finetuning.plan.refuse_misfit", meanwhile)
    with pytest.raises(RunError, match="another process has trained in"):
        train(recipe)
    assert train(recipe).record["finished"]


def test_a_folder_that_got_nothing_but_its_lock_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()
    with run_lock(tmp_path / "run"):
        # What is done in it may be part of a chain that has the lock already.
        with run_lock(tmp_path / "run"):
            assert is_locked(tmp_path / "run")
        assert is_locked(tmp_path / "run")
        (tmp_path / "run" / RECORD).touch()
    assert not is_locked(tmp_path / "run")


def test_a_finished_run_is_not_trained_again(tiny_recipe: Path, tiny_run_folder: Path) -> None:
    before = (tiny_run_folder / CHECKPOINT / "model.safetensors").stat().st_mtime_ns
    run = train(recipe_at(tiny_recipe, tiny_run_folder))
    assert run.record["finished"]
    assert (tiny_run_folder / CHECKPOINT / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_does_not_take_the_folder(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    changed = recipe_at(tiny_recipe, folder, seed="7", num_train_epochs="1")
    with pytest.raises(RunError, match="--overwrite"):
        train(changed)
    (folder / "notes.txt").write_text("mine")
    run = train(changed, overwrite=True)
    assert run.record["training_arguments"]["num_train_epochs"] == 1
    assert (folder / "notes.txt").is_file()
    assert not (folder / "package").exists()


def test_a_refused_recipe_leaves_the_run_that_it_would_have_replaced(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    before = sorted(folder.rglob("*"))
    with pytest.raises(BaseModelError):
        train(recipe_at(tiny_recipe, folder, model_name_or_path="no/such"), overwrite=True)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(BaseModelError):
        train(recipe_at(tiny_recipe, tmp_path / "new", model_name_or_path="no/such"))
    assert not (tmp_path / "new").exists()


def test_another_test_file_does_not_make_it_another_run(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path
) -> None:
    rows = example_rows("test")[:10]
    changed = recipe_at(
        tiny_recipe, tiny_run_folder, test_file=str(write_csv(tmp_path / "other.csv", rows))
    )
    run = train(changed)
    assert run.record["finished"]
    assert run.data.test is not None
    assert len(run.data.test) == 10


def test_export_wants_the_recipe_that_was_trained(tiny_recipe: Path, tiny_run_folder: Path) -> None:
    assert open_run(recipe_at(tiny_recipe, tiny_run_folder, precision="int8"))
    with pytest.raises(RunError, match="another recipe"):
        open_run(recipe_at(tiny_recipe, tiny_run_folder, seed="7"))
    with pytest.raises(RunError, match="whetstone train"):
        open_run(recipe_at(tiny_recipe, tiny_run_folder.parent / "nowhere"))


RARELY = {
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "save_steps": "1000",
    "eval_steps": "1000",
}


@pytest.mark.parametrize("strategy", [{}, RARELY], ids=["every epoch", "rarely"])
def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: dict[str, str],
    tiny_run_folder: Path,
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **strategy)
    seen: list[int] = []
    plain = Progress.on_step_end

    def interrupt(self: Progress, args: Any, state: Any, control: Any, **rest: Any) -> None:
        seen.append(state.global_step)
        if state.global_step == 20 and len(seen) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        plain(self, args, state, control, **rest)

    monkeypatch.setattr(Progress, "on_step_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match=r"same command again"):
        train(recipe)
    assert signal.getsignal(signal.SIGINT) is before
    kept = last_checkpoint(tmp_path / "run")
    assert kept is not None
    stopped = int(Path(kept).name.removeprefix("checkpoint-"))
    assert stopped == 20
    run = train(recipe)
    assert seen[stopped] == stopped + 1, "it went on where it had stopped"
    assert run.record["finished"]
    assert seen[-1] == 168
    if not strategy:
        # In the middle of an epoch, and nobody can tell.
        uninterrupted = json.loads((tiny_run_folder / RECORD).read_text("utf-8"))
        assert run.record["evaluations"] == uninterrupted["evaluations"]
        one, other = (
            folder / CHECKPOINT / "model.safetensors"
            for folder in (tmp_path / "run", tiny_run_folder)
        )
        assert one.read_bytes() == other.read_bytes()


def test_a_run_is_continued_only_by_as_many_processes_as_began_it(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")
    monkeypatch.setattr("training.finetuning.train.make_head_start", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(recipe)
    # One process says that it is of two: nobody else can look at the folder.
    monkeypatch.setattr("training.finetuning.train.refuse_separate_folders", lambda _: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="begun by 1 process, and this is one of 2"):
        train(recipe)


WHOLE = {
    "model.safetensors": "",
    "optimizer.pt": "",
    "rng_state.pth": "",
    "trainer_state.json": '{"global_step": 20}',
}


@pytest.mark.parametrize("lacks", ["model.safetensors", "rng_state.pth", "trainer_state.json", "{"])
def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path, lacks: str) -> None:
    torn = {**WHOLE, "trainer_state.json": "{"} if lacks == "{" else WHOLE
    for step, files in ((20, WHOLE), (100, torn)):
        folder = tmp_path / CHECKPOINT / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name, content in files.items():
            if step == 20 or name != lacks:
                (folder / name).write_text(content)
    drop_torn_checkpoints(tmp_path)
    assert Path(last_checkpoint(tmp_path) or "").name == "checkpoint-20"


def test_a_checkpoint_is_whole_when_every_process_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / CHECKPOINT / "checkpoint-20"
    folder.mkdir(parents=True)
    for name, content in (WHOLE | {"rng_state_0.pth": "", "rng_state_1.pth": ""}).items():
        (folder / name).write_text(content)
    drop_torn_checkpoints(tmp_path)
    assert last_checkpoint(tmp_path) is not None
    (folder / "rng_state_1.pth").unlink()
    drop_torn_checkpoints(tmp_path)
    assert last_checkpoint(tmp_path) is None


def test_a_run_killed_before_its_checkpoints_were_deleted_loses_them_later(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.drop_resume_files", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    assert last_checkpoint(tmp_path / "run") is not None
    assert train(recipe).record["finished"]
    assert last_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run" / "tokens").exists()


def test_a_finished_run_without_its_checkpoint_is_trained_again(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    shutil.rmtree(folder / CHECKPOINT)
    train(recipe_at(tiny_recipe, folder))
    assert (folder / CHECKPOINT / "model.safetensors").is_file()


def test_a_run_without_its_checkpoint_cannot_be_exported(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    shutil.rmtree(folder / CHECKPOINT)
    with pytest.raises(RunError, match="no finished training"):
        open_run(recipe_at(tiny_recipe, folder))


def test_an_unfinished_run_is_continued_only_as_it_was_begun(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """Another device or version may compute other settings."""
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")
    run = train(recipe)
    record = json.loads((run.folder / RECORD).read_text("utf-8"))
    settled = record["settled"]
    assert settled["pooling"] == "model"

    def again(**changed: Any) -> None:
        left = record | {"finished": False, "settled": settled | changed}
        (run.folder / RECORD).write_text(json.dumps(left), "utf-8")
        train(recipe)

    with pytest.raises(RunError, match=r"begun with pooling mean, and model is computed"):
        again(pooling="mean")
    with pytest.raises(RunError, match=r"head_lr_factor 10\.0, and 1\.0 is computed"):
        again(head_lr_factor=10.0)
    again()
