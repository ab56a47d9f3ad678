"""Recipe → Trainer → checkpoint.

    whetstone train examples/support_tickets/recipe.yaml --learning_rate 5e-5

The run folder gets `checkpoint/` (the best epoch by macro-F1, with its tokenizer; while training
goes on, the Trainer's own checkpoints live inside it), `resolved_recipe.yaml` (every key in
force) and `training.json` (what was trained on what, and how it went).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.console import Console
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from service.decisions import aggregate_windows, probabilities
from service.model_package import write_text
from training.base_models import BaseModel, resolve_base_model, start_at_priors
from training.calibrate import check_choices
from training.callbacks import Progress, StopOnRequest
from training.check import look_at
from training.config import FILE_KEYS, ExportArguments, Recipe, parse_training_arguments
from training.data import (
    LabelledData,
    chosen_golden_texts,
    load_data,
    read_rows,
    usable_data,
)
from training.defaults import careful_defaults
from training.encoding import Reading, by_length, encode_split, make_targets, usable_reading
from training.errors import BaseModelError, InterruptedRunError, RecipeError, RunError
from training.exporter import refuse_unexportable_family
from training.findings import find_errors
from training.layout import (
    CHECKPOINT,
    DATA_FILE,
    FINDINGS_FILE,
    RECORD,
    REPORT,
    RESOLVED_RECIPE,
    RUN_FILES,
    RUN_FOLDERS,
)
from training.losses import label_odds, label_weights, weighted_loss
from training.metrics import validation_metrics
from training.preflight_report import draw_data, print_findings, write_findings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

DEFAULT_SEED = 42
EVALUATED = ("loss", "accuracy", "micro_f1", "macro_f1", "average_precision")
# What protobuf, and so one ONNX file, can hold.
LARGEST_GRAPH_BYTES = 2**31


@dataclass(frozen=True)
class TrainedRun:
    """A run folder with a finished checkpoint, and the data it was made from."""

    folder: Path
    recipe: Recipe
    data: LabelledData
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The folder for `from_pretrained`."""
        return self.folder / CHECKPOINT

    @property
    def reading(self) -> Reading:
        """How the checkpoint was trained to read."""
        stride = self.record["window_stride"]
        aggregation = None if stride is None else self.recipe.model.window_aggregation
        return Reading(self.record["max_length"], stride, aggregation)


