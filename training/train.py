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
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch.utils.data import Sampler, SequentialSampler
from tqdm import tqdm
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from service.decisions import aggregate_windows, probabilities
from service.model_package import file_record, write_text
from training.base_checks import fit_together, refuse_misfit, refuse_weights
from training.base_models import WEIGHTS_FILES, resolve_base_model, start_at_priors
from training.callbacks import Progress, SpareEvaluations, StopEarly, StopOnRequest
from training.check import look_at
from training.choosing import Evaluation, choose_step
from training.config import (
    DEFAULT_SEED,
    FILE_KEYS,
    ExportArguments,
    FineTuningArguments,
    Recipe,
    parse_training_arguments,
    recipe_seed,
)
from training.data.dataset import (
    LabelledData,
    chosen_golden_texts,
    load_data,
    read_rows,
    usable_data,
)
from training.data.encoding import (
    Reading,
    RowSizes,
    by_length,
    encode_split,
    make_targets,
    row_sizes,
    usable_reading,
)
from training.data.findings import find_errors
from training.data.preflight_report import draw_data, print_findings, write_findings
from training.defaults import Default, careful_defaults, validation_share, warnings_about
from training.distributed import first_then_others, is_first, of_all, processes, wait_for_all
from training.errors import (
    BaseModelError,
    DivergedError,
    InterruptedRunError,
    RecipeError,
    RunError,
)
from training.full_disk import full_disk_in_a_sentence
from training.head_start import HeadStart, fit_head_start, label_rows
from training.layers import freeze, parameter_groups
from training.layout import (
    CHECKPOINT,
    DATA_FILE,
    FINDINGS_FILE,
    HEAD_START,
    RECORD,
    REPORT,
    RESOLVED_RECIPE,
    RUN_FILES,
    RUN_FOLDERS,
    TOKENS,
    TRACKING,
)
from training.losses import label_odds, label_weights, weighted_loss
from training.metrics import validation_metrics
from training.refused_keys import REFUSED
from training.rehearsal import Rehearsal, rehearse
from training.run_lock import alone_in
from training.thresholds import check_choices, warn_of_few_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    from training.heads import Pooling

logger = logging.getLogger(__name__)

EVALUATED = ("loss", "accuracy", "micro_f1", "macro_f1", "average_precision")
# What logits in fp32 carry: a loss that is lower after that is not lower.
LOSS_DECIMALS = 7
# The column of what each window counts in the loss; not there where every text is one window.
SHARE = "share"
# What to do when a training finds no room; what was torn is deleted when the run goes on.
AFTER_FULL_DISK = (
    "give the same command again, without --overwrite: it goes on from the last whole checkpoint"
)


