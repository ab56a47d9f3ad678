"""The head's start is a logistic regression over the frozen encoder, in every shape of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel

from service.inference.classifier import Classifier
from tests.conftest import example_rows
from training.data.encoding import TextEncoding, encode_split, make_targets
from training.data.splits import Split
from training.export.package import export
from training.finetuning.base_models import resolve_base_model
from training.finetuning.frozen_encoder import FrozenEncoder, linear_head
from training.finetuning.head_start import (
    EncodedRows,
    HeadStart,
    fit_head_start,
    label_rows,
)
from training.finetuning.logistic_regression import (
    choose_strength,
    draw_rows,
    fit_regression,
    make_folds,
)
from training.finetuning.losses import weighted_loss
from training.finetuning.train import train
from training.recipe.arguments import ModelArguments
from training.recipe.load import load_recipe

LABELS = ["delivery", "praise", "returns"]
ROWS = example_rows("train")
SPLIT = Split([row["text"] for row in ROWS], [(row["label"],) for row in ROWS])
# As few as a random encoder's 32 numbers can tell apart.
FEW = SPLIT.take(np.arange(0, len(SPLIT), 12))


def base_at(folder: Path, pooling: str) -> Any:
    return resolve_base_model(ModelArguments(model_name_or_path=str(folder), pooling=pooling))  # type: ignore[arg-type]


def start_of(
    base: Any,
    split: Split,
    text_encoding: TextEncoding,
    task: Any = "single_label",
    weights: Any = None,
    names: Any = None,
) -> tuple[PreTrainedModel, HeadStart]:
    tokenizer = base.tokenizer()
    model = base.classifier(LABELS, task, 0)
    encoder = FrozenEncoder.of(model, tokenizer)
    assert encoder is not None
    encoded = encode_split(split, tokenizer, LABELS, task, text_encoding)
    rows = EncodedRows(split, encoded, make_targets(split, LABELS, task))
    start = fit_head_start(encoder, rows, task, weights, 0, names=names)
    assert start is not None
    return model, start


def logits_of(model: PreTrainedModel, base: Any, texts: list[Any]) -> torch.Tensor:
    batch = base.tokenizer()(texts, truncation=True, max_length=32, padding=True)
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(
            **{key: torch.tensor(value) for key, value in batch.items()}
        ).logits
    return found


def test_the_model_knows_its_training_rows_before_the_first_step(
    telling_base: Path,
) -> None:
    base, rows = base_at(telling_base, "mean"), FEW
    fresh = logits_of(base.classifier(LABELS, "single_label", 0), base, rows.texts)
    model, start = start_of(base, rows, TextEncoding(32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = logits_of(start.applied_to(model), base, rows.texts)
    truth = torch.from_numpy(make_targets(rows, LABELS, "single_label"))
    assert (found.argmax(1) == truth).float().mean() > 0.65
    assert (found.argmax(1) == truth).sum() > 1.2 * (fresh.argmax(1) == truth).sum()
    # Of the encoder nothing has moved.
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_an_encoder_that_says_nothing_leaves_the_head_as_it_is(tiny_base: Path) -> None:
    """Its texts' vectors hardly differ: weights that told them apart would be thrown about."""
    base = base_at(tiny_base, "model")
    tokenizer, model = base.tokenizer(), base.classifier(LABELS, "single_label", 0)
    encoded = encode_split(FEW, tokenizer, LABELS, "single_label", TextEncoding(32))
    targets = make_targets(FEW, LABELS, "single_label")
    encoder = FrozenEncoder.of(model, tokenizer)
    assert encoder is not None
    rows = EncodedRows(FEW, encoded, targets)
    assert fit_head_start(encoder, rows, "single_label", None, 0) is None


def test_names_of_labels_are_texts_where_rows_are_few() -> None:
    few = FEW.take(np.arange(30))
    found = label_rows(few, ["late_delivery", "praise", "Sci/Tech"])
    assert found is not None
    assert found.texts == ["late delivery", "praise", "Sci Tech"]
    assert found.labels == [("late_delivery",), ("praise",), ("Sci/Tech",)]
    assert label_rows(few, ["0", "1", "praise"]) is None
    assert label_rows(SPLIT, LABELS) is None
    pairs = Split([(str(text), "more") for text in few.texts], few.labels)
    assert label_rows(pairs, LABELS) is None


def test_a_name_moves_the_start_towards_its_label(telling_base: Path) -> None:
    base, rows = base_at(telling_base, "mean"), FEW.take(np.arange(12))
    names = label_rows(rows, LABELS)
    assert names is not None
    found = []
    for named in (
        None,
        encode_split(names, base.tokenizer(), LABELS, "single_label", TextEncoding(32)),
    ):
        model, start = start_of(base, rows, TextEncoding(32), names=named)
        probs = logits_of(start.applied_to(model), base, names.texts).softmax(1)
        found.append(float(probs.diagonal().mean()))
    assert found[1] > found[0] + 0.05


def test_the_fit_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(120, 8)) / np.sqrt(8)
    truth = (table[:, :3] + 0.3 * random.normal(size=(120, 3))).argmax(1)
    weights = [1.0, 3.0, 0.5]
    loss = weighted_loss(weights, "single_label", 0.0)
    weight, bias = fit_regression(torch.from_numpy(table), torch.from_numpy(truth), 3, loss, 10.0)
    theirs = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000)
    theirs.fit(table, truth, np.asarray(weights)[truth])
    assert np.allclose(weight.numpy(), theirs.coef_, atol=0.02)
    # Only differences of biases mean anything: a constant to all changes no probability.
    assert np.allclose(
        bias.numpy() - bias.numpy().mean(),
        theirs.intercept_ - theirs.intercept_.mean(),
        atol=0.02,
    )


