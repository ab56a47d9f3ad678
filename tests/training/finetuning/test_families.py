"""Families of encoders, each with its own kind of tokenizer: trained, exported, proven, asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.inference.classifier import Classifier
from tests.conftest import example_rows, write_csv
from training.common.errors import BaseModelError
from training.export.package import export
from training.finetuning.train import train
from training.recipe.load import load_recipe

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT_PAIR = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA_PAIR = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "position_buckets": 16,
    "type_vocab_size": 0,
}


@dataclass(frozen=True)
class Family:
    """A kind of encoder: its classes by name, its tokenizer's kind and what it gives the model."""

    name: str
    tokenizer: str
    special: tuple[str, ...]
    templates: tuple[str, str]
    kind: str = "wordpiece"
    has_types: bool = False
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def sizes(self) -> dict[str, Any]:
        return {**SIZES, **dict(self.settings)}


FAMILIES = (
    Family("Bert", "BertTokenizerFast", BERT_SPECIAL, BERT_PAIR, has_types=True),
    Family("DistilBert", "DistilBertTokenizerFast", BERT_SPECIAL, BERT_PAIR),
    Family("Roberta", "RobertaTokenizerFast", ROBERTA_SPECIAL, ROBERTA_PAIR, "bpe"),
    Family("XLMRoberta", "XLMRobertaTokenizerFast", ROBERTA_SPECIAL, ROBERTA_PAIR, "unigram"),
    Family(
        "DebertaV2",
        "PreTrainedTokenizerFast",
        BERT_SPECIAL,
        BERT_PAIR,
        "unigram",
        has_types=True,
        settings=tuple(DEBERTA_V3.items()),
    ),
    Family("Electra", "ElectraTokenizerFast", BERT_SPECIAL, BERT_PAIR, has_types=True),
    Family(
        "ModernBert",
        "PreTrainedTokenizerFast",
        BERT_SPECIAL,
        BERT_PAIR,
        "bpe",
        settings=(("reference_compile", False),),
    ),
    Family("MPNet", "MPNetTokenizerFast", ROBERTA_SPECIAL, ROBERTA_PAIR),
)


def train_tokenizer(family: Family, texts: list[str]) -> Any:
    """A tokenizer of the family's kind, learned from `texts`."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    unknown = next(token for token in family.special if "unk" in token.lower())
    special = list(family.special)
    if family.kind == "bpe":
        backend = Tokenizer(models.BPE(unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif family.kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=500, special_tokens=special, unk_token=unknown, show_progress=False
        )
    else:
        backend = Tokenizer(models.WordPiece(unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=500, special_tokens=special, show_progress=False
        )
    backend.train_from_iterator(texts, trainer)
    single, pair = family.templates
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in special],
    )
    return backend


def make_family(family: Family, folder: Path) -> Path:
    """A tiny random model of the family with a tokenizer of its kind."""
    import torch
    import transformers

    backend = train_tokenizer(family, [row["text"] for row in example_rows("train")])
    bert = family.special == BERT_SPECIAL
    inputs = ["input_ids", *(["token_type_ids"] if family.has_types else []), "attention_mask"]
    names = {
        f"{name}_token": next(token for token in family.special if name in token.lower())
        for name in ("pad", "unk", "mask")
    }
    ends = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    names |= {"cls_token": ends[0], "sep_token": ends[1]}
    if not bert:
        names |= {"bos_token": ends[0], "eos_token": ends[1]}
    tokenizer = getattr(transformers, family.tokenizer)(
        tokenizer_object=backend, model_max_length=62, model_input_names=inputs, **names
    )
    tokenizer.save_pretrained(folder)
    positions = 64
    config = getattr(transformers, f"{family.name}Config")(
        vocab_size=backend.get_vocab_size(),
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **distilled(family.sizes) if family.name == "DistilBert" else family.sizes,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family.name}Model")(config).save_pretrained(folder)
    return folder


def distilled(sizes: dict[str, Any]) -> dict[str, Any]:
    """DistilBERT's names for the same sizes."""
    return {
        "dim": sizes["hidden_size"],
        "n_layers": sizes["num_hidden_layers"],
        "n_heads": sizes["num_attention_heads"],
        "hidden_dim": sizes["intermediate_size"],
    }


