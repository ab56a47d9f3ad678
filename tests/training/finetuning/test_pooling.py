"""Mean pooling: what the head reads, when it is chosen, and that a checkpoint keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from service.inference.classifier import Classifier
from training.common.errors import BaseModelError
from training.common.layout import CHECKPOINT, RESOLVED_RECIPE
from training.export.package import export
from training.finetuning.base_files import POOLING_FILE
from training.finetuning.base_models import resolve_base_model
from training.finetuning.pooling import (
    LENGTH,
    MEAN_OF_ONE_LENGTH,
    PLAIN_MEAN,
    POOLING_KEY,
    load_checkpoint,
    mean_pooled,
)
from training.finetuning.train import train
from training.recipe.arguments import ModelArguments
from training.recipe.load import load_recipe

MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


def with_pooling(base: Path, folder: Path, description: Any) -> Path:
    """A copy of `base` that says how it pools, as sentence-transformers does."""
    shutil.copytree(base, folder)
    (folder / POOLING_FILE).parent.mkdir()
    (folder / POOLING_FILE).write_text(json.dumps(description), "utf-8")
    return folder


def pooling_of(folder: Path, **keys: Any) -> str:
    arguments = ModelArguments(model_name_or_path=str(folder), **keys)
    return str(resolve_base_model(arguments).pooling.value)


def test_the_mean_is_over_the_texts_own_tokens_and_of_one_length(tiny_base: Path) -> None:
    arguments = ModelArguments(model_name_or_path=str(tiny_base), pooling="mean")
    model = resolve_base_model(arguments).classifier(["a", "b", "c"], "single_label", 0).eval()
    ids = torch.tensor([[2, 40, 41, 3, 0, 0], [2, 50, 51, 52, 53, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with torch.inference_mode():
        hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        means = torch.stack([hidden[0, :4].mean(0), hidden[1].mean(0)])
        means = LENGTH * means / means.norm(dim=1, keepdim=True)
        wanted = means @ model.classifier.weight.T + model.classifier.bias
        found = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 2]))
    assert torch.allclose(found.logits, wanted, atol=1e-6)
    assert torch.allclose(
        found.loss, torch.nn.functional.cross_entropy(wanted, torch.tensor([0, 2]))
    )
    # Nothing is trained, kept or shipped that no answer depends on.
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]


def test_the_mean_of_many_tokens_is_exact_also_of_vectors_in_half(tiny_base: Path) -> None:
    arguments = ModelArguments(model_name_or_path=str(tiny_base), pooling="mean")
    model = resolve_base_model(arguments).classifier(["a", "b"], "single_label", 0).eval()
    given: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda _m, inputs, _o: given.append(inputs[0]))
    hidden = torch.randn(1, 60, 32, generator=torch.Generator().manual_seed(0)).bfloat16() + 1
    model.bert.register_forward_hook(
        lambda *_: BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden)
    )
    ids = torch.full((1, 60), 40)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    mean = hidden.float().mean(1)
    assert torch.allclose(given[0], LENGTH * mean / mean.norm(), atol=1e-5)


def test_an_older_checkpoint_reads_the_mean_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    made = resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base), pooling="mean"))
    made.classifier(["a", "b"], "single_label", 0).save_pretrained(tmp_path / "new")
    older = shutil.copytree(tmp_path / "new", tmp_path / "older")
    config = json.loads((older / "config.json").read_text("utf-8"))
    assert config[POOLING_KEY] == MEAN_OF_ONE_LENGTH
    (older / "config.json").write_text(json.dumps(config | {POOLING_KEY: PLAIN_MEAN}), "utf-8")
    given: list[torch.Tensor] = []
    for folder in ("new", "older"):
        model = load_checkpoint(tmp_path / folder)
        model.classifier.register_forward_hook(lambda _m, inputs, _o: given.append(inputs[0]))
        with torch.inference_mode():
            model(input_ids=torch.tensor([[2, 40, 3]]), attention_mask=torch.ones(1, 3))
    assert torch.allclose(given[0], LENGTH * given[1] / given[1].norm(), atol=1e-5)
    assert abs(float(given[1].norm()) - LENGTH) > 0.1
    assert pooling_of(older) == "mean"


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        (MEAN, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "model"),
        (MEAN | {"pooling_mode_max_tokens": True}, "model"),
        ([], "model"),
    ],
)
def test_a_base_is_pooled_as_it_was_made(
    tiny_base: Path, tmp_path: Path, description: Any, wanted: str
) -> None:
    base = with_pooling(tiny_base, tmp_path / "base", description)
    assert pooling_of(base) == wanted
    # What the recipe says wins.
    assert pooling_of(base, pooling="mean") == "mean"
    assert pooling_of(base, pooling="model") == "model"


def test_the_embedded_base_is_pooled_by_mean() -> None:
    assert resolve_base_model(ModelArguments()).pooling.value == "mean"


def test_a_base_that_cannot_be_asked_is_pooled_as_its_family_and_says_so(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A hub's cache as transformers leaves it: without what it never asked for, until it did."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    cache = tmp_path / "models--someone--some-model"
    snapshot = cache / "snapshots" / "abc"
    shutil.copytree(tiny_base, snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc", "utf-8")
    assert pooling_of(Path("someone/some-model")) == "model"
    assert "cannot be asked" in caplog.text
    caplog.clear()
    known = cache / ".no_exist" / "abc" / POOLING_FILE
    known.parent.mkdir(parents=True)
    known.touch()
    assert pooling_of(Path("someone/some-model")) == "model"
    assert not caplog.text
    known.unlink()
    (snapshot / POOLING_FILE).parent.mkdir()
    (snapshot / POOLING_FILE).write_text(json.dumps(MEAN), "utf-8")
    assert pooling_of(Path("someone/some-model")) == "mean"


def test_a_checkpoint_and_its_package_pool_as_it_was_trained(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    base = with_pooling(tiny_base, tmp_path / "base", MEAN)
    keys = {"model_name_or_path": str(base), "output_dir": str(tmp_path / "run")}
    run = train(load_recipe(tiny_recipe, keys | {"num_train_epochs": "2"}))
    resolved = (run.folder / RESOLVED_RECIPE).read_text("utf-8")
    assert yaml.safe_load(resolved)["pooling"] == "mean"
    assert "stands for it" in next(x for x in resolved.splitlines() if x.startswith("pooling"))
    model = load_checkpoint(run.folder / CHECKPOINT)
    assert type(model) is mean_pooled(type(model).__mro__[1])
    # Whoever starts from it pools alike, unless told otherwise.
    again = {"model_name_or_path": str(run.folder / CHECKPOINT)}
    first = resolve_base_model(ModelArguments(**again))
    assert first.pooling.value == "mean"
    other = resolve_base_model(ModelArguments(**again, pooling="model"))
    other.classifier(["a", "b"], "single_label", 0).save_pretrained(tmp_path / "other")
    assert type(load_checkpoint(tmp_path / "other")) is BertForSequenceClassification
    package = export(run)
    manifest = Classifier.load(package).manifest
    # The gates compare with the checkpoint as `load_checkpoint` has it.
    assert manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3
    assert manifest.provenance["base_model"]["pooling"] == "mean"


# One without a classifier, and one whose encoder calls its pooler whether it is there or not.
@pytest.mark.parametrize("kind", ["vit", "squeezebert"])
def test_mean_pooling_of_a_kind_that_cannot_is_refused(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"model_type": kind}), "utf-8")
    arguments = ModelArguments(model_name_or_path=str(base), pooling="mean")
    with pytest.raises(BaseModelError, match="use pooling: model"):
        resolve_base_model(arguments).classifier(["a", "b"], "single_label", 0)
