"""A rehearsal before the training: every step of the way to a package, with a few rows.

What would be found after hours, or by the callers of a server, is one sentence before the first
step: the loss and its gradients, the optimizer, an evaluation, the loggers, the export, and
whether the graph answers as the model. The last two cost most, and are remembered for a base,
what of the recipe decides the graph, and the versions of the libraries.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from service.model_package import write_text
from training.base_models import BaseModel
from training.config import FineTuningArguments, Recipe
from training.data.dataset import LabelledData
from training.data.encoding import Reading
from training.data.splits import Split
from training.distributed import is_first
from training.errors import BaseModelError, DivergedError, RecipeError, WhetstoneError
from training.export import VERSIONED_PACKAGES, prove
from training.full_disk import full_disk_in_a_sentence
from training.layout import CHECKPOINT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

    from training.train import FineTuner

# Of which the first is the longest.
TRAIN_ROWS = 4
VALIDATION_ROWS = 8
# Beside those that are too long, and odd.
PARITY_TEXTS = 4


@dataclass(frozen=True)
class Rehearsal:
    """What is about to be trained; `base_sha256` is that of the base's weights, where known."""

    recipe: Recipe
    base: BaseModel
    base_sha256: str | None
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    data: LabelledData
    reading: Reading
    arguments: TrainingArguments
    tuning: FineTuningArguments
    weights: list[float] | None


def rehearse(given: Rehearsal) -> None:
    """Try everything with a few rows; the weights of the model stay as they are.

    Of several processes all come here, and the first one exports.

    Raises:
        WhetstoneError: what would fail, before it has cost anything.
    """
    started = time.process_time()
    _start_loggers(given.arguments)
    few = dataclasses.replace(
        given.data,
        train=_varied(given.data.train, TRAIN_ROWS),
        validation=_varied(given.data.validation, VALIDATION_ROWS),
        test=None,
    )
    with (
        tempfile.TemporaryDirectory(prefix="whetstone-rehearsal-") as temporary,
        full_disk_in_a_sentence(Path(temporary), "give the same command again"),
    ):
        trainer = _learn(given, few, Path(temporary))
        if is_first():
            file = _remembered(given)
            if file is None or not file.is_file():
                evidence = _export(given, few, trainer, Path(temporary))
                seconds = time.process_time() - started
                tqdm.write(
                    "rehearsal with a few rows: from loss to graph everything fits "
                    f"({seconds:.1f} CPU-seconds)",
                    file=sys.stderr,
                )
                if file is not None:
                    _remember(file, evidence)


def _varied(split: Split, most: int) -> Split:
    """The longest row, and others of as many labels as possible."""
    lengths = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in split.texts]
    first = int(np.argmax(lengths))
    by_label: dict[tuple[str, ...], int] = {}
    for row, labels in enumerate(split.labels):
        by_label.setdefault(labels, row)
    others = dict.fromkeys((*by_label.values(), *range(min(most, len(split)))))
    return split.take(np.asarray([first, *(row for row in others if row != first)][:most]))


def _start_loggers(arguments: TrainingArguments) -> None:
    """Make what `report_to` names, as the Trainer will.

    Raises:
        RecipeError: one is unknown, or its package is not installed.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for logger in get_reporting_integration_callbacks(arguments.report_to):
            logger()
    except Exception as error:  # each of them raises its own kind
        raise RecipeError(
            f"report_to: {', '.join(arguments.report_to)} cannot be used ({_reason(error)}): "
            "install it, or name another one, or none"
        ) from error


def _learn(given: Rehearsal, few: LabelledData, folder: Path) -> FineTuner:
    """Loss, gradients, optimizer and an evaluation, by the Trainer that will train.

    Raises:
        WhetstoneError: one of them fails, or is not finite.
    """
    # Which imports this module.
    from training.train import make_trainer

    name = given.base.name
    settings = copy.copy(given.arguments)
    settings.output_dir, settings.logging_dir = str(folder / CHECKPOINT), str(folder)
    settings.report_to, settings.torch_compile = [], False
    settings.per_device_train_batch_size = TRAIN_ROWS
    settings.gradient_accumulation_steps = 1
    with _in_a_sentence(name, "be trained"):
        trainer = make_trainer(
            *(given.model, given.tokenizer, few, settings, given.tuning),
            *(given.reading, given.weights),
        )
        trainer.create_optimizer_and_scheduler(1)
        rows = iter(trainer.get_train_dataloader())
        (batch,), items = trainer.get_batch_samples(rows, 1, settings.device)
        trainer.current_gradient_accumulation_steps = 1
        try:
            trainer.training_step(given.model, batch, items)
        except DivergedError as error:
            raise BaseModelError(
                f"the loss of {name} is not a finite number before it has learned anything: "
                f"choose another base model{', or fp32' if _is_half(settings) else ''}"
            ) from error
        # In fp16 the first scale is one that overflows.
        if trainer.accelerator.scaler is None:
            _refuse_gradients(name, given.model)
        given.model.zero_grad()
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


def _export(
    given: Rehearsal, few: LabelledData, trainer: FineTuner, folder: Path
) -> dict[str, Any]:
    """Save, export, and compare the graph with what was saved.

    Raises:
        WhetstoneError: the graph cannot be made, or does not answer as the model does.
    """
    from training.train import TrainedRun

    record = {
        "max_length": given.reading.max_length,
        "window_stride": given.reading.window_stride,
        "base_model": {},
        "training_arguments": {},
        "evaluations": [],
        "device": str(given.arguments.device),
        "seconds": 0.0,
    }
    with _in_a_sentence(given.base.name, "be exported"):
        trainer.save_model(str(folder / CHECKPOINT))
        run = TrainedRun(folder, given.recipe, few, record)
        *_, evidence = prove(run, few.validation.texts[:PARITY_TEXTS], folder, fresh=True)
    return evidence


@contextmanager
def _in_a_sentence(name: str, done: str) -> Iterator[None]:
    """Whatever a library raises is the base model's: with the embedded one nothing does."""
    try:
        yield
    except WhetstoneError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"{name} cannot {done}, as a rehearsal with a few rows has shown ({_reason(error)}): "
            "choose another base model"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _remembered(given: Rehearsal) -> Path | None:
    """The file that says of this graph that it was proven; None where it cannot be known again."""
    from huggingface_hub import cached_assets_path

    if given.base_sha256 is None or given.recipe.model.trust_remote_code:
        return None
    state = json.loads(given.tokenizer.backend_tokenizer.to_str())
    content = [
        given.base_sha256,
        given.model.config.to_dict(),
        # With every call a tokenizer changes what it says of truncation and padding.
        state | {"truncation": None, "padding": None},
        given.tokenizer.model_input_names,
        dataclasses.asdict(given.recipe.model),
        dataclasses.asdict(given.reading),
        given.data.has_pairs,
        {package: importlib.metadata.version(package) for package in VERSIONED_PACKAGES},
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    try:
        return cached_assets_path("whetstone", "rehearsals") / f"{digest}.json"
    except OSError:
        return None


def _remember(file: Path, evidence: dict[str, Any]) -> None:
    """Where nothing can be written there, the next run rehearses again."""
    try:
        write_text(file, json.dumps(evidence, indent=2) + "\n")
    except OSError:
        file.unlink(missing_ok=True)
