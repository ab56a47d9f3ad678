"""Training: it learns, keeps what it made, can be interrupted, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.conftest import example_rows, write_csv
from training.common.errors import BaseModelError
from training.common.layout import CHECKPOINT, RECORD, RESOLVED_RECIPE
from training.evaluation.metrics import validation_metrics
from training.finetuning.callbacks import StopEarly
from training.finetuning.resume import last_checkpoint
from training.finetuning.train import train
from training.recipe.load import load_recipe

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


def test_computed_keys_are_written_with_their_reason(tiny_run_folder: Path) -> None:
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


def test_the_same_recipe_gives_the_same_version(tiny_recipe: Path, tmp_path: Path) -> None:
    from service.package.manifest import read_manifest
    from training.export.package import export

    versions = []
    for name in ("one", "other"):
        run = train(recipe_at(tiny_recipe, tmp_path / name, num_train_epochs="1"))
        versions.append(read_manifest(export(run)).version)
    assert versions[0] == versions[1]


def test_kept_last_weights_are_recorded_as_the_last_step(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"num_train_epochs": "2", "load_best_model_at_end": "false", "report_to": "none"}
    run = train(recipe_at(tiny_recipe, tmp_path / "run", **keys))
    assert run.record["kept_step"] == run.record["evaluations"][-1]["step"]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_regression_over_the_frozen_encoder_is_kept_where_it_is_better(
    telling_base: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def falling(*given: Any) -> dict[str, float]:
        return validation_metrics(*given) | {"macro_f1": 0.9 if not evaluated else 0.3}

    evaluated: list[int] = []
    monkeypatch.setattr("training.finetuning.trainer.validation_metrics", falling)

    class Look(TrainerCallback):
        def on_evaluate(self, *_: Any, **__: Any) -> None:
            evaluated.append(1)

    keys = {"num_train_epochs": "2", "model_name_or_path": str(telling_base), "pooling": "mean"}
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **keys)
    # Killed after the last step: what is kept has to be made anew.
    with monkeypatch.context() as patched:
        patched.setattr("training.finetuning.train.finish", lambda *_: 1 / 0)
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
