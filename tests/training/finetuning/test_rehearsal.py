"""What does not fit is one sentence before the training, and what can be mended is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.inference.classifier import Classifier
from tests.conftest import example_rows, write_csv
from training.common.errors import (
    BaseModelError,
    DivergedError,
    ExportError,
    RecipeError,
    WhetstoneError,
)
from training.common.layout import CHECKPOINT
from training.export.package import export
from training.finetuning.defaults import warnings_about
from training.finetuning.plan import TrainingPlan
from training.finetuning.train import train
from training.finetuning.tune import tune
from training.pipeline import check
from training.recipe.arguments import Recipe
from training.recipe.load import load_recipe
from whetstone.main import main

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["zzgadget", "qqwidget"]


def recipe_of(tiny_recipe: Path, folder: Path, base: Path | None = None, **keys: Any) -> Recipe:
    given = {"output_dir": str(folder / "run"), "num_train_epochs": "1", **keys}
    return load_recipe(tiny_recipe, given | ({"model_name_or_path": str(base)} if base else {}))


def refused(recipe: Recipe, kind: type[WhetstoneError] = BaseModelError) -> str:
    """Why, in one sentence, and before the run folder is there."""
    with pytest.raises(kind) as error:
        train(recipe)
    assert not recipe.output_dir.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that the test may spoil."""
    return shutil.copytree(tiny_base, tmp_path / "base")


@pytest.fixture
def more_words(base: Path) -> Path:
    """The tiny base, whose tokenizer knows two words that the embeddings lack."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(WORDS)
    tokenizer.save_pretrained(base)
    return base


def with_model(base: Path, model: Any) -> Path:
    """The tiny tokenizer beside another model."""
    (base / "model.safetensors").unlink()
    model.save_pretrained(base)
    return base


def words_of(base: Path) -> int:
    vocabulary: dict[str, int] = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"][
        "vocab"
    ]
    return len(vocabulary)


def decoder(base: Path, **keys: Any) -> Path:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=words_of(base), n_embd=32, n_layer=2, n_head=2, n_positions=64, **keys
    )
    return with_model(base, GPT2Model(config))


def one_type(base: Path) -> Path:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        **SIZES,
        vocab_size=words_of(base),
        intermediate_size=64,
        type_vocab_size=1,
        max_position_embeddings=64,
    )
    return with_model(base, BertModel(config))


def test_tokens_without_embeddings_are_refused(
    tiny_recipe: Path, tmp_path: Path, more_words: Path
) -> None:
    said = refused(recipe_of(tiny_recipe, tmp_path, more_words))
    assert "(qqwidget, zzgadget)" in said and "naming them in added_tokens" in said
    with pytest.raises(BaseModelError, match="embeddings lack"):
        check(
            recipe_of(tiny_recipe, tmp_path, more_words),
            strict=False,
            json_file=None,
            plot_file=None,
        )


def test_tokens_that_the_recipe_adds_get_embeddings(
    tiny_recipe: Path, tmp_path: Path, more_words: Path
) -> None:
    """Two that the tokenizer knows already, and one that it does not."""
    words = [*WORDS, "xxnovelty"]
    recipe = recipe_of(tiny_recipe, tmp_path, more_words, added_tokens=words, pooling="mean")
    package = export(train(recipe))
    classifier = Classifier.load(package)
    assert classifier.check_golden(package)
    *answers, other = classifier.classify([*words, "zzgadgets"])
    assert [answer.tokens for answer in answers] == [3, 3, 3]
    assert other.tokens > 3
    assert len({answer.probs.tobytes() for answer in answers}) == 3


def test_new_embeddings_are_not_frozen(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave one of the two out"):
        recipe_of(tiny_recipe, tmp_path, added_tokens=WORDS, freeze_layers="1")


def test_an_encoder_decoder_is_refused(tiny_recipe: Path, tmp_path: Path, base: Path) -> None:
    from transformers import BartConfig, BartModel

    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = BartConfig(vocab_size=words_of(base), pad_token_id=0, **size)
    said = refused(recipe_of(tiny_recipe, tmp_path, with_model(base, BartModel(config))))
    assert "is an encoder-decoder (bart)" in said


def test_a_decoder_ships_without_the_types_that_its_tokenizer_gives(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    """Its configuration does not name the padding either, after which it would answer."""
    package = export(train(recipe_of(tiny_recipe, tmp_path, decoder(base))))
    classifier = Classifier.load(package)
    assert classifier.manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3
    assert classifier.check_golden(package)


def test_a_graph_that_answers_otherwise_is_found_before_the_training(
    tiny_recipe: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The types that a decoder's graph has no input for."""
    fed = ["input_ids", "token_type_ids", "attention_mask"]
    monkeypatch.setattr("training.finetuning.base_checks.graph_inputs", lambda _: fed)
    monkeypatch.setattr("training.export.parity.graph_inputs", lambda _: fed)
    said = refused(recipe_of(tiny_recipe, tmp_path, decoder(base, pad_token_id=0)), ExportError)
    assert "logits differ from the checkpoint's" in said


