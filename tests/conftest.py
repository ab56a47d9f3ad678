"""What every test may use: a tiny random model and its package, made once per run, offline."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

from tests.s3 import s3, s3_server  # noqa: F401 - fixtures

# Before any import of the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# BentoML's stores too: a test empties them.
STORES = tempfile.TemporaryDirectory(prefix="whetstone-tests-")
os.environ["HF_DATASETS_CACHE"] = str(Path(STORES.name) / "datasets")
# Where rehearsals are remembered: each is rehearsed once in a run of the tests.
os.environ["HF_ASSETS_CACHE"] = str(Path(STORES.name) / "assets")
os.environ["BENTOML_HOME"] = str(Path(STORES.name) / "bentoml")
for name in [name for name in os.environ if name.startswith("WHETSTONE_")]:
    del os.environ[name]

# A busy machine is not a fault of the code.
settings.register_profile("whetstone", deadline=None)
settings.load_profile("whetstone")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "support_tickets"
TINY_LABELS = ("delivery", "praise", "returns")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the pictures of the documentation go, when they are made again."""
    parser.addoption("--screenshots", metavar="DIR", help="folder for the screenshots")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs an engine of containers, or half an hour, runs only where it is asked for."""
    for marker in ("image", "faults"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """A tiny model gains nothing from threads, and loses much where the cores are busy."""
    import torch

    torch.set_num_threads(1)


def example_rows(split: str, labels: tuple[str, ...] = TINY_LABELS) -> list[dict[str, str]]:
    """Rows of the example with one of `labels`."""
    with (EXAMPLE / f"{split}.csv").open(newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["label"] in labels]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """`rows` as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and hidden size 32, random weights, with a WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-base")
    rows = example_rows("train")
    # Written out, because a trained vocabulary differs from run to run where counts tie.
    counts = Counter(re.findall(r"[a-z]+", " ".join(r["text"].lower() for r in rows)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:600]
    letters = [chr(code) for code in range(33, 127)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *frequent]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def telling_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random encoder, whose vectors of texts with other words differ more."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("telling") / "base")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 50
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains the tiny model on three labels of the example in seconds.

    So few validation rows that nothing is calibrated and nothing but fp32 may ship.
    """
    folder = tmp_path_factory.mktemp("tiny-recipe")
    write_csv(folder / "train.csv", example_rows("train"))
    write_csv(folder / "test.csv", example_rows("test")[:60])
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""name: tiny
model_name_or_path: {tiny_base}
max_length: 32
train_file: train.csv
test_file: test.csv
validation_share: 0.1
learning_rate: 0.002
num_train_epochs: 6
logging_steps: 5
per_device_train_batch_size: 16
train_on_all_rows: false
use_cpu: true
""",
        encoding="utf-8",
    )
    return recipe


@pytest.fixture(scope="session")
def tiny_run_folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a trained and exported tiny model; read only."""
    from training.export.package import export
    from training.finetuning.train import train
    from training.recipe.load import load_recipe

    folder = tmp_path_factory.mktemp("tiny") / "run"
    export(train(load_recipe(tiny_recipe, {"output_dir": str(folder)})))
    return folder


@pytest.fixture
def package(tiny_run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny package that the test may spoil."""
    return shutil.copytree(tiny_run_folder / "package", tmp_path / "package")


@pytest.fixture(scope="session")
def tiny_package(tiny_run_folder: Path) -> Path:
    """The tiny package itself; read only."""
    return tiny_run_folder / "package"
