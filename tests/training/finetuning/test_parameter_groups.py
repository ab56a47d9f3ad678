"""Layers: what is frozen stays, and each learns at its own rate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.finetuning.test_families import FAMILIES, Family, make_family
from training.common.errors import RecipeError
from training.finetuning.parameter_groups import depths, freeze, parameter_groups


def classifier_of(base: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_every_parameter_has_its_layer(family: Family, tmp_path: Path) -> None:
    model = classifier_of(make_family(family, tmp_path))
    layers = model.config.num_hidden_layers
    found = depths(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, depth in found.items():
        numbered = re.search(r"\.layers?\.(\d+)\.", name)
        if numbered:
            assert depth == int(numbered[1]) + 1, name
        elif "embeddings" in name and "rel_" not in name:
            assert depth == 0, name
        elif not name.startswith(f"{model.base_model_prefix}."):
            assert depth == layers + 1, name
        else:
            assert depth == layers, name
    assert set(found.values()) == set(range(layers + 2))


def test_each_layer_learns_at_a_share_of_the_one_above(tiny_base: Path) -> None:
    model = classifier_of(tiny_base)
    found = depths(model)
    decaying = [name for name in found if name.endswith("dense.weight")]
    groups = parameter_groups(
        model, decaying, learning_rate=1.0, weight_decay=0.1, layerwise_lr_decay=0.5
    )
    of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    top = max(found.values())
    for name, parameter in model.named_parameters():
        assert of[id(parameter)]["lr"] == 0.5 ** (top - found[name]), name
        assert of[id(parameter)]["weight_decay"] == (0.1 if name in decaying else 0.0), name
    assert groups[0]["lr"] == 1.0


def test_the_head_learns_at_a_rate_of_its_own_and_the_top_layers_is_shown(tiny_base: Path) -> None:
    model = classifier_of(tiny_base)
    groups = parameter_groups(
        model,
        [],
        learning_rate=1.0,
        weight_decay=0.0,
        layerwise_lr_decay=1.0,
        head_lr_factor=10.0,
    )
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert of[id(parameter)] == (10.0 if name.startswith("classifier.") else 1.0), name
    assert groups[0]["lr"] == 1.0


def test_frozen_parameters_have_no_gradient_and_no_group(tiny_base: Path) -> None:
    model = classifier_of(tiny_base)
    freeze(model, 1, embeddings=False)
    found = depths(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (found[name] > 1), name
    groups = parameter_groups(
        model, [], learning_rate=1.0, weight_decay=0.0, layerwise_lr_decay=0.5
    )
    assert sum(len(group["params"]) for group in groups) == sum(n > 1 for n in found.values())


def test_embeddings_alone_can_be_frozen(tiny_base: Path) -> None:
    model = classifier_of(tiny_base)
    freeze(model, 0, embeddings=True)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (".embeddings." not in name), name


def test_more_layers_than_there_are_cannot_be_frozen(tiny_base: Path) -> None:
    model = classifier_of(tiny_base)
    most = model.config.num_hidden_layers
    with pytest.raises(RecipeError, match=f"freeze_layers is {most + 1}, .* has {most} layers"):
        freeze(model, most + 1, embeddings=False)