def test_pairs_train_on_a_base_with_one_type_of_tokens(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    rows = example_rows("train", ("delivery", "praise"))[::4]
    rows = [row | {"other": rows[-n - 1]["text"]} for n, row in enumerate(rows)]
    keys = {
        "train_file": str(write_csv(tmp_path / "pairs.csv", rows)),
        "test_file": str(write_csv(tmp_path / "test.csv", rows[:9])),
    }
    recipe = recipe_of(tiny_recipe, tmp_path, one_type(base), text_pair_column="other", **keys)
    package = export(train(recipe))
    assert Classifier.load(package).check_golden(package)


def test_single_texts_train_on_a_base_with_one_type_of_tokens(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    assert train(recipe_of(tiny_recipe, tmp_path, one_type(base))).record["finished"]


def test_more_types_than_the_model_has_are_refused(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    path = base / "tokenizer.json"
    state = json.loads(path.read_text("utf-8"))
    state["post_processor"]["single"][0]["SpecialToken"]["type_id"] = 2
    path.write_text(json.dumps(state), "utf-8")
    said = refused(recipe_of(tiny_recipe, tmp_path, base))
    assert "gives tokens the type 2, and the model has embeddings for 2" in said


def test_a_weight_that_is_no_number_is_refused(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    weights = load_file(base / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    said = refused(recipe_of(tiny_recipe, tmp_path, base))
    assert "encoder.layer.1.output.dense.weight" in said and "not a finite number" in said


def test_a_loss_or_gradient_beyond_all_numbers_is_found_before_the_training(
    tiny_recipe: Path, tmp_path: Path, base: Path
) -> None:
    weights = load_file(base / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] += 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    said = refused(recipe_of(tiny_recipe, tmp_path, base))
    assert "is not a finite number before it has learned anything" in said


@pytest.mark.parametrize("logger", ["wandb", "nonsense"])
def test_a_logger_that_is_not_there_is_refused(
    tiny_recipe: Path, tmp_path: Path, logger: str
) -> None:
    said = refused(recipe_of(tiny_recipe, tmp_path, report_to=logger), RecipeError)
    assert said.startswith(f"report_to: {logger} cannot be used")


def test_an_optimizer_that_is_not_there_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    said = refused(recipe_of(tiny_recipe, tmp_path, optim="adamw_bnb_8bit"))
    assert "cannot be trained" in said and "bitsandbytes" in said


def test_a_graph_that_was_proven_is_not_proven_again(
    tiny_recipe: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other weights than those of all other tests.
    weights = load_file(base / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 1.25
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    exported: list[Path] = []
    from training.finetuning.rehearsal import prove

    def counted(run: Any, *given: Any, **more: Any) -> Any:
        exported.append(run.folder)
        return prove(run, *given, **more)

    monkeypatch.setattr("training.finetuning.rehearsal.prove", counted)
    train(recipe_of(tiny_recipe, tmp_path / "a", base))
    train(recipe_of(tiny_recipe, tmp_path / "b", base, learning_rate="0.001"))
    assert len(exported) == 1 and not exported[0].exists()
    train(recipe_of(tiny_recipe, tmp_path / "c", base, max_length="24"))
    assert len(exported) == 2


def test_the_rehearsal_leaves_the_model_as_it_was(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.finetuning.rehearsal import rehearse

    found = []

    def watched(plan: TrainingPlan) -> None:
        before = {name: value.clone() for name, value in plan.model.state_dict().items()}
        rehearse(plan)
        after = plan.model.state_dict()
        found.append(all(torch.equal(value, after[name]) for name, value in before.items()))
        found.append(all(value.grad is None for value in plan.model.parameters()))

    monkeypatch.setattr("training.finetuning.train.rehearse", watched)
    train(recipe_of(tiny_recipe, tmp_path))
    assert found == [True, True]


@pytest.mark.slow
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    tiny_recipe: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    said = refused(recipe_of(tiny_recipe, tmp_path, base))
    found = re.search(r'`python -c "(.*)"`.* to (\S+)$', said)
    assert found is not None
    command, converted = found.groups()
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert train(recipe_of(tiny_recipe, tmp_path, tmp_path / converted)).record["finished"]


# Stated: the default depends on the processor.
@pytest.mark.parametrize(
    ("bf16", "advice"),
    [
        ("false", "try a lower learning_rate or a smaller max_grad_norm"),
        ("true", "try a lower learning_rate, bf16: false or a smaller max_grad_norm"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(
    tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], bf16: str, advice: str
) -> None:
    recipe = recipe_of(tiny_recipe, tmp_path, learning_rate="1e30", logging_steps="1", bf16=bf16)
    with pytest.raises(DivergedError) as error:
        train(recipe)
    said = str(error.value)
    found = re.search(
        r"of step (\d+) is nan .* of a step was (\d\.\d+); .* is (\S+) of 1e\+30", said
    )
    assert found is not None, said
    assert float(found[2]) > 0 and float(found[3]) > 1e20
    assert advice in said
    assert "loss=0.000" not in capfd.readouterr().err
    assert not (recipe.output_dir / CHECKPOINT / "model.safetensors").exists()


def test_a_loss_of_validation_that_is_not_finite_stops_the_run(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    keys = {"learning_rate": "1e30", "max_steps": "1", "warmup_ratio": "0"}
    with pytest.raises(DivergedError, match="of validation rows after step 1 is nan"):
        train(recipe_of(tiny_recipe, tmp_path, **keys))


def test_a_trial_whose_loss_is_not_finite_ends_alone(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {"num_train_epochs": "1", "per_device_train_batch_size": "32"}
    recipe = recipe_of(tiny_recipe, tmp_path, learning_rate="1e30", **keys)
    with pytest.raises(WhetstoneError, match="no trial came to an end"):
        tune(recipe, 1)


def test_compiling_on_a_cpu_is_warned_of(tiny_recipe: Path, tmp_path: Path) -> None:
    assert not warnings_about({"use_cpu": True}, 1)
    (said,) = warnings_about({"use_cpu": True, "torch_compile": True}, 1)
    assert "torch_compile" in said and "CPU" in said


def test_a_failed_rehearsal_is_one_line_on_the_command_line(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(tiny_recipe), "--report_to", "wandb", "--output_dir", str(tmp_path / "r")]
    assert main(words) == 1
    assert "whetstone: report_to: wandb cannot be used" in capsys.readouterr().err
