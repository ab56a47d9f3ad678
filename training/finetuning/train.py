"""Recipe → Trainer → checkpoint.

    whetstone train examples/support_tickets/recipe.yaml --learning_rate 5e-5

The run folder gets `checkpoint/` (the kept weights, with their tokenizer; while training goes on,
the Trainer's own checkpoints live inside it), `resolved_recipe.yaml` (every key in force) and
`training.json` (what was trained on what, and how it went). Where rows are few, `checkpoint/` is
that of a second training, on all rows, and `held_out/` that of the first one.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from transformers import TrainerCallback, TrainerState

from training.common.distributed import (
    barrier,
    is_main_process,
    main_process_first,
    world_size,
)
from training.common.errors import RunError
from training.common.full_disk import full_disk_in_a_sentence
from training.common.layout import (
    CHECKPOINT,
    DATA_FILE,
    FINDINGS_FILE,
    HELD_OUT,
    REPORT,
    TOKENS,
)
from training.data.checks import look_at
from training.data.dataset import LabeledData, read_rows, usable_data
from training.data.findings import Errors, Rows, find_errors
from training.data.golden_texts import chosen_golden_texts
from training.data.output import draw_data, print_findings, write_findings
from training.export.thresholds import check_choices, warn_of_few_rows
from training.finetuning.all_rows import StopAfter, kept_epoch, plan_all_rows
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.head_start import make_head_start
from training.finetuning.interrupts import graceful_interrupt
from training.finetuning.lock import run_lock
from training.finetuning.plan import TrainingPlan, plan_training
from training.finetuning.record import (
    ALL_ROWS,
    FIRST_IS_DONE,
    TrainedRun,
    claim_folder,
    first_is_done,
    read_record,
    run_identity,
    write_record,
)
from training.finetuning.rehearsal import rehearse
from training.finetuning.resolved_recipe import (
    chosen_arguments,
    computed_share,
    write_resolved_recipe,
)
from training.finetuning.resume import (
    drop_resume_files,
    drop_torn_checkpoints,
    find_run,
    last_checkpoint,
    point_to_best_checkpoint,
    refuse_differences,
    refuse_other_processes,
    refuse_other_settings,
    refuse_other_weights,
    refuse_separate_folders,
    state_after_early_stop,
)
from training.finetuning.settings import EVALUATED
from training.finetuning.trainer import make_trainer
from training.recipe.arguments import Recipe, recipe_seed

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# What to do when a training finds no room. A torn checkpoint is deleted when the run continues.
AFTER_FULL_DISK = (
    "give the same command again, without --overwrite: it continues from the last whole checkpoint"
)


@dataclass(frozen=True)
class InspectedData:
    """Every row of the recipe's files, the errors among them, and the usable rows, split."""

    rows: dict[str, Rows]
    errors: Errors
    usable: LabeledData


def train(
    recipe: Recipe, *, overwrite: bool = False, callbacks: Sequence[TrainerCallback] = ()
) -> TrainedRun:
    """Train, or continue a run of the same recipe and data that did not finish.

    Of several processes all train, and the main process writes.

    Args:
        overwrite: replace the run that the folder holds.
        callbacks: observe the training, or stop it.

    Raises:
        WhetstoneError: the data, base model or run folder cannot be used.
        InterruptedRunError: Ctrl-C; the last checkpoint is kept.
    """
    refuse_separate_folders(recipe.output_dir)
    inspected = inspect_data(recipe)
    data = inspected.usable
    record = {} if overwrite else find_run(recipe.output_dir, run_identity(recipe, data))
    refuse_other_processes(record, recipe.output_dir)
    if record.get("finished"):
        return _finished_run(recipe, data, record)
    plan = plan_training(recipe, data)
    _refuse_other_plan(plan, record)
    rehearse(plan)
    # All processes have looked at the folder before it changes.
    barrier()
    with (
        run_lock(recipe.output_dir),
        full_disk_in_a_sentence(recipe.output_dir, AFTER_FULL_DISK),
    ):
        if is_main_process():
            claim(plan, inspected, record, overwrite=overwrite)
        barrier()
        if not first_is_done(record, recipe.output_dir):
            record = train_first(plan, callbacks)
        if not record["finished"]:
            record = train_on_all_rows(plan, record, callbacks)
    # The main process has finished the folder.
    barrier()
    return TrainedRun(recipe.output_dir, recipe, data, record)


