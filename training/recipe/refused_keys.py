"""Keys of `transformers.TrainingArguments` that have no meaning here, or another one, and why.

Every other key does what its documentation says; `tests/training/recipe/test_refused_keys.py` lists
them all.
"""

from __future__ import annotations

from collections.abc import Iterable

from training.common.errors import RecipeError

_COMMANDS = "the command decides it: train, evaluate, predict"
_METRICS = "the checkpoint is chosen by metrics of the logits of all validation rows"
_PUBLISH = "what ships is the package, by `whetstone run --publish URL`"
_SHARDED = "models here are below 2 GB, so that each GPU holds a whole one"
_TPU = "TPUs are not supported"
_HALF = "bf16: true or fp16: true is PyTorch's own mixed precision, and all there is"
_CONTINUED = "the same command continues a run by itself, from its last whole checkpoint"
_FEED = "the rows have the columns that the model reads, and their targets"

REFUSED = {
    "overwrite_output_dir": "--overwrite on the command line replaces what a run folder holds",
    "do_train": _COMMANDS,
    "do_eval": _COMMANDS,
    "do_predict": _COMMANDS,
    # What the metrics need.
    "prediction_loss_only": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "include_for_metrics": _METRICS,
    "include_inputs_for_metrics": _METRICS,
    "eval_use_gather_object": _METRICS,
    "use_legacy_prediction_loop": _METRICS,
    "jit_mode_eval": _METRICS,
    "dataloader_drop_last": "evaluations would lose rows, too",
    "bf16_full_eval": "bf16: true is for evaluations, too",
    "fp16_full_eval": "fp16: true is for evaluations, too",
    # What the model is fed.
    "label_names": f"{_FEED}; label_column names the labels of a file",
    "remove_unused_columns": _FEED,
    "length_column_name": f"{_FEED}; group_by_length: true needs no other",
    "past_index": "no model here remembers earlier texts",
    # How a run is continued, and what it writes.
    "resume_from_checkpoint": _CONTINUED,
    "ignore_data_skip": f"{_CONTINUED}, with the rows that are next",
    "restore_callback_states_from_checkpoint": _CONTINUED,
    "save_on_each_node": "the nodes share one run folder, in which the first one writes",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "disable_tqdm": "the environment variable TQDM_DISABLE=1 turns all bars off",
    "push_to_hub": _PUBLISH,
    "hub_model_id": _PUBLISH,
    "hub_strategy": _PUBLISH,
    "hub_private_repo": _PUBLISH,
    "hub_always_push": _PUBLISH,
    "hub_revision": f"{_PUBLISH}; model_revision is the base model's",
    "push_to_hub_model_id": _PUBLISH,
    "push_to_hub_organization": _PUBLISH,
    # Devices and processes.
    "local_rank": "torchrun and `accelerate launch` tell each process",
    "accelerator_config": "the processes share a batch in one way, with which a run is continued",
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "fsdp_min_num_params": _SHARDED,
    "fsdp_transformer_layer_cls_to_wrap": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "mp_parameters": _SHARDED,
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": _TPU,
    "ray_scope": "tune searches with Optuna",
    # What transformers itself has replaced.
    "no_cuda": "use_cpu: true is its new name",
    "use_mps_device": "a device of Apple's is used where there is one; use_cpu: true leaves it",
    "per_gpu_train_batch_size": "per_device_train_batch_size is its new name",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size is its new name",
    "adafactor": "optim: adafactor is its new name",
    "torchdynamo": "torch_compile: true with torch_compile_backend is its new name",
    "fp16_backend": _HALF,
    "fp16_opt_level": _HALF,
    "half_precision_backend": _HALF,
}


def refuse_meaningless(keys: Iterable[str], where: str) -> None:
    """Refuse the first of `keys` that would be ignored, or would do something else.

    Raises:
        RecipeError: with the reason.
    """
    for key in keys:
        if key in REFUSED:
            raise RecipeError(f"{key} {where} has no meaning here: {REFUSED[key]}; leave it out")
