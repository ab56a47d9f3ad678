"""The computed hyperparameters suit the model, the rows and the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from tests.training.finetuning.test_train import recipe_at
from training.common.errors import RecipeError
from training.data.dataset import load_data
from training.data.encoding import RowSizes
from training.finetuning.defaults import Workload, default_hyperparameters, warnings_about
from training.finetuning.formulas import batch_size, learning_rate
from training.finetuning.settings import resolve_hyperparameters, use_one_gpu
from training.finetuning.train import train
from training.recipe.load import parse_training_arguments


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
def test_impossible_keys_of_the_fine_tuning_are_refused(
    tiny_recipe: Path, tmp_path: Path, keys: dict[str, str], reason: str | None
) -> None:
    keys = keys | {"num_train_epochs": "1"}
    if reason is None:
        assert train(recipe_at(tiny_recipe, tmp_path / "run", **keys)).record["finished"]
        return
    with pytest.raises(RecipeError, match=reason):
        train(recipe_at(tiny_recipe, tmp_path / "run", **keys))
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_that_makes_the_model_forget_is_warned_of(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    given = {"learning_rate": 4e-4}
    (sentence,) = warnings_about(given, 110_000_000)
    assert "0.0004 is above 0.0001" in sentence and "2e-05 is the default" in sentence
    assert not warnings_about(given, 23_000_000)
    assert not warnings_about({"learning_rate": 5e-5}, 110_000_000)
    assert not warnings_about({}, 110_000_000)


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
def test_labels_with_few_rows_are_trained_for_more_epochs(
    rows: int, labels: int, assigned: int, expected: int
) -> None:
    workload = Workload(23_000_000, rows, labels, assigned_labels=assigned)
    found = default_hyperparameters(workload, {})
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


def test_batches_follow_the_rows_seen_in_all_epochs() -> None:
    def batch(labels: int) -> Any:
        found = default_hyperparameters(Workload(23_000_000, 7_000, labels), {"use_cpu": True})
        return found["per_device_train_batch_size"].value

    assert (batch(2), batch(77)) == (32, 64)
    # As often as the recipe says.
    many = Workload(23_000_000, 7_000, 77)
    given = {"use_cpu": True, "num_train_epochs": 1}
    found = default_hyperparameters(many, given)
    assert found["per_device_train_batch_size"].value == 16
    found = default_hyperparameters(many, given | {"num_train_epochs": 30})
    assert found["early_stopping_patience"].value == 15


def test_batches_of_long_rows_have_fewer_rows() -> None:
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
        workload = Workload(110_000_000, 200, 2, sizes=sizes)
        defaults = default_hyperparameters(workload, {"use_cpu": True, **given})
        return [defaults[key].value for key in keys]

    passes, batch, rate = found()
    # 100 rows a label are seen ten times: long ones are more steps, and no fewer passes.
    assert (passes, batch) == (10, 16)
    assert found(6_000) == [10, 32, rate]
    # 20 rows of one window each are two steps a pass.
    few = [
        default_hyperparameters(Workload(23_000_000, 20, 2, sizes=RowSizes(n, 256)), {})
        for n in (20, 400)
    ]
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
        workload = Workload(110_000_000, 4_000, 2)
        return default_hyperparameters(workload, given)["learning_rate"].value

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
    workload = Workload(23_000_000, 4_000, 2)
    found = default_hyperparameters(workload, {"use_cpu": True, **given})["bf16"]
    assert found.value is expected
    words = "fp16" if "fp16" in given else "multiplies" if expected else "does not"
    assert words in found.reason


def test_over_the_mean_of_a_small_encoder_the_rate_is_lower() -> None:
    def found(parameters: int, pooling: Any) -> tuple[float, float]:
        defaults = default_hyperparameters(Workload(parameters, 9_000, 77, pooling=pooling), {})
        return defaults["head_lr_factor"].value, defaults["learning_rate"].value

    assert found(23_000_000, "mean") == (1.0, 1e-4)
    assert found(23_000_000, "model") == (1.0, 3e-4)


def test_few_validation_rows_stop_nothing() -> None:
    few, many = (
        default_hyperparameters(Workload(23_000_000, 2_000, 8, validation_rows=n), {})
        for n in (100, 300)
    )
    assert few["early_stopping_patience"].value == 0
    assert "100 validation rows do not tell" in few["early_stopping_patience"].reason
    assert many["early_stopping_patience"].value == 3


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

    monkeypatch.setattr("training.finetuning.settings.parse_training_arguments", with_several)
    arguments, _, _ = resolve_hyperparameters(
        recipe, 1_000_000, load_data(recipe.data, 0), "model", RowSizes(100, 32)
    )
    assert arguments.n_gpu == 1


def test_processes_share_a_batch() -> None:
    def size(processes: int) -> Any:
        found = default_hyperparameters(Workload(23_000_000, 4_000, 2, processes=processes), {})
        return found["per_device_train_batch_size"].value

    assert [size(processes) for processes in (1, 2, 16, 64)] == [16, 8, 1, 1]
