"""A rehearsal before the training: every step on the way to a package, with a few rows.

An error that would come up after hours, or with the callers of a server, is one sentence before the
first step. The rehearsal tries the loss and its gradients, the optimizer, an evaluation, the
loggers, the export, and whether the graph answers as the model does. The last two cost most: their
success is remembered for the base, for the keys of the recipe that decide the graph, and for the
versions of the libraries.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from service.package.files import write_text
from training.common.distributed import is_main_process
from training.common.errors import BaseModelError, DivergedError, RecipeError, WhetstoneError
from training.common.full_disk import full_disk_in_a_sentence
from training.common.layout import CHECKPOINT
from training.data.splits import Split
from training.export.draft import VERSIONED_PACKAGES
from training.export.package import prove
from training.finetuning.plan import TrainingPlan
from training.finetuning.record import TrainedRun
from training.finetuning.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from training.finetuning.fine_tuner import FineTuner

# The first of them is the longest.
TRAIN_ROWS = 4
VALIDATION_ROWS = 8
# Beside those that are too long, and odd ones.
PARITY_TEXTS = 4


def rehearse(plan: TrainingPlan) -> None:
    """Try every step with a few rows; the weights of the model stay as they are.

    All processes call it, and the main process exports.

    Raises:
        WhetstoneError: a step fails; nothing has been trained or written by then.
    """
    started = time.process_time()
    _start_loggers(plan.arguments)
    with (
        tempfile.TemporaryDirectory(prefix="whetstone-rehearsal-") as temporary,
        full_disk_in_a_sentence(Path(temporary), "give the same command again"),
    ):
        small = _with_few_rows(plan, Path(temporary))
        trainer = _train_a_step(small)
        if is_main_process():
            file = _memory_of(plan)
            if file is None or not file.is_file():
                evidence = _export(small, trainer, Path(temporary))
                seconds = time.process_time() - started
                tqdm.write(
                    "rehearsal with a few rows: from loss to graph everything fits "
                    f"({seconds:.1f} CPU-seconds)",
                    file=sys.stderr,
                )
                if file is not None:
                    _remember(file, evidence)


def _start_loggers(arguments: TrainingArguments) -> None:
    """Make the loggers that `report_to` names, as the Trainer will.

    Raises:
        RecipeError: a logger is unknown, or its package is not installed.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for logger in get_reporting_integration_callbacks(arguments.report_to):
            logger()
    except Exception as error:  # each logger raises its own kind
        raise RecipeError(
            f"report_to: {', '.join(arguments.report_to or ())} cannot be used ({_reason(error)}): "
            "install it, or name another one, or none"
        ) from error


def _with_few_rows(plan: TrainingPlan, folder: Path) -> TrainingPlan:
    """The plan for a few rows and one small step, in a folder of its own, without loggers."""
    few = dataclasses.replace(
        plan.data,
        train=_varied_rows(plan.data.train, TRAIN_ROWS),
        validation=_varied_rows(plan.data.validation, VALIDATION_ROWS),
        test=None,
    )
    arguments = copy.copy(plan.arguments)
    arguments.output_dir, arguments.logging_dir = str(folder / CHECKPOINT), str(folder)
    arguments.report_to, arguments.torch_compile = [], False
    arguments.per_device_train_batch_size = TRAIN_ROWS
    arguments.gradient_accumulation_steps = 1
    return dataclasses.replace(plan, data=few, arguments=arguments)


def _varied_rows(split: Split, most: int) -> Split:
    """The longest row, and others of as many labels as possible."""
    lengths = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in split.texts]
    first = int(np.argmax(lengths))
    by_label: dict[tuple[str, ...], int] = {}
    for row, labels in enumerate(split.labels):
        by_label.setdefault(labels, row)
    others = dict.fromkeys((*by_label.values(), *range(min(most, len(split)))))
    return split.take(np.asarray([first, *(row for row in others if row != first)][:most]))