def train(recipe: Recipe, *, overwrite: bool = False) -> TrainedRun:
    """Train, or go on with a run of the same recipe and data that did not finish.

    Raises:
        WhetstoneError: the data, base model or run folder cannot be used.
        InterruptedRunError: Ctrl-C; the last checkpoint is kept.
    """
    rows = read_rows(recipe.data)
    errors = find_errors(rows)
    data = usable_data(rows, errors, recipe.data, recipe_seed(recipe))
    check_choices(recipe.export, data)
    chosen_golden_texts(recipe.export.golden_file, recipe.data)
    weights = label_weights(recipe.data.class_weights, data)
    identity = run_identity(recipe, data)
    record = {} if overwrite else _found_run(recipe.output_dir, identity)
    if record.get("finished"):
        logger.warning("%s is trained already: going on with it", recipe.output_dir)
        return TrainedRun(recipe.output_dir, recipe, data, record)

    base = resolve_base_model(recipe.model)
    tokenizer = base.tokenizer()
    model = base.classifier(data.labels, data.task, recipe_seed(recipe))
    if data.task == "multi_label":
        start_at_priors(model, label_odds(data, weights))
    reading = usable_reading(recipe, tokenizer, model.config)
    refuse_unexportable(base, tokenizer, model)
    provenance = base.provenance()
    found = look_at(recipe, rows, errors, tokenizer)
    print_findings(found, Console(stderr=True, markup=False, emoji=False))
    arguments = training_arguments(recipe, model.num_parameters(), data)
    # Only now, when nothing that was given can be refused any more.
    _claim_folder(recipe.output_dir, identity, overwrite)
    _write_resolved_recipe(recipe, arguments, reading)
    write_findings(found, recipe.output_dir / REPORT / FINDINGS_FILE)
    draw_data(found, recipe.output_dir / REPORT / DATA_FILE, reading.max_length)
    trainer = _make_trainer(model, tokenizer, data, arguments, reading, weights)

    started = time.monotonic()
    with _graceful_interrupt(trainer):
        trainer.train(resume_from_checkpoint=last_checkpoint(recipe.output_dir))
    facts = {
        "identity": identity,
        "max_length": reading.max_length,
        "window_stride": reading.window_stride,
        "base_model": provenance,
        "seconds": round(time.monotonic() - started, 1),
    }
    record = _finish(trainer, recipe, facts)
    return TrainedRun(recipe.output_dir, recipe, data, record)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole one of the Trainer's own checkpoints in a run folder, if there is one.

    The Trainer writes `trainer_state.json` last: a checkpoint without it was torn by a kill, and is
    deleted.
    """
    place = folder / CHECKPOINT
    while place.is_dir() and (newest := get_last_checkpoint(str(place))) is not None:
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(newest)
        else:
            return newest
    return None


def open_run(recipe: Recipe) -> TrainedRun:
    """The finished run in the recipe's output folder.

    Raises:
        RunError: it is not there, not finished, or of other data or another recipe.
    """
    folder = recipe.output_dir
    record = _read_record(folder)
    if not record.get("finished"):
        raise RunError(f"{folder} holds no finished training: run `whetstone train` first")
    data = load_data(recipe.data, recipe_seed(recipe))
    if record["identity"] != run_identity(recipe, data):
        raise RunError(
            f"{folder} was trained with another recipe or other data: name its own recipe and "
            "keys, or train again"
        )
    return TrainedRun(folder, recipe, data, record)


def recipe_seed(recipe: Recipe) -> int:
    """The seed of the split, the new head and the training."""
    return int(recipe.training.get("seed", DEFAULT_SEED))


def run_identity(recipe: Recipe, data: LabelledData) -> str:
    """SHA-256 of what decides the checkpoint: recipe (export apart), training data, no names."""
    keys = recipe.as_dict()
    for key in (*FILE_KEYS, *(field.name for field in dataclasses.fields(ExportArguments))):
        keys.pop(key, None)
    training_data = data.fingerprint(("train", "validation"))
    content = {"recipe": {k: str(v) for k, v in keys.items()}, "data": training_data}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_unexportable(
    base: BaseModel, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel
) -> None:
    """Refuse before training what could not become a package after it."""
    refuse_unexportable_family(base.name, model.config.model_type)
    parameters = model.num_parameters()
    if tokenizer.pad_token is None:
        raise BaseModelError(
            f"the tokenizer of {base.name} has no padding token, which batches need: choose a "
            "model that has one"
        )
    if parameters * 4 >= LARGEST_GRAPH_BYTES:
        raise BaseModelError(
            f"{base.name} has {parameters / 1e6:.0f} million parameters; an fp32 graph of 2 GB or "
            "more does not fit into one file: choose a smaller model"
        )


def training_arguments(recipe: Recipe, parameters: int, data: LabelledData) -> TrainingArguments:
    """The recipe's keys over the careful defaults.

    Raises:
        RecipeError: a key does not suit the task.
    """
    defaults = careful_defaults(
        parameters, len(data.train), len(data.labels), recipe.training, data.task
    )
    defaults |= {"seed": DEFAULT_SEED}
    places = {"output_dir": str(recipe.output_dir / CHECKPOINT)}
    arguments = parse_training_arguments(defaults | recipe.training | places)
    if arguments.label_smoothing_factor and data.task == "multi_label":
        raise RecipeError(
            "label_smoothing_factor is for one label a row, and this data has several: leave it out"
        )
    return arguments


class OrderedValidationTrainer(Trainer):
    """A Trainer that keeps the order of the validation rows also where it groups by length.

    The metrics put windows together by their order; the rows are sorted by length already.
    """

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


def _make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: LabelledData,
    arguments: TrainingArguments,
    reading: Reading,
    weights: list[float] | None,
) -> Trainer:
    ordered = by_length(data.validation)
    train, validation = (
        encode_split(split, tokenizer, data.labels, data.task, reading)
        for split in (data.train, ordered)
    )
    targets = make_targets(ordered, data.labels, data.task)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Logits of shape (windows, labels), put together as the package will."""
        logits = np.asarray(prediction.predictions, dtype=np.float32)
        probs = aggregate_windows(
            probabilities(logits, data.task), validation.windows, data.task, reading.aggregation
        )
        return validation_metrics(probs, targets, data.task)

    trainer = OrderedValidationTrainer(
        model=model,
        args=arguments,
        train_dataset=train.table,
        eval_dataset=validation.table,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=(
            weighted_loss(weights, data.task, arguments.label_smoothing_factor)
            if weights is not None
            else None
        ),
        compute_metrics=metrics,
        callbacks=[Progress()],
    )
    # ModernBERT takes any keyword, from which the Trainer concludes that it divides its loss by the
    # items of a whole step: it does not, and accumulated gradients would be added up.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _graceful_interrupt(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C ends the step, saves a checkpoint and stops; a second Ctrl-C stops at once.

    Raises:
        InterruptedRunError: it was asked to stop, and did before the last step.
    """
    stop = StopOnRequest()
    trainer.add_callback(stop)

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        tqdm.write("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    state = trainer.state
    if stop.requested and state.global_step < state.max_steps:
        raise InterruptedRunError(
            f"stopped after step {state.global_step} of {state.max_steps}, which is saved in "
            f"{get_last_checkpoint(str(trainer.args.output_dir))}: give the same command again, "
            "without --overwrite, to go on"
        )


def _found_run(folder: Path, identity: str) -> dict[str, Any]:
    """The record of this very run in `folder`; empty where nothing is there yet.

    Raises:
        RunError: the folder holds another run.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: choose another output_dir")
    record = _read_record(folder)
    made = [folder / name for name in (*RUN_FOLDERS, *RUN_FILES)]
    if record.get("identity") != identity and any(path.exists() for path in made):
        raise RunError(
            f"{folder} holds a run of another recipe or other data: choose another --output_dir, "
            "or replace it with --overwrite"
        )
    return record


