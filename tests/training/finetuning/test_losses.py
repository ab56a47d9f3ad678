"""Class weights mean what they mean in torch and scikit-learn, and change what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from training.common.errors import RecipeError
from training.data.dataset import LabeledData
from training.data.splits import Split
from training.finetuning.base_models import resolve_base_model
from training.finetuning.losses import label_odds, label_weights, weighted_loss
from training.finetuning.new_head import init_bias_from_priors
from training.recipe.arguments import ModelArguments
from training.recipe.checks import parse_class_weights


def data(labels: list[tuple[str, ...]], task: Any) -> LabeledData:
    split = Split([str(n) for n in range(len(labels))], labels)
    names = sorted({name for found in labels for name in found})
    return LabeledData(split, split, None, names, task, has_pairs=False, dropped=0)


ONE = data([("a",)] * 6 + [("b",)] * 3 + [("c",)], "single_label")
SEVERAL = data([("a", "b")] * 2 + [("a",)] * 6 + [()] * 2, "multi_label")


def test_balanced_weights_of_one_label_are_scikit_learns() -> None:
    truth = [found[0] for found in ONE.train.labels]
    expected = compute_class_weight("balanced", classes=np.asarray(["a", "b", "c"]), y=truth)
    assert label_weights("balanced", ONE) == pytest.approx(expected.tolist())


def test_balanced_weights_of_several_labels_are_negatives_over_positives() -> None:
    assert label_weights("balanced", SEVERAL) == pytest.approx([2 / 8, 8 / 2])


def test_weights_may_be_named() -> None:
    assert label_weights('{"c": 4}', ONE) == [1.0, 1.0, 4.0]
    assert label_weights("none", ONE) is None
    with pytest.raises(RecipeError, match="'d', which is not a label: a, b, c"):
        label_weights('{"d": 4}', ONE)


@pytest.mark.parametrize("value", ["balance", "{}", "[1]", '{"a": 0}', '{"a": "x"}', '{"a": true}'])
def test_other_weights_are_refused(value: str) -> None:
    with pytest.raises(RecipeError, match="class_weights is"):
        parse_class_weights(value)


def test_the_weighted_loss_is_torchs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 3)
    targets, weights = torch.tensor([0, 1, 2, 0, 0, 1, 2, 2]), [1.0, 2.0, 5.0]
    each = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), reduction="none")
    found = weighted_loss(weights, "single_label", 0.0)(logits, targets)
    assert float(found) == pytest.approx(float(each(logits, targets).mean()))
    several = torch.randint(0, 2, (8, 3)).float()
    binary = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))
    found = weighted_loss(weights, "multi_label", 0.0)(logits, several)
    assert float(found) == pytest.approx(float(binary(logits, several)))


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_two_batches_of_one_step_count_as_one(task: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 3)
    targets = torch.tensor([0, 1, 2, 0, 0, 1, 2, 2])
    if task == "multi_label":
        targets = torch.nn.functional.one_hot(targets).float()
    loss = weighted_loss([1.0, 2.0, 5.0], task, 0.0)
    whole = loss(logits, targets)
    # What the Trainer counts: every target of the step that is not -100.
    items = targets.ne(-100).sum()
    parts = [loss(logits[half], targets[half], items) for half in (slice(4), slice(4, 8))]
    assert float(sum(parts)) == pytest.approx(float(whole))


def test_a_head_over_several_labels_starts_at_their_odds(tiny_base: Any) -> None:
    base = resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base)))
    model = base.classifier(["a", "b"], "multi_label", 0).eval()
    odds = label_odds(SEVERAL, None)
    assert odds == pytest.approx([8.5 / 2.5, 2.5 / 8.5])
    init_bias_from_priors(model, odds)
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    # The random head adds little to it.
    assert torch.sigmoid(logits)[0].tolist() == pytest.approx([8.5 / 11, 2.5 / 11], abs=0.1)
    balanced = label_odds(SEVERAL, label_weights("balanced", SEVERAL))
    assert balanced == pytest.approx([1.0, 1.0], abs=0.2)