@pytest.mark.parametrize(
    ("pairs", "pooling"),
    [
        pytest.param(False, "model", id="texts"),
        pytest.param(True, "model", id="pairs", marks=pytest.mark.slow),
        pytest.param(True, "mean", id="mean", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_a_family_ships_what_was_trained(
    family: Family, pairs: bool, pooling: str, tmp_path: Path
) -> None:
    base = make_family(family, tmp_path / "base")
    rows = example_rows("train", ("delivery", "praise"))[::6]
    rows = [row | {"text_pair": rows[-n - 1]["text"]} for n, row in enumerate(rows)]
    write_csv(tmp_path / "train.csv", rows)
    recipe = tmp_path / "recipe.yaml"
    lines = ["name: tiny", f"model_name_or_path: {base}", "max_length: 24", "train_file: train.csv"]
    lines += ["num_train_epochs: 1", "use_cpu: true", "validation_share: 0.3"]
    lines += [f"pooling: {pooling}"]
    lines += ["text_pair_column: text_pair"] if pairs else []
    recipe.write_text("\n".join(lines), "utf-8")
    package = export(train(load_recipe(recipe, {"output_dir": str(tmp_path / "run")})))
    classifier = Classifier.load(package)
    evidence = classifier.manifest.parity["fp32"]
    assert evidence["largest_logit_difference"] <= 1e-3
    assert evidence["token_ids_equal"]
    assert classifier.check_golden(package)
    texts: Any = ["where is it", "late " * 200, "Grüße 👍", "x"]
    if pairs:
        texts = [(text, other) for text in texts for other in ("lovely " * 50, "ok")]
    together = classifier.classify(texts)
    for text, answer in zip(texts, together, strict=True):
        (alone,) = classifier.classify([text])
        assert alone.probs == pytest.approx(answer.probs, abs=1e-5)
    assert any(answer.truncated for answer in together)
    assert all(answer.tokens <= 24 for answer in together)


def test_a_family_that_optimum_cannot_export_is_refused_before_training(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    from transformers import ErnieConfig, ErnieModel

    def ernie(**sizes: Any) -> Any:
        return ErnieModel(ErnieConfig(**SIZES, **sizes))

    base = make_base(tiny_base, tmp_path / "base", ernie)
    overrides = {"model_name_or_path": str(base), "output_dir": str(tmp_path / "run")}
    with pytest.raises(BaseModelError, match="'ernie', which optimum cannot export"):
        train(load_recipe(tiny_recipe, overrides))
    assert not (tmp_path / "run").exists()


def distilbert(**sizes: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(**distilled(SIZES), pad_token_id=0, **sizes))


def roberta(**sizes: Any) -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**SIZES, pad_token_id=0, **sizes))


def modernbert(**sizes: Any) -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    tokens = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    return ModernBertModel(ModernBertConfig(**SIZES, **tokens, reference_compile=False, **sizes))


def make_base(
    tiny_base: Path, folder: Path, family: Callable[..., Any], positions: int = 64
) -> Path:
    """A random model of `family` with the tiny tokenizer, which gives token_type_ids to all."""
    shutil.copytree(tiny_base, folder)
    size = len(json.loads((tiny_base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    family(vocab_size=size, max_position_embeddings=positions).save_pretrained(folder)
    return folder


def test_tokenizer_outputs_that_the_model_does_not_take_are_left_out(
    tiny_base: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    base = make_base(tiny_base, tmp_path / "base", distilbert)
    overrides = {
        "model_name_or_path": str(base),
        "num_train_epochs": "1",
        "output_dir": str(tmp_path / "run"),
    }
    package = export(train(load_recipe(tiny_recipe, overrides)))
    assert Classifier.load(package).check_golden(package)


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

    from training.finetuning.base_models import resolve_base_model
    from training.recipe.arguments import ModelArguments

    folder = make_base(tiny_base, tmp_path / "base", family)
    base = resolve_base_model(ModelArguments(model_name_or_path=str(folder)))
    first = base.classifier(["a", "b"], "single_label", seed=1)
    same = base.classifier(["a", "b"], "single_label", seed=1)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, dict(same.named_parameters())[name]), name
            if not name.startswith(first.base_model_prefix) and parameter.ndim == 2:
                parameter.fill_(3.0)
    first.save_pretrained(tmp_path / "old")
    old = resolve_base_model(ModelArguments(model_name_or_path=str(tmp_path / "old")))
    for name, parameter in old.classifier(["c", "d"], "single_label", seed=1).named_parameters():
        assert not (parameter == 3.0).all(), name