@dataclass(frozen=True)
class TrainedRun:
    """A run folder with a finished checkpoint, and the data it was made from."""

    folder: Path
    recipe: Recipe
    data: LabelledData
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The folder for `training.heads.load_checkpoint`."""
        return self.folder / CHECKPOINT

    @property
    def reading(self) -> Reading:
        """How the checkpoint was trained to read."""
        stride = self.record["window_stride"]
        aggregation = None if stride is None else self.recipe.model.window_aggregation
        return Reading(self.record["max_length"], stride, aggregation)


def train(
    recipe: Recipe, *, overwrite: bool = False, callbacks: Sequence[TrainerCallback] = ()
) -> TrainedRun:
    """Train, or go on with a run of the same recipe and data that did not finish.

    Of several processes all train, and the first one writes. `callbacks` look on, or stop it.

    Raises:
        WhetstoneError: the data, base model or run folder cannot be used.
        InterruptedRunError: Ctrl-C; the last checkpoint is kept.
    """
    rows = read_rows(recipe.data)
    errors = find_errors(rows)
    data = usable_data(rows, errors, recipe.data, recipe_seed(recipe))
    check_choices(recipe.export, data)
    if is_first():
        warn_of_few_rows(recipe.export, data)
    chosen_golden_texts(recipe.export.golden_file, recipe.data)
    weights = label_weights(recipe.data.class_weights, data)
    identity = run_identity(recipe, data)
    record = {} if overwrite else _found_run(recipe.output_dir, identity)
    _refuse_other_processes(record, recipe.output_dir)
    if record.get("finished"):
        _refuse_other_weights(record, recipe)
        if is_first():
            _drop_means_of_going_on(recipe.output_dir)
        logger.warning("%s is trained already: going on with it", recipe.output_dir)
        return TrainedRun(recipe.output_dir, recipe, data, record)

    base = resolve_base_model(recipe.model)
    tokenizer = base.tokenizer()
    refuse_misfit(recipe, tokenizer, base.config())

    def new_model() -> PreTrainedModel:
        made = base.classifier(data.labels, data.task, recipe_seed(recipe))
        if data.task == "multi_label":
            start_at_priors(made, label_odds(data, weights))
        return made

    model = new_model()
    refuse_weights(base.name, model)
    fit_together(tokenizer, model)
    reading = usable_reading(recipe, tokenizer, model.config)
    provenance = base.provenance()
    sizes = row_sizes(data.train, tokenizer, reading)
    arguments, tuning, reasons = settle(
        recipe, model.num_parameters(), data, base.pooling.value, sizes
    )
    settled = {
        "base_model": provenance.get("sha256"),
        "pooling": base.pooling.value,
        "head_lr_factor": tuning.head_lr_factor,
        "layerwise_lr_decay": tuning.layerwise_lr_decay,
        "per_device_train_batch_size": arguments.per_device_train_batch_size,
        "num_train_epochs": arguments.num_train_epochs,
    }
    _refuse_other_settings(record, settled, recipe.output_dir)
    last = last_checkpoint(recipe.output_dir)
    _refuse_differences(
        {"rows and recipe": identity, "last checkpoint": last and Path(last).name, **settled}
    )
    freeze(model, tuning.freeze_layers, embeddings=tuning.freeze_embeddings)
    rehearse(
        Rehearsal(
            *(recipe, base, provenance.get("sha256"), tokenizer, model, data, reading),
            *(arguments, tuning, weights),
        )
    )
    # All have looked at the folder before it changes.
    wait_for_all()
    with (
        alone_in(recipe.output_dir),
        full_disk_in_a_sentence(recipe.output_dir, AFTER_FULL_DISK),
    ):
        if is_first():
            if not overwrite and _read_record(recipe.output_dir) != record:
                raise RunError(
                    f"another process has trained in {recipe.output_dir}: give the same command "
                    "again"
                )
            found = look_at(recipe, rows, errors, tokenizer, data.findings, data.similar)
            print_findings(found, Console(stderr=True, markup=False, emoji=False))
            # Only now, when nothing that was given can be refused any more.
            _claim_folder(recipe.output_dir, {"identity": identity, "settled": settled}, overwrite)
            computed = {"pooling": base.pooling} | _computed_share(data, "validation" in rows)
            _write_resolved_recipe(recipe, arguments, tuning, reasons, reading, computed)
            write_findings(found, recipe.output_dir / REPORT / FINDINGS_FILE)
            draw_data(found, recipe.output_dir / REPORT / DATA_FILE, reading.max_length)
            drop_torn_checkpoints(recipe.output_dir)
            _find_best_checkpoint(recipe.output_dir)
        wait_for_all()
        with first_then_others():
            start = make_head_start(
                *(model.to(arguments.device), tokenizer, data, reading, weights),
                seed=recipe_seed(recipe),
                cache=recipe.output_dir / TOKENS,
            )
            if start is not None:
                start.applied_to(model)
            trainer = make_trainer(
                *(model, tokenizer, data, arguments, tuning, reading, weights),
                cache=recipe.output_dir / TOKENS,
            )
            if start is not None:
                trainer.at_start = lambda: start.applied_to(new_model())

        started = time.monotonic()
        for callback in callbacks:
            trainer.add_callback(callback)
        with _graceful_interrupt(trainer):
            checkpoint = last_checkpoint(recipe.output_dir)
            if not _had_stopped_early(trainer, checkpoint):
                # The frozen encoder under its regression; a run that goes on has that already.
                asked = arguments.eval_on_start
                judged = start is not None and arguments.load_best_model_at_end
                arguments.eval_on_start |= judged and checkpoint is None
                trainer.train(resume_from_checkpoint=checkpoint)
                # The record of a run says the same whether it was taken up again or not.
                arguments.eval_on_start = asked
        wait_for_all()
        facts = {
            "identity": identity,
            "settled": settled,
            "max_length": reading.max_length,
            "window_stride": reading.window_stride,
            "base_model": provenance,
            "processes": processes(),
            "fine_tuning": dataclasses.asdict(tuning),
            "seconds": round(time.monotonic() - started, 1),
        }
        record = _finish(trainer, recipe, facts)
    # The first has finished the folder.
    wait_for_all()
    return TrainedRun(recipe.output_dir, recipe, data, record)


def drop_torn_checkpoints(folder: Path) -> None:
    """Delete the newest of the Trainer's own checkpoints in a run folder until one is whole.

    Torn by a kill while it was written, or while it was deleted.
    """
    while (newest := last_checkpoint(folder)) is not None and not _is_whole(Path(newest)):
        shutil.rmtree(newest)


def _is_whole(checkpoint: Path) -> bool:
    """Whether all is there that a run goes on from.

    The Trainer writes `trainer_state.json` last, but its other processes write theirs meanwhile.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = [f"_{number}" for number in range(processes())] if processes() > 1 else [""]
    # None of these where a recipe keeps weights only.
    states = [checkpoint / f"rng_state{part}.pth" for part in parts]
    with_optimizer = (checkpoint / "optimizer.pt").is_file()
    return any((checkpoint / name).is_file() for name in WEIGHTS_FILES) and (
        not with_optimizer or all(state.is_file() for state in states)
    )


