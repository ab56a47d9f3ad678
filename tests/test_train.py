"""Training: it learns, keeps what it made, can be interrupted, and goes on."""

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
import yaml
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainingArguments

from tests.conftest import EXAMPLE, example_rows, write_csv
from training.base_checks import refuse_misfit
from training.callbacks import Progress, StopEarly
from training.config import load_recipe, parse_training_arguments
from training.data.dataset import load_data
from training.data.encoding import RowSizes
from training.defaults import (
    batch_size,
    careful_defaults,
    learning_rate,
    validation_share,
    warnings_about,
)
from training.errors import BaseModelError, InterruptedRunError, RecipeError, RunError
from training.layout import CHECKPOINT, LOCK_FILE, RECORD, RESOLVED_RECIPE
from training.metrics import validation_metrics
from training.run_lock import alone_in
from training.train import (
    drop_torn_checkpoints,
    last_checkpoint,
    open_run,
    settle,
    train,
    use_one_gpu,
)

LABELS = ["delivery", "praise", "returns"]


def recipe_at(tiny_recipe: Path, folder: Path, **overrides: str) -> Any:
    return load_recipe(tiny_recipe, {"output_dir": str(folder), **overrides})


def test_every_parameter_moved_and_the_loss_fell(tiny_base: Path, tiny_run_folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    record = json.loads((tiny_run_folder / RECORD).read_text("utf-8"))
    losses = [evaluation["loss"] for evaluation in record["evaluations"]]
    assert min(losses) < losses[0] * 0.95
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(tiny_run_folder / CHECKPOINT / "model.safetensors")
    for name, old in before.items():
        assert not torch.equal(old, after[f"bert.{name}"]), name


def test_the_checkpoint_knows_its_labels_in_sorted_order(tiny_run_folder: Path) -> None:
    config = json.loads((tiny_run_folder / CHECKPOINT / "config.json").read_text("utf-8"))
    assert [config["id2label"][str(index)] for index in range(3)] == LABELS


def test_one_checkpoint_is_kept_and_nothing_else(tiny_run_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    assert last_checkpoint(tiny_run_folder) is None
    assert (tiny_run_folder / CHECKPOINT / "model.safetensors").is_file()
    manifest = json.loads((tiny_run_folder / "package" / "manifest.json").read_text("utf-8"))
    record = json.loads((tiny_run_folder / RECORD).read_text("utf-8"))
    by_step = {evaluation["step"]: evaluation["macro_f1"] for evaluation in record["evaluations"]}
    # The package was measured again, by another code path: it is the model of that step.
    kept = by_step[record["kept_step"]]
    assert manifest["metrics"]["validation"]["macro_f1"] == pytest.approx(kept, abs=1e-6)
    assert AutoModelForSequenceClassification.from_pretrained(tiny_run_folder / CHECKPOINT)


def test_every_key_in_force_is_written_out(tiny_run_folder: Path) -> None:
    resolved = yaml.safe_load((tiny_run_folder / RESOLVED_RECIPE).read_text("utf-8"))
    assert resolved["learning_rate"] == 0.002
    assert resolved["warmup_ratio"] == 0.1
    # Also where transformers' own default is the same.
    assert resolved["lr_scheduler_type"] == "linear"
    assert resolved["name"] == "tiny"


def test_what_was_computed_says_why(tiny_run_folder: Path) -> None:
    lines = (tiny_run_folder / RESOLVED_RECIPE).read_text("utf-8").splitlines()
    by_key = {line.partition(":")[0]: line for line in lines if not line.startswith("#")}
    tuning = ("pooling", "head_lr_factor", "layerwise_lr_decay", "early_stopping_patience")
    for key in ("warmup_ratio", "weight_decay", *tuning):
        assert "  # " in by_key[key], key
    # The recipe's own needs no reason.
    for key in ("learning_rate", "name", "freeze_layers"):
        assert "#" not in by_key[key], key


def test_frozen_layers_stay_as_they_were(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    keys = {"freeze_layers": "1", "layerwise_lr_decay": "0.9", "num_train_epochs": "1"}
    keys |= {"load_best_model_at_end": "false"}
    train(recipe_at(tiny_recipe, tmp_path / "run", **keys))
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(tmp_path / "run" / CHECKPOINT / "model.safetensors")
    for name, old in before.items():
        frozen = name.startswith(("embeddings.", "encoder.layer.0."))
        assert torch.equal(old, after[f"bert.{name}"]) is frozen, name


@pytest.mark.parametrize(("patience", "epochs"), [("1", 2), ("0", 4)])
def test_training_stops_where_it_no_longer_gets_better(
    tiny_recipe: Path, tmp_path: Path, patience: str, epochs: int
) -> None:
    # At this rate nothing changes: the first epoch stays the best.
    keys = {"learning_rate": "1e-12", "num_train_epochs": "4", "early_stopping_patience": patience}
    record = train(recipe_at(tiny_recipe, tmp_path / "run", **keys)).record
    assert len(record["evaluations"]) == epochs
    # Of equal ones the last, where the learning rate had come down.
    assert record["kept_step"] == record["evaluations"][-1 if patience == "0" else 0]["step"]


def test_a_run_killed_after_it_had_stopped_early_trains_no_more(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"learning_rate": "1e-12", "num_train_epochs": "4", "early_stopping_patience": "1"}
    alone = train(recipe_at(tiny_recipe, tmp_path / "alone", **keys)).record
    recipe = recipe_at(tiny_recipe, tmp_path / "killed", **keys)
    with monkeypatch.context() as patched:
        patched.setattr("training.train._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    record = train(recipe).record
    assert record["evaluations"] == alone["evaluations"]
    assert record["kept_step"] == alone["kept_step"]
    one, other = (
        tmp_path / name / CHECKPOINT / "model.safetensors" for name in ("alone", "killed")
    )
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
    monkeypatch.setattr("training.train.validation_metrics", falling)
    uninterrupted = train(recipe_at(tiny_recipe, tmp_path / "whole", **keys))
    assert uninterrupted.record["kept_step"] == 28
    evaluated.clear()
    # Killed while the best model is saved, then moved to where there is room.
    with monkeypatch.context() as patched:
        patched.setattr("training.train._finish", lambda *_: 1 / 0)
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
        "training.train.validation_metrics",
        lambda *given: validation_metrics(*given) | {"macro_f1": next(scores)},
    )
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="2")
    with monkeypatch.context() as patched:
        patched.setattr("training.train._finish", lambda *_: 1 / 0)
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
        patch.setattr("training.train.make_head_start", lambda *_, **__: 1 / 0)
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


def test_what_another_process_has_trained_meanwhile_is_not_trained_again(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")

    def meanwhile(*given: Any) -> None:
        refuse_misfit(*given)
        monkeypatch.setattr("training.train.refuse_misfit", refuse_misfit)
        train(recipe)

    monkeypatch.setattr("training.train.refuse_misfit", meanwhile)
    with pytest.raises(RunError, match="another process has trained in"):
        train(recipe)
    assert train(recipe).record["finished"]


def test_a_folder_that_got_nothing_but_its_lock_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()
    with alone_in(tmp_path / "run"):
        # What is done in it may be part of a chain that has the lock already.
        with alone_in(tmp_path / "run"):
            assert is_locked(tmp_path / "run")
        assert is_locked(tmp_path / "run")
        (tmp_path / "run" / RECORD).touch()
    assert not is_locked(tmp_path / "run")


def test_a_score_that_stands_still_while_the_loss_falls_stops_nothing() -> None:
    from types import SimpleNamespace

    def stopped(losses: list[float], scores: list[float]) -> bool:
        pairs = zip(losses, scores, strict=True)
        log = [{"eval_loss": loss, "eval_macro_f1": score} for loss, score in pairs]
        arguments = SimpleNamespace(metric_for_best_model="macro_f1", greater_is_better=True)
        control = SimpleNamespace(should_training_stop=False)
        state: Any = SimpleNamespace(log_history=[{"loss": 1.0}, *log])
        StopEarly(2).on_evaluate(arguments, state, control)
        return bool(control.should_training_stop)

    still = [0.4, 0.4, 0.4]
    assert stopped([1.0, 1.0, 1.0], still)
    assert stopped([0.8, 0.9, 1.0], still)
    assert not stopped([1.0, 0.9, 0.8], still)
    assert not stopped([0.8, 0.9, 1.0], [0.4, 0.5, 0.5])
    assert not stopped([0.8, 0.9], [0.5, 0.4])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"freeze_layers": "-1"}, "freeze_layers is -1: it cannot be negative"),
        ({"freeze_layers": "99"}, "freeze_layers is 99, and the model has 2 layers"),
        ({"layerwise_lr_decay": "1.5"}, "lies above 0 and is at most 1"),
        ({"head_lr_factor": "0"}, "head_lr_factor is 0.0: it lies above 0"),
        ({"layerwise_lr_decay": "0.9", "optim": "adafactor"}, None),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model is 'f1', which is not measured"),
        (
            {"early_stopping_patience": "2", "load_best_model_at_end": "false"},
            "early_stopping_patience needs load_best_model_at_end",
        ),
    ],
)
def test_what_of_the_model_is_trained_has_to_be_possible(
    tiny_recipe: Path, tmp_path: Path, keys: dict[str, str], reason: str | None
) -> None:
    keys = keys | {"num_train_epochs": "1"}
    if reason is None:
        assert train(recipe_at(tiny_recipe, tmp_path / "run", **keys)).record["finished"]
        return
    with pytest.raises(RecipeError, match=reason):
        train(recipe_at(tiny_recipe, tmp_path / "run", **keys))
    assert not (tmp_path / "run").exists()