def inspect_data(recipe: Recipe) -> InspectedData:
    """Read and split the data, and check the keys that need it for an answer.

    Raises:
        DataError: a file, column or row cannot be used.
        RecipeError: a key of the export does not suit the labels.
    """
    rows = read_rows(recipe.data)
    errors = find_errors(rows)
    data = usable_data(rows, errors, recipe.data, recipe_seed(recipe))
    check_choices(recipe.export, data)
    if is_main_process():
        warn_of_few_rows(recipe.export, data)
    chosen_golden_texts(recipe.export.golden_file, recipe.data)
    return InspectedData(rows, errors, data)


def _finished_run(recipe: Recipe, data: LabeledData, record: dict[str, Any]) -> TrainedRun:
    """The run that the folder holds already, cleared of what it no longer needs.

    Raises:
        RunError: it was trained from other weights than those of the recipe's base.
    """
    refuse_other_weights(record, recipe)
    if is_main_process():
        drop_resume_files(recipe.output_dir)
    logger.warning("%s is trained already: continuing with it", recipe.output_dir)
    return TrainedRun(recipe.output_dir, recipe, data, record)


def _refuse_other_plan(plan: TrainingPlan, record: dict[str, Any]) -> None:
    """Refuse a plan that is not the one of the unfinished run, or not that of every process.

    Raises:
        RunError: a computed setting, the rows or the last checkpoint differ.
    """
    folder = plan.recipe.output_dir
    refuse_other_settings(record, plan.computed_settings, folder)
    last = last_checkpoint(folder)
    refuse_differences(
        {
            "rows and recipe": plan.identity,
            "last checkpoint": last and Path(last).name,
            **plan.computed_settings,
        }
    )


def claim(
    plan: TrainingPlan, inspected: InspectedData, record: dict[str, Any], *, overwrite: bool
) -> None:
    """Make the folder this run's, and write what is known before the first step.

    The main process alone does so, once nothing can be refused any more.

    Args:
        record: what the folder said of this run before the lock was taken.

    Raises:
        RunError: another process has trained in the folder since then.
    """
    folder = plan.recipe.output_dir
    if not overwrite and read_record(folder) != record:
        raise RunError(f"another process has trained in {folder}: give the same command again")
    data, rows = plan.data, inspected.rows
    preflight = look_at(
        plan.recipe, rows, inspected.errors, plan.tokenizer, data.findings, data.similar
    )
    print_findings(preflight, Console(stderr=True, markup=False, emoji=False))
    # The record of a run that is continued says what it has done already.
    begun = record | {"identity": plan.identity, "settled": plan.computed_settings}
    claim_folder(folder, begun, overwrite)
    computed = {"pooling": plan.base.pooling} | computed_share(data, "validation" in rows)
    write_resolved_recipe(plan, computed)
    write_findings(preflight, folder / REPORT / FINDINGS_FILE)
    draw_data(preflight, folder / REPORT / DATA_FILE, plan.text_encoding.max_length)
    drop_torn_checkpoints(folder)
    point_to_best_checkpoint(folder)


def train_first(plan: TrainingPlan, callbacks: Sequence[TrainerCallback]) -> dict[str, Any]:
    """Train on the training rows, and keep the epoch that the validation rows choose.

    Returns:
        The record of the run, in every process. The run is finished unless all rows are to be
        trained on.
    """
    trainer = prepare_trainer(plan)
    started = time.monotonic()
    fit(trainer, plan.recipe.output_dir, callbacks)
    seconds = time.monotonic() - started
    goes_on = bool(plan.tuning.train_on_all_rows)
    record = record_of(plan, trainer, seconds) | {"finished": not goes_on}
    if goes_on:
        record[FIRST_IS_DONE] = True
    finish(plan, trainer, record, HELD_OUT if goes_on else CHECKPOINT)
    return record


def train_on_all_rows(
    plan: TrainingPlan, record: dict[str, Any], callbacks: Sequence[TrainerCallback]
) -> dict[str, Any]:
    """Train anew on all rows, for as many epochs as the first training has kept.

    Args:
        record: of the run, whose first training is done.

    Returns:
        The record of the finished run, in every process.
    """
    logger.warning("the rows that were set aside are trained on, too: the second training")
    plan = plan_all_rows(plan)
    trainer = prepare_trainer(plan)
    epoch = kept_epoch(record)
    started = time.monotonic()
    # At 0 the head start alone is kept, which the model has already.
    if epoch != 0 and not _is_over(trainer, epoch, plan.recipe.output_dir):
        stop = [] if epoch is None else [StopAfter(epoch)]
        fit(trainer, plan.recipe.output_dir, [*callbacks, *stop])
    seconds = time.monotonic() - started
    # Not an evaluation, which the screen and the curves would show.
    measured = trainer.predict(cast("Dataset[Any]", trainer.eval_dataset)).metrics or {}
    record = record | {
        "finished": True,
        "seconds": round(record["seconds"] + seconds, 1),
        ALL_ROWS: {
            "rows": len(plan.data.train),
            "steps": trainer.state.global_step,
            # Of rows that it has seen: by it the export recognizes the weights.
            "accuracy": measured["test_accuracy"],
        },
    }
    record.pop(FIRST_IS_DONE)
    finish(plan, trainer, record, CHECKPOINT)
    return record


