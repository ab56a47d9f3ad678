"""The Hugging Face `Trainer` with this project's loss, samplers and choice of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

from training.common.errors import DivergedError, RecipeError, RunError
from training.finetuning.checkpoint_choice import Evaluation, choose_step
from training.finetuning.losses import Loss
from training.finetuning.parameter_groups import parameter_groups
from training.recipe.arguments import FineTuningArguments

if TYPE_CHECKING:
    from datasets import Dataset

# The column with the weight of each window in the loss; absent where every text is one window.
SHARE = "share"


class SeededLengthSampler(LengthGroupedSampler):
    """Batches of rows of similar length, in an order that seed and epoch alone decide.

    transformers takes the order from the global generator. Its state differs between processes
    once they have dropped out different activations: some rows would be seen twice, others never.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, by the Trainer's data loader."""
        self.generator.manual_seed(self._seed + epoch)


class FineTuner(Trainer):
    """A Trainer with a learning rate for each layer, a weight for each window, and its own choice
    of the weights that a run keeps.

    Validation rows keep their order, by which the metrics combine windows; they are sorted by
    length already, also where training groups its rows by length.
    """

    # transformers types neither the methods below that it calls itself (hence `type: ignore`), nor
    # these attributes as closely.
    model: PreTrainedModel
    compute_loss_func: Loss

    tuning = FineTuningArguments()
    # Makes the model as it was before the first step, where its head had a head start.
    at_start: Callable[[], PreTrainedModel] | None = None
    # The number of texts that it is evaluated on.
    validation_rows = 0
    # The step whose weights the model has once training is over.
    kept_step: int | None = None
    # The loss of the last step; None before the first step of this process.
    last_loss: float | None = None

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """As transformers does it.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss = super().training_step(*arguments, **options)
        # A step's batches each return their share of the mean.
        step_loss = float(loss) * self.current_gradient_accumulation_steps
        self._refuse_diverged(step_loss, f"of step {self.state.global_step + 1}")
        self.last_loss = step_loss
        return loss

    def prediction_step(self, *arguments: Any, **options: Any) -> Any:
        """As transformers does it.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss, logits, labels = super().prediction_step(*arguments, **options)
        if loss is not None:
            where = f"of validation rows after step {self.state.global_step}"
            self._refuse_diverged(float(loss), where)
        return loss, logits, labels

    def _refuse_diverged(self, loss: float, where: str) -> None:
        if math.isfinite(loss):
            return
        before = "no step had a finite one before"
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
        """`compute_loss_func` of logits, in which every window has the weight of its column."""
        inputs = dict(inputs)
        targets, shares = inputs.pop("labels"), inputs.pop(SHARE, None)
        outputs = model(**inputs)
        loss = self.compute_loss_func(outputs.logits, targets, num_items_in_batch, shares)
        # The items are those of all processes, and gradients are averaged over the processes.
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the weights of windows: the Trainer drops every column that the model lacks."""
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        if SHARE not in columns:
            columns.append(SHARE)

    def create_optimizer(self) -> Any:
        """As transformers makes it, with groups of parameters by layer.

        Raises:
            RecipeError: that optimizer takes no groups of parameters.
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
        return super().create_optimizer()  # type: ignore[no-untyped-call]

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Report by evaluations: trials with other batch sizes have other steps."""
        done = sum("eval_loss" in entry for entry in self.state.log_history)
        super()._report_to_hp_search(trial, done, metrics)

    def _load_best_model(self) -> None:
        """Called by the Trainer when training is over; it would always take the best weights."""
        self.load_kept_weights()

    def load_kept_weights(self) -> None:
        """Load the weights that `choose_step` keeps.

        A run that stopped early keeps its best weights: its last ones are those of a learning rate
        that had not come down.

        Raises:
            RunError: the checkpoint is gone.
        """
        self.kept_step = self._choose_step()
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
        super()._load_best_model()  # type: ignore[no-untyped-call]

    def load_checkpoint(self, checkpoint: str, state: TrainerState) -> None:
        """Take the weights and the state of one of the Trainer's own checkpoints."""
        self._load_from_checkpoint(checkpoint)
        self.state = state

    def _choose_step(self) -> int:
        measure = str(self.args.metric_for_best_model).removeprefix("eval_")
        evaluations = [
            Evaluation(int(entry["step"]), entry[key])
            for entry in self.state.log_history
            if (key := f"eval_{measure}") in entry
        ]
        is_complete = self.state.global_step >= self.state.max_steps
        last_is_comparable = is_complete and evaluations[-1].step == self.state.global_step
        return choose_step(
            evaluations,
            self.validation_rows,
            greater=bool(self.args.greater_is_better),
            bounded=last_is_comparable and measure != "loss",
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthSampler(sampler.batch_size, sampler.lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)