def test_a_rate_that_destroys_what_the_model_knows_is_said(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    given = {"learning_rate": 4e-4}
    (sentence,) = warnings_about(given, 110_000_000)
    assert "0.0004 is above 0.0001" in sentence and "2e-05 is the default" in sentence
    assert not warnings_about(given, 23_000_000)
    assert not warnings_about({"learning_rate": 5e-5}, 110_000_000)
    assert not warnings_about({}, 110_000_000)


def test_the_same_recipe_gives_the_same_version(tiny_recipe: Path, tmp_path: Path) -> None:
    from service.model_package import read_manifest
    from training.export import export

    versions = []
    for name in ("one", "other"):
        run = train(recipe_at(tiny_recipe, tmp_path / name, num_train_epochs="1"))
        versions.append(read_manifest(export(run)).version)
    assert versions[0] == versions[1]


def test_the_same_run_goes_on_without_training_again(
    tiny_recipe: Path, tiny_run_folder: Path
) -> None:
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


def test_a_run_goes_on_with_as_many_processes_as_began_it(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")
    monkeypatch.setattr("training.train.make_head_start", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="begun by 1 process, and this is one of 2"):
        train(recipe)


def test_the_last_weights_are_said_to_be_the_last_ones(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"num_train_epochs": "2", "load_best_model_at_end": "false", "report_to": "none"}
    run = train(recipe_at(tiny_recipe, tmp_path / "run", **keys))
    assert run.record["kept_step"] == run.record["evaluations"][-1]["step"]
    assert not (tmp_path / "run" / "tensorboard").exists()


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
        patched.setattr("training.train._drop_means_of_going_on", lambda _: 1 / 0)
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


def test_the_regression_over_the_frozen_encoder_is_kept_where_it_is_better(
    telling_base: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def falling(*given: Any) -> dict[str, float]:
        return validation_metrics(*given) | {"macro_f1": 0.9 if not evaluated else 0.3}

    evaluated: list[int] = []
    monkeypatch.setattr("training.train.validation_metrics", falling)

    class Look(TrainerCallback):
        def on_evaluate(self, *_: Any, **__: Any) -> None:
            evaluated.append(1)

    keys = {"num_train_epochs": "2", "model_name_or_path": str(telling_base), "pooling": "mean"}
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **keys)
    # Killed after the last step: what is kept has to be made anew.
    with monkeypatch.context() as patched:
        patched.setattr("training.train._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, callbacks=[Look()])
    run = train(recipe)
    assert run.record["kept_step"] == run.record["evaluations"][0]["step"] == 0
    before = load_file(telling_base / "model.safetensors")
    after = load_file(run.checkpoint / "model.safetensors")
    for name in after.keys() - {"classifier.weight", "classifier.bias"}:
        assert torch.equal(before[name.removeprefix("bert.")], after[name]), name
    # The head is the regression's: a fresh one has a deviation of 0.02.
    assert after["classifier.weight"].std() > 0.1


def test_of_a_dozen_rows_not_every_epoch_is_evaluated(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = [row for place, row in enumerate(example_rows("train")) if place % 40 == 0]
    keys = {"train_file": str(write_csv(tmp_path / "few.csv", rows)), "num_train_epochs": "70"}
    record = train(recipe_at(tiny_recipe, tmp_path / "run", **keys)).record
    # One step an epoch; the last is of the last step.
    assert len(rows) < 16
    assert [entry["step"] for entry in record["evaluations"]] == [15, 30, 45, 60, 70]


def test_another_measure_of_the_best_is_kept_in_its_own_direction(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run", metric_for_best_model="eval_loss")
    record = train(recipe).record
    best = min(record["evaluations"], key=lambda evaluation: evaluation["loss"])
    assert record["kept_step"] == best["step"]


def test_a_max_length_beyond_the_model_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="from 3 to 64 tokens"):
        train(recipe_at(tiny_recipe, tmp_path, max_length="65"))


@pytest.mark.parametrize(
    ("parameters", "labels", "lowest", "highest"),
    [
        (23_000_000, 2, 4e-5, 6e-5),
        (23_000_000, 8, 8e-5, 1.2e-4),
        (23_000_000, 77, 2.9e-4, 3e-4),
        (110_000_000, 77, 2e-5, 2e-5),
        (335_000_000, 2, 1e-5, 1e-5),
    ],
)
def test_learning_rates_stay_where_models_remember(
    parameters: int, labels: int, lowest: float, highest: float
) -> None:
    assert lowest <= learning_rate(parameters, labels) <= highest


@pytest.mark.parametrize(
    ("rows", "labels", "assigned", "expected"),
    [
        (48, 6, 48, 34),
        (14, 2, 14, 100),
        (400, 4, 400, 10),
        (10_003, 77, 10_003, 10),
        (4_460, 2, 4_460, 3),
        (12_000, 8, 1_900, 6),
    ],
)
def test_what_has_few_rows_is_seen_more_often(
    rows: int, labels: int, assigned: int, expected: int
) -> None:
    found = careful_defaults(23_000_000, rows, labels, {}, assigned=assigned)
    assert found["num_train_epochs"].value == expected


@pytest.mark.parametrize(
    ("parameters", "seen", "cuda", "expected"),
    [
        (23_000_000, 100, False, 16),
        (23_000_000, 15_000, False, 16),
        (23_000_000, 16_000, False, 32),
        (23_000_000, 70_000, False, 64),
        (23_000_000, 500_000, False, 64),
        (110_000_000, 500_000, False, 32),
        (110_000_000, 12_000, True, 16),
        (110_000_000, 60_000, True, 64),
        (110_000_000, 180_000, True, 128),
    ],
)
def test_batches_grow_where_there_are_steps_enough(
    parameters: int, seen: int, cuda: bool, expected: int
) -> None:
    assert batch_size(parameters, seen, cuda=cuda) == expected


def test_few_rows_that_are_seen_often_are_many() -> None:
    def batch(labels: int) -> Any:
        found = careful_defaults(23_000_000, 7_000, labels, {"use_cpu": True})
        return found["per_device_train_batch_size"].value

    assert (batch(2), batch(77)) == (32, 64)
    # As often as the recipe says.
    given = {"use_cpu": True, "num_train_epochs": 1}
    found = careful_defaults(23_000_000, 7_000, 77, given)
    assert found["per_device_train_batch_size"].value == 16
    found = careful_defaults(23_000_000, 7_000, 77, given | {"num_train_epochs": 30})
    assert found["early_stopping_patience"].value == 15


def test_of_longer_rows_fewer_are_in_a_batch() -> None:
    def sizes(longest: int) -> list[int]:
        kinds = ((23_000_000, False), (110_000_000, False), (110_000_000, True))
        return [batch_size(size, 10**6, cuda=cuda, longest=longest) for size, cuda in kinds]

    assert sizes(20) == sizes(256) == [64, 32, 128]
    assert sizes(512) == [32, 16, 64]
    assert sizes(8192) == [16, 16, 16]


def test_steps_are_of_windows_and_labels_and_rates_of_texts() -> None:
    def found(windows: int | None = None, **given: Any) -> list[Any]:
        sizes = None if windows is None else RowSizes(windows, 256)
        keys = ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
        defaults = careful_defaults(110_000_000, 200, 2, {"use_cpu": True, **given}, sizes=sizes)
        return [defaults[key].value for key in keys]

    passes, batch, rate = found()
    # 100 rows a label are seen ten times: long ones are more steps, and no fewer passes.
    assert (passes, batch) == (10, 16)
    assert found(6_000) == [10, 32, rate]
    # 20 rows of one window each are two steps a pass.
    few = [careful_defaults(23_000_000, 20, 2, {}, sizes=RowSizes(n, 256)) for n in (20, 400)]
    assert [each["num_train_epochs"].value for each in few] == [50, 10]
    # 128 windows that are worth four texts are no large batch.
    assert found(200, per_device_train_batch_size=128)[2] == pytest.approx(2 * rate)
    assert found(6_000, per_device_train_batch_size=128)[2] == rate


def test_the_rate_grows_with_the_root_of_the_batch_but_not_past_what_a_model_bears() -> None:
    assert learning_rate(110_000_000, 2, 16) == learning_rate(110_000_000, 2) == 2e-5
    assert learning_rate(110_000_000, 2, 128) == pytest.approx(4e-5)
    assert learning_rate(23_000_000, 2, 64) == pytest.approx(5e-5 * 2**0.5)
    assert learning_rate(23_000_000, 77, 128) == 3e-4


def test_the_rate_suits_the_batch_of_the_recipe() -> None:
    def rate(**given: Any) -> Any:
        return careful_defaults(110_000_000, 4_000, 2, given)["learning_rate"].value

    assert rate() == 2e-5
    assert rate(per_device_train_batch_size=128) == pytest.approx(4e-5)
    accumulated = rate(per_device_train_batch_size=16, gradient_accumulation_steps=8)
    assert accumulated == pytest.approx(4e-5)


@pytest.mark.parametrize(
    ("able", "given", "expected"),
    [
        ({"avx512_bf16": True}, {}, True),
        ({"amx_bf16": True}, {}, True),
        ({"avx512_bf16": False, "avx2": True}, {}, False),
        ({}, {}, False),
        ({"avx512_bf16": True}, {"fp16": True}, False),
    ],
)
def test_a_processor_that_multiplies_bf16_trains_in_it(
    able: dict[str, bool], given: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    found = careful_defaults(23_000_000, 4_000, 2, {"use_cpu": True, **given})["bf16"]
    assert found.value is expected
    words = "fp16" if "fp16" in given else "multiplies" if expected else "does not"
    assert words in found.reason


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_computes_in_what_its_recipe_says(
    bf16: bool, tiny_recipe: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        seen: torch.dtype | None = None

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            layer = model.bert.encoder.layer[0].output.dense
            layer.register_forward_hook(lambda _m, _i, out: setattr(self, "seen", out.dtype))

    watch = Watch()
    keys = {"bf16": str(bf16), "num_train_epochs": "1", "max_steps": "2"}
    # After one of the other precision in the same process.
    load_recipe(tiny_recipe, {"bf16": str(not bf16)})
    run = train(recipe_at(tiny_recipe, tmp_path / "run", **keys), callbacks=[watch])
    assert watch.seen is (torch.bfloat16 if bf16 else torch.float32)
    # What the export allows for.
    assert run.record["mixed_precision"] == ("bf16" if bf16 else "no")
    # What is saved, and what learns, is fp32 in any case.
    from safetensors.torch import load_file

    weights = load_file(run.checkpoint / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_over_the_mean_of_a_small_encoder_the_rate_is_lower() -> None:
    def found(parameters: int, pooling: Any) -> tuple[float, float]:
        defaults = careful_defaults(parameters, 9_000, 77, {}, pooling=pooling)
        return defaults["head_lr_factor"].value, defaults["learning_rate"].value

    assert found(23_000_000, "mean") == (1.0, 1e-4)
    assert found(23_000_000, "model") == (1.0, 3e-4)


@pytest.mark.parametrize(
    ("rows", "share", "reason"),
    [
        (48, 0.1, "48 rows are few"),
        (400, 0.15, "at least 60, to calibrate by"),
        (616, 0.1, "at least 60, to calibrate by"),
        (1_266, 0.127, "at least 160, to judge int8 by"),
        (10_003, 0.1, "at least 160, to judge int8 by"),
    ],
)
def test_the_validation_share_suits_what_the_rows_are_for(
    rows: int, share: float, reason: str
) -> None:
    found = validation_share(rows)
    assert found.value == share and reason in found.reason


def test_few_validation_rows_stop_nothing() -> None:
    few, many = (careful_defaults(23_000_000, 2_000, 8, {}, validation=n) for n in (100, 300))
    assert few["early_stopping_patience"].value == 0
    assert "100 validation rows do not tell" in few["early_stopping_patience"].reason
    assert many["early_stopping_patience"].value == 3


def test_the_example_has_validation_rows_enough_for_the_gates() -> None:
    recipe = load_recipe(EXAMPLE / "recipe.yaml", {})
    data = load_data(recipe.data, 42)
    assert len(data.validation) >= 150
    assert len(data.validation) < 0.15 * len(data.train)


def test_the_head_learns_at_the_rate_that_is_asked_for(tiny_recipe: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        rates: frozenset[float] = frozenset()

        def on_step_begin(self, *_: Any, optimizer: Any, model: Any, **__: Any) -> None:
            head = {id(p) for name, p in model.named_parameters() if name.startswith("classifier.")}
            self.rates |= {
                round(group["initial_lr"] / 0.002, 3)
                for group in optimizer.param_groups
                if head & {id(p) for p in group["params"]}
            }

    watch = Watch()
    keys = {"head_lr_factor": "5", "max_steps": "2"}
    train(recipe_at(tiny_recipe, tmp_path / "run", **keys), callbacks=[watch])
    assert watch.rates == {5.0}


def test_an_unfinished_run_goes_on_only_as_it_was_begun(tiny_recipe: Path, tmp_path: Path) -> None:
    """What is computed may be another on another device or by another version."""
    recipe = recipe_at(tiny_recipe, tmp_path / "run", num_train_epochs="1")
    run = train(recipe)
    record = json.loads((run.folder / RECORD).read_text("utf-8"))
    settled = record["settled"]
    assert settled["pooling"] == "model"

    def again(**changed: Any) -> None:
        left = record | {"finished": False, "settled": settled | changed}
        (run.folder / RECORD).write_text(json.dumps(left), "utf-8")
        train(recipe)

    with pytest.raises(RunError, match=r"begun with pooling mean, and what is .* is model"):
        again(pooling="mean")
    with pytest.raises(RunError, match=r"head_lr_factor 10\.0, and what is .* is 1\.0"):
        again(head_lr_factor=10.0)
    again()


def test_bf16_where_it_is_emulated_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    (found,) = warnings_about({"bf16": True, "use_cpu": True}, 23_000_000)
    assert "no instructions for it" in found
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert not warnings_about({"bf16": True, "use_cpu": True}, 23_000_000)


def test_a_process_trains_on_one_gpu_of_several(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    use_one_gpu(arguments)
    assert not caplog.text
    arguments._n_gpu = 8
    assert arguments.train_batch_size == 8 * arguments.per_device_train_batch_size
    use_one_gpu(arguments)
    assert arguments.train_batch_size == arguments.per_device_train_batch_size
    assert "torchrun --nproc_per_node 8" in caplog.text


def test_the_arguments_of_a_run_are_for_one_gpu(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_at(tiny_recipe, tmp_path / "run")

    def with_several(values: Any) -> TrainingArguments:
        arguments = parse_training_arguments(values)
        arguments._n_gpu = 8
        return arguments

    monkeypatch.setattr("training.train.parse_training_arguments", with_several)
    arguments, _, _ = settle(
        recipe, 1_000_000, load_data(recipe.data, 0), "model", RowSizes(100, 32)
    )
    assert arguments.n_gpu == 1


def test_processes_share_a_batch() -> None:
    def size(processes: int) -> Any:
        found = careful_defaults(23_000_000, 4_000, 2, {}, processes=processes)
        return found["per_device_train_batch_size"].value

    assert [size(processes) for processes in (1, 2, 16, 64)] == [16, 8, 1, 1]