def _is_over(trainer: FineTuner, epoch: float | None, folder: Path) -> bool:
    """Whether the second training was killed after its last step; its weights are loaded then.

    The Trainer would train another epoch before it stops.
    """
    checkpoint = last_checkpoint(folder)
    if epoch is None or checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if not StopAfter(epoch).is_over(state):
        return False
    trainer.load_checkpoint(checkpoint, state)
    return True


def prepare_trainer(plan: TrainingPlan) -> FineTuner:
    """The Trainer of a run, whose model has its head start.

    The main process encodes the rows and fits the head first; the others read what it wrote.
    """
    cache = plan.recipe.output_dir / TOKENS
    with main_process_first():
        start = make_head_start(plan, cache=cache)
        if start is not None:
            start.applied_to(plan.model)
        trainer = make_trainer(plan, cache=cache)
        if start is not None:
            trainer.at_start = lambda: start.applied_to(plan.new_model())
    return trainer


def fit(trainer: FineTuner, folder: Path, callbacks: Sequence[TrainerCallback]) -> None:
    """Train from the last checkpoint in the run folder, or from the start.

    Raises:
        DivergedError: the loss is not a finite number.
        InterruptedRunError: Ctrl-C; a checkpoint is saved.
    """
    for callback in callbacks:
        trainer.add_callback(callback)
    with graceful_interrupt(trainer):
        checkpoint = last_checkpoint(folder)
        stopped = state_after_early_stop(trainer, checkpoint)
        if stopped is None:
            _train_from(trainer, checkpoint)
        else:
            trainer.state = stopped
            trainer.load_kept_weights()
    barrier()


def _train_from(trainer: FineTuner, checkpoint: str | None) -> None:
    """Train the steps after a checkpoint, or all steps."""
    arguments = trainer.args
    stated = arguments.eval_on_start
    # The frozen encoder under its head start may be the best: it is evaluated, too. A run that is
    # continued has that evaluation already.
    has_start = trainer.at_start is not None and arguments.load_best_model_at_end
    arguments.eval_on_start |= has_start and checkpoint is None
    trainer.train(resume_from_checkpoint=checkpoint)
    # The record says the same whether the run was continued or not.
    arguments.eval_on_start = stated


def record_of(plan: TrainingPlan, trainer: FineTuner, seconds: float) -> dict[str, Any]:
    """What `training.json` says of a training."""
    # Before other TrainingArguments reset it.
    precision = str(trainer.accelerator.mixed_precision)
    state = trainer.state
    evaluations = [
        {key: entry[f"eval_{key}"] for key in EVALUATED if f"eval_{key}" in entry}
        | {"epoch": entry["epoch"], "step": entry["step"]}
        for entry in state.log_history
        if "eval_macro_f1" in entry
    ]
    return {
        "identity": plan.identity,
        "settled": plan.computed_settings,
        "max_length": plan.text_encoding.max_length,
        "window_stride": plan.text_encoding.window_stride,
        "base_model": plan.provenance,
        "processes": world_size(),
        "fine_tuning": dataclasses.asdict(plan.tuning),
        "seconds": round(seconds, 1),
        "training_arguments": chosen_arguments(trainer.args, plan.recipe),
        "evaluations": evaluations,
        "kept_step": state.global_step if trainer.kept_step is None else trainer.kept_step,
        "device": str(trainer.args.device),
        "mixed_precision": precision,
    }


def finish(plan: TrainingPlan, trainer: FineTuner, record: dict[str, Any], checkpoint: str) -> None:
    """Save the kept model, write the record, delete the Trainer's own checkpoints."""
    folder = plan.recipe.output_dir
    # All processes call it, and the main process writes.
    trainer.save_model(str(folder / checkpoint))
    if is_main_process():
        if record["finished"]:
            write_record(folder, record)
            # Last: until the record says that the run is finished, a run continues from these.
            drop_resume_files(folder)
        else:
            # First: the training on all rows would continue from these.
            drop_resume_files(folder)
            write_record(folder, record)
    barrier()
