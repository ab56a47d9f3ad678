"""Every key of TrainingArguments is refused with its reason, or does what it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from training.common.errors import RecipeError
from training.common.layout import RESOLVED_RECIPE
from training.finetuning.train import train
from training.recipe.load import load_recipe
from training.recipe.refused_keys import REFUSED

# Refused for what they would write, whatever their value: `training.recipe.load` says it.
SECRETS = {"hub_token", "push_to_hub_token"}
# With another value than its default each of these trains, all of a row together.
ACCEPTED_ON_A_CPU = {
    "rates": {
        "learning_rate": 0.002,
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "warmup_steps": 2,
        "warmup_ratio": 0.1,
        "weight_decay": 0.02,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-7,
        "max_grad_norm": 0.5,
        "optim": "adamw_torch",
        "optim_args": "amsgrad=True",
        "max_steps": 12,
        "num_train_epochs": 2,
        "seed": 7,
        "data_seed": 8,
        "full_determinism": True,
        "label_smoothing_factor": 0.1,
        "neftune_noise_alpha": 1.0,
        "use_cpu": True,
        "output_dir": None,
    },
    "batches": {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "eval_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "group_by_length": False,
        "auto_find_batch_size": True,
        "dataloader_num_workers": 1,
        "dataloader_prefetch_factor": 1,
        "dataloader_persistent_workers": True,
        "dataloader_pin_memory": True,
        "include_tokens_per_second": True,
        "include_num_input_tokens_seen": True,
        "average_tokens_across_devices": False,
        "torch_empty_cache_steps": 5,
    },
    "evaluations": {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_delay": 4,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 1,
        "save_only_model": True,
        "save_safetensors": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "skip_memory_metrics": False,
    },
    "logs": {
        "log_level": "error",
        "log_level_replica": "error",
        "log_on_each_node": False,
        "logging_dir": None,
        "logging_strategy": "steps",
        "logging_steps": 3,
        "logging_first_step": True,
        "report_to": "none",
        "run_name": "mine",
        "debug": "underflow_overflow",
    },
}
# What needs a GPU, several processes, or a package that is not installed here.
ACCEPTED_ELSEWHERE = {
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
    *("ddp_timeout", "optim_target_modules", "use_liger_kernel", "liger_kernel_config"),
    *("project", "trackio_space_id"),
}


def test_every_key_of_training_arguments_is_known() -> None:
    accepted = {key for keys in ACCEPTED_ON_A_CPU.values() for key in keys} | ACCEPTED_ELSEWHERE
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert accepted | set(REFUSED) | SECRETS == known
    assert not accepted & set(REFUSED)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_without_a_meaning_is_refused_with_its_reason(key: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: a\ntrain_file: a.csv\n{key}: true\n", "utf-8")
    with pytest.raises(RecipeError) as in_file:
        load_recipe(recipe, {})
    assert f"{key} in {recipe} has no meaning here: {REFUSED[key]}" in str(in_file.value)
    with pytest.raises(RecipeError) as on_the_line:
        load_recipe(None, {"name": "a", "train_file": "a.csv", key: "true"})
    assert f"{key} on the command line has no meaning here" in str(on_the_line.value)


@pytest.mark.parametrize("group", ACCEPTED_ON_A_CPU)
def test_the_other_keys_train(group: str, tiny_recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_recipe.read_text("utf-8")) | {"num_train_epochs": 1}
    content["train_file"] = str(tiny_recipe.parent / "train.csv")
    del content["test_file"]
    content |= ACCEPTED_ON_A_CPU[group]
    for key in ("output_dir", "logging_dir"):
        if key in content:
            content[key] = str(tmp_path / key)
    content["output_dir"] = str(tmp_path / "run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), "utf-8")
    run = train(load_recipe(recipe, {}))
    assert run.record["finished"]
    # What a run says of itself can be trained by.
    again = load_recipe(run.folder / RESOLVED_RECIPE, {})
    assert {**content, **again.training}.keys() >= ACCEPTED_ON_A_CPU[group].keys()
