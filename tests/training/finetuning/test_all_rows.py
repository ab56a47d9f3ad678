"""Few rows: a second training on all of them, measured and calibrated by the first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from service.inference.classifier import Classifier
from service.package.manifest import CARD_FILE, read_manifest
from tests.training.finetuning.test_train import recipe_at
from training.common.errors import InterruptedRunError
from training.common.layout import HELD_OUT, RECORD, RESOLVED_RECIPE
from training.data.encoding import make_targets
from training.evaluation.evaluate import evaluate_validation
from training.evaluation.metrics import validation_metrics
from training.export.package import export, held_out_logits
from training.finetuning.all_rows import kept_epoch
from training.finetuning.defaults import Workload, default_hyperparameters
from training.finetuning.record import TrainedRun, read_record
from training.finetuning.train import train

KEYS = {"train_on_all_rows": "true", "num_train_epochs": "3"}


@pytest.fixture(scope="module")
def run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A finished run, with its package."""
    finished = train(recipe_at(tiny_recipe, tmp_path_factory.mktemp("all-rows") / "run", **KEYS))
    export(finished)
    return finished


def weights_of(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def test_the_second_training_has_all_rows_and_the_first_one_is_kept(
    run: TrainedRun, tiny_recipe: Path, tmp_path: Path
) -> None:
    assert run.record["all_rows"]["rows"] == len(run.data.train) + len(run.data.validation)
    assert run.held_out_checkpoint == run.folder / HELD_OUT
    alone = train(recipe_at(tiny_recipe, tmp_path / "run", **KEYS | {"train_on_all_rows": "false"}))
    assert alone.held_out_checkpoint is None
    first, second = weights_of(run.folder / HELD_OUT), weights_of(run.checkpoint)
    expected = weights_of(alone.checkpoint)
    assert all((first[name] == expected[name]).all() for name in expected)
    assert not all((first[name] == second[name]).all() for name in second)
    # The Trainer's own checkpoints of both trainings are gone.
    assert not list(run.folder.rglob("checkpoint-*"))


@pytest.mark.parametrize("killed_at", [10, 100])
def test_a_run_that_is_interrupted_in_either_training_ends_with_the_same_weights(
    run: TrainedRun, tiny_recipe: Path, tmp_path: Path, killed_at: int
) -> None:
    class Interrupt(TrainerCallback):
        """Ctrl-C at a step of both trainings together."""

        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps += 1
            if self.steps == killed_at:
                raise KeyboardInterrupt

    recipe = recipe_at(tiny_recipe, tmp_path / "run", **KEYS)
    first_steps = run.record["kept_step"]
    assert 10 < first_steps < 100 < first_steps + run.record["all_rows"]["steps"]
    with pytest.raises((InterruptedRunError, KeyboardInterrupt)):
        train(recipe, callbacks=[Interrupt()])
    assert (tmp_path / "run" / HELD_OUT).exists() == (killed_at == 100)
    continued = train(recipe)
    expected, found = weights_of(run.checkpoint), weights_of(continued.checkpoint)
    assert all((found[name] == expected[name]).all() for name in expected)
    assert continued.record["evaluations"] == run.record["evaluations"]


def test_a_second_training_that_was_killed_after_its_last_step_trains_no_further(
    run: TrainedRun, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = run.record["all_rows"]["steps"] // 3
    # A checkpoint at the very step at which the training is over, after one of three epochs.
    monkeypatch.setattr("training.finetuning.all_rows.STEPS_BETWEEN", steps)
    monkeypatch.setattr("training.finetuning.train.kept_epoch", lambda record: 1.0)
    whole = train(recipe_at(tiny_recipe, tmp_path / "whole", **KEYS))
    recipe = recipe_at(tiny_recipe, tmp_path / "killed", **KEYS)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.finetuning.fine_tuner.FineTuner.predict", killed)
        train(recipe)
    assert (tmp_path / "killed" / "checkpoint" / f"checkpoint-{steps}").is_dir()
    continued = train(recipe)
    assert continued.record["all_rows"] == whole.record["all_rows"]
    assert continued.record["all_rows"]["steps"] == steps
    expected, found = weights_of(whole.checkpoint), weights_of(continued.checkpoint)
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_part_of_an_epoch_is_as_long_in_the_second_training(
    tiny_recipe: Path, tmp_path: Path, run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.finetuning.train.kept_epoch", lambda record: 0.5)
    half = train(recipe_at(tiny_recipe, tmp_path / "run", **KEYS))
    an_epoch = run.record["all_rows"]["steps"] / 3
    assert half.record["all_rows"]["steps"] == pytest.approx(an_epoch / 2, abs=1)


def test_a_precision_is_not_promised_of_rows_that_the_model_was_trained_on(
    run: TrainedRun, tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workload = Workload(1, 100, 2, validation_rows=20, set_aside=True, promises=True)
    assert default_hyperparameters(workload, {})["train_on_all_rows"].value is False
    shutil.copytree(run.folder, tmp_path / "run")
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **KEYS, abstain_precision="0.5")
    package = export(train(recipe))
    promise = read_manifest(package).calibration["promises"]["abstention"]
    assert (promise["promised"], promise["of_another_model"]) == (False, True)
    assert "was trained on the validation rows, too" in caplog.text


def test_the_package_is_measured_and_calibrated_by_the_first_model(run: TrainedRun) -> None:
    rows = run.data.validation
    classifier = Classifier.load(run.folder / "package")
    logits = held_out_logits(run, classifier.encode(rows.texts))
    assert logits is not None
    targets = make_targets(rows, run.data.labels, run.data.task)
    unseen = validation_metrics(logits, targets, run.data.task)["accuracy"]
    manifest = read_manifest(run.folder / "package")
    headline = manifest.metrics["validation"]
    assert headline["accuracy"] == pytest.approx(unseen)
    assert "trained without them" in headline["rests_on"]
    metrics, _ = evaluate_validation(classifier, run.recipe.export, rows, logits)
    assert headline["brier"] == pytest.approx(metrics["calibration"]["brier"])
    flattered, _ = evaluate_validation(classifier, run.recipe.export, rows)
    assert flattered["calibration"]["brier"] < metrics["calibration"]["brier"]
    assert manifest.provenance["dataset"]["trained_on_all_rows"] is True
    card = (run.folder / "package" / CARD_FILE).read_text("utf-8")
    assert "trained on all of these rows" in card


def test_rows_that_the_model_has_seen_do_not_pass_a_graph_in_reduced_precision(
    run: TrainedRun, tiny_recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    loose = "{max_half_width: 1, max_drift: 1, min_agreement: 0, max_macro_f1_drop: 1}"
    recipe = recipe_at(tiny_recipe, tmp_path / "run", **KEYS, gates=loose)
    package = export(train(recipe))
    selection = read_manifest(package).selection
    verdicts = {each["name"]: each for each in selection["candidates"]}
    assert verdicts["int8"]["verdict"] == "inconclusive"
    assert "trained on the validation rows" in verdicts["int8"]["reasons"][0]
    assert selection["chosen"] == "fp32"
    # Scores of rows that it was trained on say nothing.
    assert all("macro_f1" not in each for each in verdicts.values())
    card = (package / CARD_FILE).read_text("utf-8")
    assert "| int8 | inconclusive |  |" in card


def test_a_run_without_its_first_checkpoint_is_not_finished(
    run: TrainedRun, tmp_path: Path
) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    assert read_record(folder)["finished"]
    shutil.rmtree(folder / HELD_OUT)
    assert not read_record(folder)["finished"]
    assert (folder / RECORD).is_file()


def test_the_resolved_recipe_says_why(tiny_recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_recipe.read_text("utf-8"))
    del content["train_on_all_rows"]
    open_recipe = tiny_recipe.with_name("all-rows.yaml")
    open_recipe.write_text(yaml.safe_dump(content), "utf-8")
    run = train(recipe_at(open_recipe, tmp_path / "run", num_train_epochs="1"))
    assert run.held_out_checkpoint is not None
    resolved = (run.folder / RESOLVED_RECIPE).read_text("utf-8")
    assert "train_on_all_rows: true  # " in resolved
    assert "rows are too many to leave out" in resolved


@pytest.mark.parametrize(
    ("set_aside", "rows", "expected"), [(True, 60, True), (True, 160, False), (False, 60, False)]
)
def test_rows_are_trained_on_where_they_were_set_aside_and_are_too_few_for_the_gates(
    set_aside: bool, rows: int, expected: bool
) -> None:
    workload = Workload(
        parameters=23_000_000, rows=500, labels=4, validation_rows=rows, set_aside=set_aside
    )
    default = default_hyperparameters(workload, {})["train_on_all_rows"]
    assert default.value is expected


def test_an_epoch_that_the_first_training_kept_is_where_the_second_one_stops() -> None:
    evaluations = [{"step": 4, "epoch": 1.0}, {"step": 8, "epoch": 2.0}]
    assert kept_epoch({"evaluations": evaluations, "kept_step": 4}) == 1.0
    assert kept_epoch({"evaluations": evaluations, "kept_step": 8}) is None
    assert kept_epoch({"evaluations": [], "kept_step": 8}) is None


def test_the_second_training_stops_at_the_kept_epoch(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[float] = []

    def falling(*given: Any) -> dict[str, float]:
        evaluated.append(1.0 - len(evaluated) / 5)
        return validation_metrics(*given) | {"macro_f1": evaluated[-1]}

    monkeypatch.setattr("training.finetuning.trainer.validation_metrics", falling)
    run = train(recipe_at(tiny_recipe, tmp_path / "run", **KEYS))
    first, *_ = run.record["evaluations"]
    assert run.record["kept_step"] == first["step"]
    steps_of_an_epoch = -(-run.record["all_rows"]["rows"] // 16)
    assert run.record["all_rows"]["steps"] == steps_of_an_epoch