def test_several_labels_a_row_and_one_without_any_row(telling_base: Path) -> None:
    labels = [row if place % 3 else (*row, "praise") for place, row in enumerate(FEW.labels)]
    kept = [tuple(dict.fromkeys(name for name in row if name != "returns")) for row in labels]
    split = Split(FEW.texts, kept)
    base = base_at(telling_base, "mean")
    model, start = start_of(base, split, TextEncoding(32), "multi_label", [1.0, 1.0, 1.0])
    probs = torch.sigmoid(logits_of(start.applied_to(model), base, FEW.texts)).numpy()
    truth = make_targets(split, LABELS, "multi_label").astype(bool)
    assert probs[truth[:, 0], 0].mean() > probs[~truth[:, 0], 0].mean() + 0.1
    assert probs[:, 2].max() < 0.2


def test_class_weights_shift_the_answers(telling_base: Path) -> None:
    base = base_at(telling_base, "mean")
    model, start = start_of(base, SPLIT, TextEncoding(32), weights=[20.0, 1.0, 1.0])
    often = (logits_of(start.applied_to(model), base, SPLIT.texts).argmax(1) == 0).sum()
    model, start = start_of(base, SPLIT, TextEncoding(32))
    assert often > (logits_of(start.applied_to(model), base, SPLIT.texts).argmax(1) == 0).sum()


def test_a_text_in_windows_is_read_whole(telling_base: Path) -> None:
    long = Split([" ".join([text] * 5) for text in SPLIT.texts[:40]], SPLIT.labels[:40])
    base = base_at(telling_base, "mean")
    windows = TextEncoding(16, 4, "mean")
    assert max(encode_split(long, base.tokenizer(), LABELS, "single_label", windows).windows) > 2
    _, whole = start_of(base, long, windows)
    _, beginning = start_of(base, long, TextEncoding(16))
    assert whole.weight.shape == (3, 32)
    assert not np.allclose(whole.weight, beginning.weight)


def test_a_head_with_a_hidden_layer_stays_as_it_is(tiny_base: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(vocab_size=20, intermediate_size=8, num_labels=3, **small)
    assert linear_head(RobertaForSequenceClassification(config)) is None
    for pooling in ("mean", "model"):
        model = base_at(tiny_base, pooling).classifier(LABELS, "single_label", 0)
        assert linear_head(model) is model.classifier


def test_a_head_start_is_written_and_read_whole(tmp_path: Path) -> None:
    start = HeadStart(np.ones((2, 3), dtype=np.float32), np.zeros(2, dtype=np.float32))
    start.save(tmp_path / "tokens" / "start.safetensors")
    found = HeadStart.load(tmp_path / "tokens" / "start.safetensors")
    assert np.array_equal(found.weight, start.weight) and np.array_equal(found.bias, start.bias)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["start.safetensors"]


def test_of_many_rows_every_label_is_drawn_in_proportion() -> None:
    targets = np.asarray([0] * 900 + [1] * 99 + [2])
    chosen = draw_rows(targets, 100, 0)
    counts = np.bincount(targets[chosen])
    assert len(chosen) == 100 and 85 <= counts[0] <= 92 and counts[2] == 1
    assert np.array_equal(chosen, draw_rows(targets, 100, 0))
    assert np.array_equal(draw_rows(targets, 1000, 0), np.arange(1000))
    assert len(draw_rows(np.eye(3)[targets], 100, 0)) == 100


def test_equal_texts_are_in_one_fold_and_labels_in_all() -> None:
    texts = [str(number // 2) for number in range(60)]
    targets = np.asarray([number // 2 % 3 for number in range(60)])
    folds = make_folds(texts, targets, 0)
    assert np.array_equal(folds[::2], folds[1::2])
    for fold in range(3):
        assert set(targets[folds == fold]) == {0, 1, 2}


def test_the_strength_suits_the_rows() -> None:
    """Of rows without any sense the least is lost by the strongest penalty."""
    random = np.random.default_rng(0)
    loss = weighted_loss([1.0] * 4, "multi_label", 0.0)
    folds = make_folds([str(row) for row in range(200)], np.arange(200) % 4, 0)
    table = torch.from_numpy(random.normal(size=(200, 20)) / np.sqrt(20))
    noise = torch.from_numpy((random.random((200, 4)) < 0.5).astype(np.float32))
    clear = (table[:, :4] > 0).float()
    found = [
        choose_strength(table, truth, folds, 4, loss, "multi_label") for truth in (noise, clear)
    ]
    assert found == [1.0, 100.0]


def test_training_for_no_epoch_gives_the_regression_alone(
    telling_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "num_train_epochs": "0"}
    keys |= {"model_name_or_path": str(telling_base), "pooling": "mean"}
    run = train(load_recipe(tiny_recipe, keys))
    assert run.record["kept_step"] == 0 and len(run.record["evaluations"]) == 1
    before = load_file(telling_base / "model.safetensors")
    after = load_file(run.checkpoint / "model.safetensors")
    encoder = {name: value for name, value in after.items() if name.startswith("bert.")}
    assert all(
        torch.equal(before[name.removeprefix("bert.")], value) for name, value in encoder.items()
    )
    # A fresh head has a deviation of 0.02.
    assert after["classifier.weight"].std() > 0.1
    # An ordinary package: the head is part of the graph.
    manifest = Classifier.load(export(run)).manifest
    assert manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3
    found = manifest.metrics["validation"]["accuracy"]
    assert found == pytest.approx(run.record["evaluations"][0]["accuracy"], abs=1e-6)