def _claim_folder(folder: Path, identity: str, overwrite: bool) -> None:
    if overwrite:
        _remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, {"identity": identity, "finished": False})


def _remove_run(folder: Path) -> None:
    """Delete what a run makes, and nothing else that may lie in the folder."""
    # The record first: without it nothing that is left counts as finished.
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _finish(trainer: Trainer, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """Save the best model, write the record, drop the Trainer's own checkpoints."""
    folder = recipe.output_dir / CHECKPOINT
    trainer.save_model(str(folder))
    evaluations = [
        {key: entry[f"eval_{key}"] for key in EVALUATED if f"eval_{key}" in entry}
        | {"epoch": entry["epoch"], "step": entry["step"]}
        for entry in trainer.state.log_history
        if "eval_macro_f1" in entry
    ]
    record = {
        **facts,
        "finished": True,
        "training_arguments": _stated(trainer.args, recipe),
        "evaluations": evaluations,
        "kept_step": trainer.state.best_global_step or trainer.state.global_step,
        "device": str(trainer.args.device),
    }
    _write_record(recipe.output_dir, record)
    # Last: until the record says that the run is finished, these are the way to go on.
    for left in folder.glob("checkpoint-*"):
        shutil.rmtree(left)
    return record


def _stated(arguments: TrainingArguments, recipe: Recipe) -> dict[str, Any]:
    """The TrainingArguments that somebody chose: the recipe, the careful defaults, the device."""
    plain = TrainingArguments(output_dir=arguments.output_dir).to_dict()
    chosen = {*careful_defaults(1, 1, 1, {}), *recipe.training}
    skipped = {"output_dir", "logging_dir", "run_name"}
    return {
        key: value
        for key, value in arguments.to_dict().items()
        if key not in skipped and (key in chosen or value != plain.get(key))
    }


def _write_resolved_recipe(recipe: Recipe, arguments: TrainingArguments, reading: Reading) -> None:
    files = {
        key: str(Path(value).resolve())
        for key, value in recipe.as_dict().items()
        if key in FILE_KEYS
    }
    resolved = recipe.as_dict() | files | _stated(arguments, recipe)
    if reading.window_stride is not None:
        resolved["window_stride"] = reading.window_stride
    text = "# Every key in force in this run: the recipe, the command line, the defaults.\n"
    write_text(recipe.output_dir / RESOLVED_RECIPE, text + yaml.safe_dump(resolved))


def _read_record(folder: Path) -> dict[str, Any]:
    """What `training.json` says; a run whose checkpoint is gone is not finished."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    there = (folder / CHECKPOINT / "config.json").is_file()
    return record | {"finished": bool(record.get("finished")) and there}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
