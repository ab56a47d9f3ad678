"""The loss is that of texts, however windows, batches and processes divide them up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.conftest import example_rows, write_csv
from tests.training.finetuning.test_resume import TOGETHER, finish
from training.common.layout import RECORD
from training.data.dataset import LabeledData
from training.data.encoding import EncodedSplit, TextEncoding, make_targets
from training.data.splits import Split
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.plan import plan_training
from training.finetuning.trainer import make_trainer
from training.recipe.arguments import (
    DataArguments,
    ExportArguments,
    FineTuningArguments,
    ModelArguments,
    Recipe,
)

LABELS = ["delivery", "praise", "returns"]
WEIGHTS = [0.5, 1.0, 4.0]
TEXT_ENCODING = TextEncoding(16, 4, "mean")


def texts_of_many_lengths(rows: int) -> Split:
    """Texts of one to several windows of 16 tokens."""
    found = example_rows("test")[:rows]
    texts = [" ".join([row["text"]] * (number % 4 + 1)) for number, row in enumerate(found)]
    return Split([*texts[:-1], "ok"], [(row["label"],) for row in found])


ROWS = texts_of_many_lengths(25)


@pytest.fixture(params=["single_label", "multi_label"])
def trainer(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> FineTuner:
    """Of the tiny model, with class weights and, for one label a row, label smoothing."""
    single = request.param == "single_label"
    labels = ROWS.labels if single else [("praise", "returns"), (), *ROWS.labels[2:]]
    split = Split(ROWS.texts, labels)
    data = LabeledData(split, split, None, LABELS, request.param, has_pairs=False, dropped=0)
    recipe = Recipe(
        ModelArguments(
            model_name_or_path=str(tiny_base),
            max_length=TEXT_ENCODING.max_length,
            long_text="window",
            window_stride=TEXT_ENCODING.window_stride,
        ),
        DataArguments(class_weights=json.dumps(dict(zip(LABELS, WEIGHTS, strict=True)))),
        FineTuningArguments(),
        ExportArguments(),
        {
            "use_cpu": True,
            "report_to": "none",
            "bf16": False,
            "per_device_train_batch_size": 4,
            "group_by_length": True,
            "label_smoothing_factor": 0.1 if single else 0.0,
        },
        tmp_path,
    )
    plan = plan_training(recipe, data)
    assert plan.text_encoding == TEXT_ENCODING and plan.class_weights == WEIGHTS
    plan.model.eval()
    return make_trainer(plan)


def mean_over_texts(trainer: FineTuner) -> float:
    """Text by text: the mean over its windows, each computed alone."""
    tokenizer, several = trainer.processing_class, trainer.label_smoother is None
    labels = [("praise", "returns"), (), *ROWS.labels[2:]] if several else ROWS.labels
    task: Any = "multi_label" if several else "single_label"
    targets = torch.from_numpy(make_targets(Split(ROWS.texts, labels), LABELS, task))
    weights = torch.tensor(WEIGHTS)
    losses, windows = [], 0
    for text, target in zip(ROWS.texts, targets, strict=True):
        encoded = tokenizer(text, **TEXT_ENCODING.tokenizer_options())
        of_text = []
        for ids in encoded["input_ids"]:
            row = torch.tensor([ids])
            with torch.no_grad():
                logits = trainer.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            of_text.append(
                functional.binary_cross_entropy_with_logits(logits[0], target, pos_weight=weights)
                if several
                else functional.cross_entropy(
                    logits, target[None], weight=weights, label_smoothing=0.1, reduction="sum"
                )
            )
        windows += len(of_text)
        losses.append(float(torch.stack(of_text).mean()))
    assert windows > 2 * len(losses)
    return float(np.mean(losses))


def test_the_validation_loss_and_scores_do_not_depend_on_the_batch(trainer: FineTuner) -> None:
    expected = mean_over_texts(trainer)
    scores = []
    for size in (1, 3, 7, 32, 500):
        trainer.args.per_device_eval_batch_size = size
        found = trainer.evaluate()
        assert found["eval_loss"] == pytest.approx(expected, abs=1e-5)
        timed = ("runtime", "per_second", "time")
        scores.append({k: v for k, v in found.items() if not k.endswith(timed)})
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-6)


def test_every_text_counts_as_much_in_an_epoch_whatever_its_length(trainer: FineTuner) -> None:
    """Also where batches are of windows of like length, so that long texts fill some alone."""
    total, rows = 0.0, 0
    for batch in trainer.get_train_dataloader():
        here = len(batch["labels"])
        with torch.no_grad():
            total += float(trainer.compute_loss(trainer.model.eval(), batch)) * here
        rows += here
    assert total / rows == pytest.approx(mean_over_texts(trainer), abs=1e-5)


def test_windows_of_a_text_count_one_together() -> None:
    windows = [1, 4, 1, 2]
    shares = EncodedSplit(None, windows).window_shares()  # type: ignore[arg-type]
    assert shares.mean() == pytest.approx(1)
    of_texts = np.add.reduceat(shares, np.cumsum([0, *windows[:-1]]))
    assert of_texts == pytest.approx([2.0] * 4)


# Evaluated before the first step, where the weights are the same whoever trains.
AT_START = ("--eval_on_start", "true", "--max_steps", "1", "--use_cpu", "true")


@pytest.mark.slow
def test_two_processes_report_the_loss_of_one(tiny_recipe: Path, tmp_path: Path) -> None:
    """Of 25 texts the batches of two processes are filled up with some that stand there twice."""
    rows = zip(ROWS.texts, ROWS.labels, strict=True)
    texts = [{"text": str(text), "label": label} for text, (label,) in rows]
    validation = write_csv(tmp_path / "validation.csv", texts)
    keys = ("--class_weights", "balanced", "--validation_file", str(validation))
    keys += ("--max_length", "16", "--long_text", "window", *AT_START)
    found = []
    for words, name in (([], "one"), (TOGETHER, "two")):
        folder = tmp_path / name
        given = ("train", str(tiny_recipe), "--output_dir", str(folder), *keys)
        finish([*words, "-m", "whetstone", *given])
        record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
        found.append(record["evaluations"][0])
    one, two = found
    assert one["step"] == two["step"] == 0
    assert two == pytest.approx(one, abs=1e-6)