def _find_best_checkpoint(folder: Path) -> None:
    """Let the newest of the Trainer's own checkpoints name the best one where it lies now.

    It names it by the path at which the run was begun; from another place, or as a relative path
    in another working folder, the Trainer would neither keep nor load it, and not say so.
    """
    newest = last_checkpoint(folder)
    if newest is None:
        return
    path = Path(newest) / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        best = folder / CHECKPOINT / Path(state["best_model_checkpoint"]).name
        write_text(path, json.dumps(state | {"best_model_checkpoint": str(best)}, indent=2) + "\n")


def last_checkpoint(folder: Path) -> str | None:
    """The newest of the Trainer's own checkpoints in a run folder, if there is one."""
    place = folder / CHECKPOINT
    return get_last_checkpoint(str(place)) if place.is_dir() else None


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


def run_identity(recipe: Recipe, data: LabelledData) -> str:
    """SHA-256 of what decides the checkpoint: recipe (export apart), training data, no names."""
    keys = recipe.as_dict()
    for key in (*FILE_KEYS, *(field.name for field in dataclasses.fields(ExportArguments))):
        keys.pop(key, None)
    training_data = data.fingerprint(("train", "validation"))
    content = {"recipe": {k: str(v) for k, v in keys.items()}, "data": training_data}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settle(
    recipe: Recipe, parameters: int, data: LabelledData, pooling: Pooling, sizes: RowSizes
) -> tuple[TrainingArguments, FineTuningArguments, dict[str, str]]:
    """The recipe's keys over the careful defaults, and the reason of every default in force.

    Raises:
        RecipeError: a key does not suit the task, or another one.
    """
    for sentence in warnings_about(recipe.training, parameters):
        logger.warning(sentence)
    defaults = careful_defaults(
        parameters,
        len(data.train),
        len(data.labels),
        recipe.training,
        data.task,
        assigned=sum(map(len, data.train.labels)),
        validation=len(data.validation),
        processes=processes(),
        pooling=pooling,
        sizes=sizes,
    )
    defaults |= {"seed": Default(DEFAULT_SEED, "any number; the same one gives the same model")}
    given = recipe.as_dict()
    own = {key: defaults.pop(key) for key in vars(recipe.tuning) if key in defaults}
    values = {key: default.value for key, default in defaults.items()}
    values["logging_dir"] = str(recipe.output_dir / TRACKING)
    # The Trainer would report 0 for it, and go on.
    values["logging_nan_inf_filter"] = False
    places = {"output_dir": str(recipe.output_dir / CHECKPOINT)}
    arguments = parse_training_arguments(values | recipe.training | places)
    use_one_gpu(arguments)
    if arguments.label_smoothing_factor and data.task == "multi_label":
        raise RecipeError(
            "label_smoothing_factor is for one label a row, and this data has several: leave it out"
        )
    measure = str(arguments.metric_for_best_model).removeprefix("eval_")
    several = data.task == "multi_label"
    measured = EVALUATED if several else ("loss", "accuracy", "macro_f1")
    if arguments.load_best_model_at_end and measure not in measured:
        raise RecipeError(
            f"metric_for_best_model is {measure!r}, which is not measured: choose one of "
            f"{', '.join(measured)}"
        )
    if not arguments.load_best_model_at_end:
        if given.get("early_stopping_patience"):
            raise RecipeError(
                "early_stopping_patience needs load_best_model_at_end: true: without it the last "
                "checkpoint is kept, however bad"
            )
        own["early_stopping_patience"] = Default(0, "the last checkpoint is kept, not the best")
    tuning = dataclasses.replace(
        recipe.tuning, **{key: own[key].value for key in own if key not in given}
    )
    reasons = {k: default.reason for k, default in (defaults | own).items() if k not in given}
    return arguments, tuning, reasons


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Let a process train on one GPU, however many there are.

    The Trainer would split each batch among them (`DataParallel`, which PyTorch's documentation
    advises against), and with so many GPUs make it so many times larger, which neither rate nor
    number of steps would suit.
    """
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are here, and one is used: `torchrun --nproc_per_node %d -m training train` "
            "takes all, with the same recipe",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


class SeededLengthSampler(LengthGroupedSampler):
    """Batches of like length in an order that seed and epoch decide, and nothing else.

    transformers' takes it from the global generator, whose state differs between processes once
    they have dropped out different activations: rows would be seen twice, others never.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, by the Trainer's data loader."""
        self.generator.manual_seed(self._seed + epoch)