def _train_a_step(plan: TrainingPlan) -> FineTuner:
    """Loss, gradients, optimizer and an evaluation, by a Trainer like the one that will train.

    Raises:
        WhetstoneError: one of them fails, or is not finite.
    """
    name, arguments = plan.base.name, plan.arguments
    with _in_a_sentence(name, "be trained"):
        trainer = make_trainer(plan)
        trainer.create_optimizer_and_scheduler(1)
        rows = iter(trainer.get_train_dataloader())
        (batch,), items = trainer.get_batch_samples(rows, 1, arguments.device)
        trainer.current_gradient_accumulation_steps = 1
        try:
            trainer.training_step(plan.model, batch, items)
        except DivergedError as error:
            raise BaseModelError(
                f"the loss of {name} is not a finite number before it has learned anything: "
                f"choose another base model{', or fp32' if _is_half(arguments) else ''}"
            ) from error
        # In fp16 the first scale overflows on purpose.
        if trainer.accelerator.scaler is None:
            _refuse_gradients(name, plan.model)
        plan.model.zero_grad()
    with _in_a_sentence(name, "be evaluated"):
        trainer.evaluate()
    return trainer


def _refuse_gradients(name: str, model: PreTrainedModel) -> None:
    for weight, values in model.named_parameters():
        if values.grad is not None and not values.grad.isfinite().all():
            raise BaseModelError(
                f"the gradient of {weight} of {name} is not a finite number before it has learned "
                "anything: choose another base model"
            )


def _is_half(arguments: TrainingArguments) -> bool:
    return bool(arguments.bf16 or arguments.fp16)


def _export(plan: TrainingPlan, trainer: FineTuner, folder: Path) -> dict[str, Any]:
    """Save, export, and compare the graph with the checkpoint.

    Raises:
        WhetstoneError: the graph cannot be made, or does not answer as the model does.
    """
    record: dict[str, Any] = {
        "max_length": plan.text_encoding.max_length,
        "window_stride": plan.text_encoding.window_stride,
        "base_model": {},
        "training_arguments": {},
        "evaluations": [],
        "device": str(plan.arguments.device),
        "seconds": 0.0,
    }
    with _in_a_sentence(plan.base.name, "be exported"):
        trainer.save_model(str(folder / CHECKPOINT))
        run = TrainedRun(folder, plan.recipe, plan.data, record)
        *_, evidence = prove(run, plan.data.validation.texts[:PARITY_TEXTS], folder, fresh=True)
    return evidence


@contextmanager
def _in_a_sentence(name: str, step: str) -> Iterator[None]:
    """Blame the base model for whatever a library raises: with the embedded one nothing does."""
    try:
        yield
    except WhetstoneError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"{name} cannot {step}, as a rehearsal with a few rows has shown ({_reason(error)}): "
            "choose another base model"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _memory_of(plan: TrainingPlan) -> Path | None:
    """The file that says that this graph was proven; None where that cannot be recognized again."""
    from huggingface_hub import cached_assets_path

    if plan.base_sha256 is None or plan.recipe.model.trust_remote_code:
        return None
    state = json.loads(plan.tokenizer.backend_tokenizer.to_str())
    content = [
        plan.base_sha256,
        plan.model.config.to_dict(),
        # With every call a tokenizer changes what it says of truncation and padding.
        state | {"truncation": None, "padding": None},
        plan.tokenizer.model_input_names,
        dataclasses.asdict(plan.recipe.model),
        dataclasses.asdict(plan.text_encoding),
        plan.data.has_pairs,
        {package: importlib.metadata.version(package) for package in VERSIONED_PACKAGES},
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    try:
        return Path(cached_assets_path("whetstone", "rehearsals")) / f"{digest}.json"
    except OSError:
        return None


def _remember(file: Path, evidence: dict[str, Any]) -> None:
    """Write the evidence; where that is not possible, the next run rehearses again."""
    try:
        write_text(file, json.dumps(evidence, indent=2) + "\n")
    except OSError:
        file.unlink(missing_ok=True)
