"""Export: what ships answers as what was trained, or does not ship."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.inference.classifier import Classifier
from service.package.package import verify_package
from training.common.errors import ExportError
from training.data.splits import Split
from training.evaluation.evaluate import evaluate_validation
from training.export import package as export_module
from training.export.draft import profile_of
from training.export.package import export, undecided
from training.export.parity import ODD_TEXTS, PARITY_TEXTS, parity_texts
from training.finetuning.record import TrainedRun, open_run
from training.recipe.load import load_recipe


@pytest.fixture
def run(tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path) -> TrainedRun:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    return open_run(load_recipe(tiny_recipe, {"output_dir": str(folder)}))


def test_the_package_says_where_it_came_from(tiny_package: Path) -> None:
    manifest = verify_package(tiny_package)
    provenance = manifest.provenance
    assert len(provenance["base_model"]["sha256"]) == 64
    assert provenance["dataset"]["train_rows"] == 435
    assert provenance["recipe"]["name"] == "tiny"
    assert provenance["packages"]["transformers"]
    assert manifest.parity["fp32"]["token_ids_equal"] is True
    assert manifest.parity["fp32"]["largest_logit_difference"] < 1e-4
    assert sum(manifest.profile.label_priors.values()) == pytest.approx(1)
    assert sum(manifest.profile.token_length_counts) == 435
    assert sum(manifest.profile.confidence_counts) == 48


def test_the_tokenizer_states_its_truncation_and_padding(tiny_package: Path) -> None:
    tokenizer = json.loads((tiny_package / "tokenizer.json").read_text("utf-8"))
    assert tokenizer["truncation"]["max_length"] == 32
    assert tokenizer["padding"]["pad_token"] == "[PAD]"  # noqa: S105


def test_the_profile_has_the_shares_of_the_training_rows(
    run: TrainedRun, tiny_package: Path
) -> None:
    """Two rows, counted by hand: one is cut off, the other has an unknown token."""
    classifier = Classifier.load(tiny_package)
    unknown = classifier.encoder.pieces.unknown_id
    texts = ["word " * 10_000, "\u2603"]
    cut, odd = classifier.encode(texts)
    assert (cut.truncated, odd.truncated) == (True, False)
    tokens = [token for window in odd.windows for token in window.ids]
    assert tokens.count(unknown) == 1
    data = replace(run.data, train=Split(texts, run.data.train.labels[:2]))
    _, answers = evaluate_validation(classifier, run.recipe.export, run.data.validation)
    profile = profile_of(replace(run, data=data), classifier, answers)
    assert profile.truncated_share == 0.5
    assert profile.unknown_share == pytest.approx(0.5 / len(tokens), abs=1e-6)
    assert profile.continued_share is not None
    # This package never abstains.
    assert profile.abstained_share is None


def test_the_package_answers_as_torch_does(run: TrainedRun, tiny_package: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [*run.data.validation.texts, "x", "🙂", "שלום", "word " * 500]
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(run.checkpoint).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits.softmax(-1).numpy()
    answers = Classifier.load(tiny_package).classify(texts)
    np.testing.assert_allclose([answer.probs for answer in answers], expected, atol=1e-5)


def test_exporting_again_gives_the_same_version(run: TrainedRun) -> None:
    before = verify_package(run.folder / "package").version
    assert verify_package(export(run)).version == before


def test_a_tokenizer_that_differs_is_refused(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = export_module.write_tokenizer

    def without_lowercasing(run: TrainedRun, path: Path) -> None:
        plain(run, path)
        content = json.loads(path.read_text("utf-8"))
        content["normalizer"]["lowercase"] = False
        path.write_text(json.dumps(content), "utf-8")

    monkeypatch.setattr(export_module, "write_tokenizer", without_lowercasing)
    _refused(run, "other token ids")


def test_a_graph_that_differs_is_refused(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = export_module.export_graph

    def with_other_weights(checkpoint: Path, folder: Path, loading: dict[str, Any]) -> Path:
        import onnx
        from onnx import numpy_helper

        path = plain(checkpoint, folder, loading)
        graph = onnx.load(path)
        for weight in graph.graph.initializer:
            if weight.name == "classifier.bias":
                changed = numpy_helper.to_array(weight) + np.float32([0.1, 0, 0])
                weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
        onnx.save(graph, path)
        return path

    monkeypatch.setattr(export_module, "export_graph", with_other_weights)
    _refused(run, "logits differ from the checkpoint's by 0.1")


def test_answers_that_half_the_precision_may_change_are_those_that_are_nearly_tied() -> None:
    single = np.array([[0.5, 0.48, 0.02], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [0.34, 0.33, 0.33]])
    assert undecided(single, "single_label") == 0.5
    several = np.array([[0.51, 0.1], [1.0, 0.0], [0.4, 0.6], [0.2, 0.49]])
    assert undecided(several, "multi_label") == 0.5


def test_a_checkpoint_that_is_not_what_was_trained_is_refused(run: TrainedRun) -> None:
    """Parity alone compares the saved checkpoint with itself."""
    from safetensors.torch import load_file, save_file

    path = run.checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"] = weights["classifier.bias"] + 10 * weights["classifier.bias"].sign()
    weights["classifier.bias"][1] += 100
    save_file(weights, path, metadata={"format": "pt"})
    _refused(run, "what was saved is not what was trained")


def _refused(run: TrainedRun, reason: str) -> None:
    """The export fails for `reason`, and the earlier package is still there and sound."""
    before = verify_package(run.folder / "package")
    with pytest.raises(ExportError, match=reason):
        export(run)
    assert verify_package(run.folder / "package") == before
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]


def test_parity_texts_of_a_very_long_text_fit_the_memory() -> None:
    text = "a b " * 50_000
    tracemalloc.start()
    chosen = parity_texts([text, "short"], max_length=128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert max(len(text.split()) for text in chosen if text != "a b " * 50_000) > 128


def test_parity_texts_mix_lengths_and_go_beyond_the_limit() -> None:
    texts = [f"{'word ' * (index % 9)}{index}" for index in range(1000)]
    chosen = parity_texts(texts, max_length=32)
    assert len(chosen) <= PARITY_TEXTS + len(ODD_TEXTS)
    assert set(ODD_TEXTS) < set(chosen)
    assert max(len(text.split()) for text in chosen) > 32
    assert chosen != sorted(chosen, key=len)
