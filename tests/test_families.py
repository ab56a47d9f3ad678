"""Kinds of encoder beside BERT: trained, exported and proven like it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.classifier import Classifier
from training.config import load_recipe
from training.errors import BaseModelError
from training.export import export
from training.train import train


def distilbert(**sizes: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(
        DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0, **sizes)
    )


def roberta(**sizes: Any) -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(
        RobertaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            pad_token_id=0,
            **sizes,
        )
    )


def modernbert(**sizes: Any) -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    return ModernBertModel(
        ModernBertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            reference_compile=False,
            **sizes,
        )
    )


def make_base(
    tiny_base: Path, folder: Path, family: Callable[..., Any], positions: int = 64
) -> Path:
    """A random model of `family` with the tiny tokenizer, which gives token_type_ids to all."""
    shutil.copytree(tiny_base, folder)
    size = len(json.loads((tiny_base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    family(vocab_size=size, max_position_embeddings=positions).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [distilbert, roberta, modernbert])
def test_a_family_ships_what_was_trained(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path, family: Callable[..., Any]
) -> None:
    base = make_base(tiny_base, tmp_path / "base", family)
    overrides = {
        "model_name_or_path": str(base),
        "num_train_epochs": "1",
        "output_dir": str(tmp_path / "run"),
    }
    package = export(train(load_recipe(tiny_recipe, overrides)))
    classifier = Classifier.load(package)
    assert classifier.manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3
    assert classifier.check_golden(package)


def test_positions_that_the_model_lacks_are_refused_before_training(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    base = make_base(tiny_base, tmp_path / "base", roberta, positions=20)
    overrides = {"model_name_or_path": str(base), "output_dir": str(tmp_path / "run")}
    with pytest.raises(BaseModelError, match="to 19 tokens"):
        train(load_recipe(tiny_recipe, overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", [distilbert, roberta, modernbert])
def test_every_familys_head_is_fresh_and_seeded(
    tiny_base: Path, tmp_path: Path, family: Callable[..., Any]
) -> None:
    import torch

    from training.base_models import resolve_base_model
    from training.config import ModelArguments

    folder = make_base(tiny_base, tmp_path / "base", family)
    base = resolve_base_model(ModelArguments(model_name_or_path=str(folder)))
    first = base.classifier(["a", "b"], seed=1)
    same = base.classifier(["a", "b"], seed=1)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, dict(same.named_parameters())[name]), name
            if not name.startswith(first.base_model_prefix) and parameter.ndim == 2:
                parameter.fill_(3.0)
    first.save_pretrained(tmp_path / "old")
    old = resolve_base_model(ModelArguments(model_name_or_path=str(tmp_path / "old")))
    for name, parameter in old.classifier(["c", "d"], seed=1).named_parameters():
        assert not (parameter == 3.0).all(), name