class FineTuner(Trainer):
    """A Trainer with rates by layer and texts that count alike, and that keeps validation in order.

    The metrics put windows together by their order, also where training groups by length; the rows
    are sorted by length already.
    """

    tuning = FineTuningArguments()
    # Makes the model as it was before the first step, where its head had learned something by then.
    at_start: Callable[[], PreTrainedModel] | None = None
    # Texts that it is evaluated on.
    validation_rows = 0
    # The step whose weights the model has, once training is over.
    kept_step: int | None = None
    # Of a training step; the first of a run that goes on knows none.
    last_loss: float | None = None

    def training_step(self, *given: Any, **more: Any) -> torch.Tensor:
        """As transformers does it.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss = super().training_step(*given, **more)
        # The mean of a step's parts is made by adding them up.
        found = float(loss) * self.current_gradient_accumulation_steps
        self._refuse_diverged(found, f"of step {self.state.global_step + 1}")
        self.last_loss = found
        return loss

    def prediction_step(self, *given: Any, **more: Any) -> Any:
        """As transformers does it.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss, *others = super().prediction_step(*given, **more)
        where = f"of validation rows after step {self.state.global_step}"
        self._refuse_diverged(float(loss), where)
        return loss, *others

    def _refuse_diverged(self, loss: float, where: str) -> None:
        if math.isfinite(loss):
            return
        before = "none was before"
        if self.last_loss is not None:
            before = f"the last finite one of a step was {self.last_loss:.4g}"
        rate = 0.0 if self.lr_scheduler is None else self._get_learning_rate()
        half = [f", {key}: false" for key in ("bf16", "fp16") if getattr(self.args, key)]
        raise DivergedError(
            f"training stopped, as the loss {where} is {loss} ({before}; the learning rate is "
            f"{rate:.3g} of {self.args.learning_rate:.3g} at most): try a lower learning_rate"
            f"{''.join(half)} or a smaller max_grad_norm, with --overwrite"
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """`compute_loss_func` of logits, in which every window counts as its column says."""
        inputs = dict(inputs)
        targets, shares = inputs.pop("labels"), inputs.pop(SHARE, None)
        outputs = model(**inputs)
        loss = self.compute_loss_func(outputs.logits, targets, num_items_in_batch, shares)
        # These are the items of all processes, over which gradients are averaged.
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        """The Trainer drops every column that the model does not take."""
        super()._set_signature_columns_if_needed()
        if SHARE not in self._signature_columns:
            self._signature_columns.append(SHARE)

    def create_optimizer(self) -> Any:
        """As transformers makes it, with groups of parameters by layer.

        Raises:
            RecipeError: that optimizer takes no groups of ours.
        """
        decay = self.tuning.layerwise_lr_decay or 1.0
        factor = self.tuning.head_lr_factor or 1.0
        if self.optimizer is None and (decay, factor) != (1.0, 1.0):
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if {"params", "model", "optimizer_dict"} & set(options):
                raise RecipeError(
                    f"optim {self.args.optim} has rates of its own: use another one, or "
                    "layerwise_lr_decay: 1 and head_lr_factor: 1"
                )
            groups = parameter_groups(
                self.model,
                self.get_decay_parameter_names(self.model),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layerwise_lr_decay=decay,
                head_lr_factor=factor,
            )
            self.optimizer = kind(groups, **options)
        return super().create_optimizer()

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """By evaluations: of trials with other batches the steps are not the same."""
        done = sum("eval_loss" in entry for entry in self.state.log_history)
        super()._report_to_hp_search(trial, done, metrics)

    def _load_best_model(self) -> None:
        """Load the weights that `choose_step` keeps; transformers would always take the best.

        Of a run that stopped early these are the best ones: its last are those of a learning rate
        that had not come down.

        Raises:
            RunError: the checkpoint is gone.
        """
        measure = str(self.args.metric_for_best_model).removeprefix("eval_")
        found = [
            Evaluation(entry["step"], entry[key])
            for entry in self.state.log_history
            if (key := f"eval_{measure}") in entry
        ]
        whole = self.state.global_step >= self.state.max_steps
        comparable = whole and found[-1].step == self.state.global_step
        self.kept_step = choose_step(
            found,
            self.validation_rows,
            greater=bool(self.args.greater_is_better),
            bounded=comparable and measure != "loss",
        )
        if self.kept_step == self.state.global_step:
            return
        if self.kept_step == 0 and self.at_start is not None:
            self.model.load_state_dict(self.at_start().state_dict())
            return
        best = Path(str(self.state.best_model_checkpoint))
        if not best.is_dir():
            raise RunError(
                f"the best checkpoint {best} is gone: restore it, or begin anew with --overwrite"
            )
        super()._load_best_model()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        found = super()._get_train_sampler(train_dataset)
        if not isinstance(found, LengthGroupedSampler):
            return found
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthSampler(found.batch_size, found.lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


def make_head_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: LabelledData,
    reading: Reading,
    weights: list[float] | None,
    *,
    seed: int,
    cache: Path | None = None,
) -> HeadStart | None:
    """What the head of `model` starts with; None where it starts at random.

    Args:
        cache: folder for token ids and the start itself: processes, and a run that goes on, have
            the same.
    """
    file = cache / HEAD_START if cache is not None else None
    if file is not None and file.is_file():
        return HeadStart.load(file)
    names = label_rows(data.train, data.labels) if data.task == "single_label" else None
    encoded, named = (
        rows and encode_split(rows, tokenizer, data.labels, data.task, reading, cache)
        for rows in (data.train, names)
    )
    targets = make_targets(data.train, data.labels, data.task)
    start = fit_head_start(
        *(model, tokenizer, data.train, encoded, targets, data.task, weights, seed), named=named
    )
    if start is not None and file is not None:
        start.save(file)
    return start


def make_trainer(
    model: PreTrainedModel | Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    data: LabelledData,
    arguments: TrainingArguments,
    tuning: FineTuningArguments,
    reading: Reading,
    weights: list[float] | None,
    *,
    cache: Path | None = None,
) -> FineTuner:
    """The Trainer of a run; `model` may also be what makes a new one for every trial.

    Args:
        cache: folder for token ids.
    """
    ordered = by_length(data.validation)
    train, validation = (
        encode_split(split, tokenizer, data.labels, data.task, reading, cache)
        for split in (data.train, ordered)
    )
    table = train.table
    if reading.window_stride is not None:
        table = table.add_column(SHARE, train.window_shares())
    targets = make_targets(ordered, data.labels, data.task)
    loss = weighted_loss(weights, data.task, arguments.label_smoothing_factor)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Logits of shape (windows, labels), put together as the package will.

        The loss replaces the Trainer's, which is a mean over batches of unlike size, and over the
        rows that fill up the batches of several processes.
        """
        logits = np.asarray(prediction.predictions, dtype=np.float32)
        validation_loss = loss(
            torch.from_numpy(logits).double(),
            torch.from_numpy(np.repeat(targets, validation.windows, axis=0)),
            shares=torch.from_numpy(validation.window_shares()),
        )
        probs = aggregate_windows(
            probabilities(logits, data.task), validation.windows, data.task, reading.aggregation
        )
        return {
            "loss": round(float(validation_loss), LOSS_DECIMALS),
            **validation_metrics(probs, targets, data.task),
        }

    made = {"model": model} if isinstance(model, PreTrainedModel) else {"model_init": model}
    trainer = FineTuner(
        **made,
        args=arguments,
        train_dataset=table,
        eval_dataset=validation.table,
        processing_class=tokenizer,
        # Tensor cores multiply by eights (NVIDIA, Deep Learning Performance Guide).
        data_collator=DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=8 if arguments.device.type == "cuda" else None
        ),
        compute_loss_func=loss,
        compute_metrics=metrics,
        callbacks=[Progress(), SpareEvaluations()],
    )
    trainer.tuning = tuning
    trainer.validation_rows = len(data.validation)
    if tuning.early_stopping_patience:
        trainer.add_callback(StopEarly(tuning.early_stopping_patience))
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


def _had_stopped_early(trainer: FineTuner, checkpoint: str | None) -> bool:
    """Take up a run that was killed after it had stopped early: there is nothing left to train."""
    stops = [one for one in trainer.callback_handler.callbacks if isinstance(one, StopEarly)]
    if checkpoint is None or not stops:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if not stops[0].is_time(trainer.args, state):
        return False
    trainer.state = state
    trainer._load_best_model()
    return True


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


def _refuse_other_processes(record: dict[str, Any], folder: Path) -> None:
    """A batch is shared, and a checkpoint knows its share: with another one steps mean other rows.

    Raises:
        RunError: an unfinished run was started by another number of processes.
    """
    before = record.get("processes", processes())
    if not record.get("finished") and before != processes():
        raise RunError(
            f"{folder} was begun by {before} process{'es' if before > 1 else ''}, and this is one "
            f"of {processes()}: start as many, or begin anew with --overwrite"
        )


def _refuse_other_settings(record: dict[str, Any], settled: dict[str, Any], folder: Path) -> None:
    """What was computed may differ on another device, offline, or by another version.

    Raises:
        RunError: an unfinished run was begun with other values, under which its checkpoints and
            steps mean something else.
    """
    before = record.get("settled", {})
    for key, value in settled.items():
        if record and before.get(key) != value:
            raise RunError(
                f"{folder} was begun with {key} {before.get(key, 'of an earlier version')}, and "
                f"what is computed here is {value}: go on where it was begun, or begin anew with "
                "--overwrite"
            )


def _refuse_other_weights(record: dict[str, Any], recipe: Recipe) -> None:
    """The base of a finished run may be gone; one that lies here has to be the one it had.

    Raises:
        RunError: other weights have its name by now.
    """
    before = record.get("base_model", {}).get("sha256")
    try:
        base = resolve_base_model(recipe.model)
        weights = base.weights_here()
    except BaseModelError:
        return
    if before and weights and file_record(weights).sha256 != before:
        raise RunError(
            f"{recipe.output_dir} was trained from other weights than those that {base.name} has "
            "now: `whetstone export` ships it as it is; to train from these choose another "
            "--output_dir, or --overwrite"
        )


def _refuse_differences(facts: dict[str, Any]) -> None:
    """Processes that train one model have to start from the same; on other nodes lie other files.

    Raises:
        RunError: something differs. Every process raises it.
    """
    first, *others = of_all(facts)
    for number, other in enumerate(others, start=1):
        for key, value in first.items():
            if other[key] != value:
                raise RunError(
                    f"process {number} has {key} {other[key]}, and process 0 {value}: give every "
                    "node the same recipe, files and base model, and one shared run folder"
                )


def _claim_folder(folder: Path, facts: dict[str, Any], overwrite: bool) -> None:
    if overwrite:
        _remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, {**facts, "finished": False, "processes": processes()})


def _remove_run(folder: Path) -> None:
    """Delete what a run makes, and nothing else that may lie in the folder."""
    # The record first: without it nothing that is left counts as finished.
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _finish(trainer: FineTuner, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """Save the best model, write the record, drop the Trainer's own checkpoints."""
    folder = recipe.output_dir / CHECKPOINT
    # Before other TrainingArguments reset it.
    precision = str(trainer.accelerator.mixed_precision)
    # The first process alone does.
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
        "kept_step": (
            trainer.state.global_step if trainer.kept_step is None else trainer.kept_step
        ),
        "device": str(trainer.args.device),
        "mixed_precision": precision,
    }
    if not is_first():
        return record
    _write_record(recipe.output_dir, record)
    # Last: until the record says that the run is finished, these are the way to go on.
    _drop_means_of_going_on(recipe.output_dir)
    return record


def _drop_means_of_going_on(folder: Path) -> None:
    """Delete what a finished run needs no more: the Trainer's own checkpoints, and token ids."""
    for left in (*(folder / CHECKPOINT).glob("checkpoint-*"), folder / TOKENS):
        shutil.rmtree(left, ignore_errors=True)


def _stated(arguments: TrainingArguments, recipe: Recipe) -> dict[str, Any]:
    """The TrainingArguments that somebody chose: the recipe, the careful defaults, the device."""
    # On the same device: for another one the group of processes would be made anew.
    plain = TrainingArguments(
        output_dir=arguments.output_dir,
        use_cpu=arguments.use_cpu,
        ddp_backend=arguments.ddp_backend,
    ).to_dict()
    chosen = {*careful_defaults(1, 1, 1, {}), *recipe.training}
    skipped = {"output_dir", "logging_dir", "run_name", *REFUSED}
    return {
        key: value
        for key, value in arguments.to_dict().items()
        if key not in skipped and (key in chosen or value != plain.get(key))
    }


def _write_resolved_recipe(
    recipe: Recipe,
    arguments: TrainingArguments,
    tuning: FineTuningArguments,
    reasons: dict[str, str],
    reading: Reading,
    computed: dict[str, Default],
) -> None:
    """Every key in force; beside what was computed stands why."""
    resolved = (
        recipe.as_dict()
        | named_from_anywhere(recipe)
        | _stated(arguments, recipe)
        | dataclasses.asdict(tuning)
    )
    for key, default in computed.items():
        if key not in resolved:
            resolved[key] = default.value
            reasons = reasons | {key: default.reason}
    if reading.window_stride is not None:
        resolved["window_stride"] = reading.window_stride
    lines = [
        "# Every key in force in this run: the recipe, the command line, the defaults.",
        "# What neither of the first two gave was computed; why it is so stands beside it.",
    ]
    for key, value in sorted(resolved.items()):
        line = yaml.safe_dump({key: value}, allow_unicode=True).rstrip("\n")
        lines.append(f"{line}  # {reasons[key]}" if key in reasons else line)
    write_text(recipe.output_dir / RESOLVED_RECIPE, "\n".join(lines) + "\n")


def _computed_share(data: LabelledData, given: bool) -> dict[str, Default]:
    """The `validation_share` in force, by its key; empty where validation rows were given."""
    if given:
        return {}
    return {"validation_share": validation_share(len(data.train) + len(data.validation))}


def named_from_anywhere(recipe: Recipe) -> dict[str, str]:
    """The recipe's files and folders by their whole paths: a recipe elsewhere finds them, too."""
    found = {
        key: str(Path(value).resolve())
        for key, value in recipe.as_dict().items()
        if key in (*FILE_KEYS, "golden_file") and (key, value) != ("golden_file", "none")
    }
    base = Path(recipe.model.model_name_or_path)
    return found | ({"model_name_or_path": str(base.resolve())} if base.is_dir() else {})


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
