"""What ships: int8 where it is as good, and something else, with the reason, where it is not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.inference.classifier import Classifier
from service.package.manifest import Manifest
from service.package.package import verify_package
from tests.conftest import example_rows, write_csv
from training.common.errors import DataError, ExportError, RecipeError
from training.evaluation.latency import BatchSensitivity, batch_within_memory
from training.export import candidates, variants
from training.export.output import print_selection
from training.export.package import export
from training.export.variants import FALLBACKS, VARIANTS, GraphVariant
from training.finetuning.record import TrainedRun
from training.finetuning.train import train
from training.recipe.load import load_recipe


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny model with validation rows enough for a verdict; read only."""
    folder = tmp_path_factory.mktemp("candidates")
    rows = example_rows("train") + example_rows("test")
    write_csv(folder / "train.csv", rows[::2])
    write_csv(folder / "validation.csv", rows[1::2])
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""name: tiny
model_name_or_path: {tiny_base}
max_length: 32
train_file: train.csv
validation_file: validation.csv
learning_rate: 0.003
num_train_epochs: 25
per_device_train_batch_size: 16
use_cpu: true
""",
        encoding="utf-8",
    )
    return train(load_recipe(recipe, {"output_dir": str(folder / "run")}))


@pytest.fixture
def run(trained: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy that the test may spoil."""
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    return dataclasses.replace(trained, folder=folder)


def exported(run: TrainedRun, **keys: Any) -> Manifest:
    """The manifest of an export with `keys` of the recipe's ExportArguments."""
    arguments = dataclasses.replace(run.recipe.export, **keys)
    recipe = dataclasses.replace(run.recipe, export=arguments)
    return verify_package(export(dataclasses.replace(run, recipe=recipe)))


def by_name(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in manifest.selection["candidates"]}


def plant_outliers(run: TrainedRun, factor: float) -> None:
    """Scale one feature of every attention's values down and its output weights up again.

    The same function in floating point. In int8, that feature's weights set the scale of every
    output, and the others become zero.
    """
    from safetensors.torch import load_file, save_file

    path = run.checkpoint / "model.safetensors"
    weights = load_file(path)
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}.attention"
        for part in ("weight", "bias"):
            weights[f"{name}.self.value.{part}"][0] /= factor
        weights[f"{name}.output.dense.weight"][:, 0] *= factor
    save_file(weights, path, metadata={"format": "pt"})


def test_int8_ships_where_the_gates_let_it(run: TrainedRun) -> None:
    manifest = exported(run)
    found = by_name(manifest)
    assert manifest.selection["chosen"] == "int8"
    assert manifest.precision == "int8"
    assert set(found) == {"fp32", "int8"}
    assert found["int8"]["verdict"] == "passed"
    assert found["int8"]["bytes"] < found["fp32"]["bytes"]
    assert found["int8"]["label_agreement"] >= 0.98
    assert found["int8"]["mean_probability_drift"] > found["fp32"]["mean_probability_drift"]
    assert found["fp32"]["largest_logit_difference"] <= 1e-3
    assert all(cost > 0 for row in found.values() for cost in row["cpu_ms_per_text"].values())


def test_the_measured_candidate_is_the_one_that_ships(run: TrainedRun) -> None:
    manifest = exported(run)
    classifier = Classifier.load(run.folder / "package")
    rows = run.data.validation
    answers = classifier.classify(rows.texts)
    right = [a.label == labels[0] for a, labels in zip(answers, rows.labels, strict=True)]
    assert np.mean(right) == by_name(manifest)["int8"]["accuracy"]
    assert np.mean(right) == manifest.metrics["validation"]["accuracy"]


def test_int8_of_planted_outliers_is_refused_and_fp32_ships(run: TrainedRun) -> None:
    plant_outliers(run, 1000)
    manifest = exported(run)
    found = by_name(manifest)
    assert manifest.precision == "fp32"
    assert manifest.selection["chosen"] == "fp32"
    for name in ("int8", "int8, embeddings in fp32", "int8, full range"):
        assert found[name]["verdict"] == "refused"
        assert "significantly" in " ".join(found[name]["reasons"])
    assert "int8 is refused" in manifest.selection["reason"]
    assert found["fp32"]["verdict"] == "passed"


def test_a_fallback_that_passes_ships(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """With embeddings too coarse for int8 only those stay in fp32."""
    plain = variants.quantize

    def spoilt(source: Path, target: Path, *, embeddings: bool = True, **options: bool) -> int:
        import onnx
        from onnx import numpy_helper

        count = plain(source, target, embeddings=embeddings, **options)
        if embeddings:
            graph = onnx.load(target)
            for weight in graph.graph.initializer:
                if weight.name.endswith("_rows_int8"):
                    coarse = numpy_helper.to_array(weight) // 100
                    weight.CopyFrom(numpy_helper.from_array(coarse, weight.name))
            onnx.save(graph, target)
        return count

    monkeypatch.setattr(variants, "quantize", spoilt)
    manifest = exported(run)
    assert by_name(manifest)["int8"]["verdict"] == "refused"
    assert manifest.selection["chosen"] == "int8, embeddings in fp32"
    assert "after int8 was refused" in manifest.selection["reason"]
    assert manifest.precision == "int8"
    assert "int8, full range" not in by_name(manifest)


def test_what_the_gates_refuse_ships_only_when_asked_for_and_says_so(
    run: TrainedRun, caplog: pytest.LogCaptureFixture
) -> None:
    plant_outliers(run, 1000)
    manifest = exported(run, precision="int8")
    assert (manifest.precision, manifest.selection["forced"]) == ("int8", True)
    assert "against the gates" in caplog.text
    assert "significantly lower" in manifest.selection["reason"]


def test_few_validation_rows_decide_nothing(tiny_package: Path) -> None:
    manifest = verify_package(tiny_package)
    int8 = by_name(manifest)["int8"]
    assert manifest.precision == "fp32"
    assert int8["verdict"] == "inconclusive"
    assert "48 validation rows cannot tell" in int8["reasons"][0]
    assert "int8 is inconclusive" in manifest.selection["reason"]


def test_bounds_of_the_recipe_decide(run: TrainedRun) -> None:
    manifest = exported(run, gates='{"max_drift": 0}')
    assert manifest.precision == "fp32"
    assert manifest.selection["gates"]["max_drift"] == 0
    assert "more than 0" in by_name(manifest)["int8"]["reasons"][0]


def test_an_answer_that_depends_on_its_batch_is_refused(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def effect(_classifier: Classifier, manifest: Manifest, _texts: object) -> BatchSensitivity:
        return BatchSensitivity(0.33, 2) if manifest.precision == "int8" else BatchSensitivity(0, 0)

    monkeypatch.setattr(candidates, "batch_sensitivity", effect)
    manifest = exported(run)
    assert manifest.precision == "fp32"
    assert "2 answers do" in by_name(manifest)["int8"]["reasons"][0]


def unreadable(variant: GraphVariant) -> GraphVariant:
    """A variant whose graph ONNX Runtime cannot read."""

    def make(_source: Path, target: Path) -> None:
        target.write_bytes(b"no graph")

    return dataclasses.replace(variant, make=make)


def test_a_graph_that_cannot_be_run_is_not_available_and_another_ships(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "fp16", unreadable(VARIANTS["fp16"]))
    manifest = exported(run, target_device="gpu")
    assert manifest.selection["chosen"] == "fp32"
    assert by_name(manifest)["fp16"]["verdict"] == "unavailable"
    assert "ONNX Runtime does not run it" in by_name(manifest)["fp16"]["reasons"][0]
    assert "fp16 is not available" in manifest.selection["reason"]


def test_a_gpu_package_is_half_precision(run: TrainedRun) -> None:
    manifest = exported(run, target_device="gpu")
    assert set(by_name(manifest)) == {"fp32", "fp16"}
    assert (manifest.precision, manifest.target_device) == ("fp16", "gpu")
    assert by_name(manifest)["fp16"]["bytes"] < 0.7 * by_name(manifest)["fp32"]["bytes"]


@pytest.mark.parametrize("precision", ["optimized", "optimised"])
def test_fused_operators_ship_where_they_are_asked_for(run: TrainedRun, precision: str) -> None:
    manifest = exported(run, precision=precision)
    assert set(by_name(manifest)) == {"fp32", "optimized"}
    assert manifest.selection["chosen"] == "optimized"
    assert not manifest.selection["forced"]
    assert by_name(manifest)["optimized"]["cpu_ms_per_text"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("precision: fp16", "precision fp16 is for the GPU"),
        ("target_device: gpu\nprecision: int8", "precision int8 is for the CPU"),
        ("target_device: gpu\nprecision: optimised", "precision optimised is for the CPU"),
        ("gates: {max_drfit: 0.1}", "did you mean 'max_drift'"),
        ("gates: {max_drift: 2}", "lies between 0 and 1"),
        ("gates: strict", "give a mapping"),
        ("gates: {max_drift: 2024-01-01}", "'2024-01-01', which is no number"),
        ("gates: {max_drift: yes}", "which is no number"),
        ("gates: {max_drift: .nan}", "lies between 0 and 1"),
        ("gates: {max_half_width: 0}", "no number of rows reaches"),
    ],
)
def test_impossible_keys_are_refused_in_one_sentence(
    tmp_path: Path, keys: str, reason: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: x\ntrain_file: x.csv\n{keys}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=reason):
        load_recipe(recipe, {})


def test_golden_texts_are_the_users_or_none(run: TrainedRun, tmp_path: Path) -> None:
    chosen = write_csv(tmp_path / "golden.csv", [{"text": "where is it?"}, {"text": "thank you"}])
    exported(run, golden_file=str(chosen))
    package = run.folder / "package"
    lines = (package / "golden.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert "where is it?" in lines[0]
    many = write_csv(tmp_path / "many.csv", [{"text": "again"}] * 1001)
    with pytest.raises(DataError, match=r"holds 1001 texts.*give 1 to 1000"):
        exported(run, golden_file=str(many))
    exported(run, golden_file="none")
    assert (package / "golden.jsonl").read_bytes() == b""
    assert Classifier.load(package).check_golden(package) == 0
    assert "It has no golden texts." in (package / "README.md").read_text("utf-8")


def test_golden_texts_that_cannot_be_used_are_refused_before_training(
    trained: TrainedRun, tmp_path: Path
) -> None:
    arguments = dataclasses.replace(trained.recipe.export, golden_file=str(tmp_path / "none.csv"))
    recipe = dataclasses.replace(trained.recipe, export=arguments, output_dir=tmp_path / "run")
    with pytest.raises(DataError, match=r"none\.csv"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_a_fallback_is_tried_where_int8_cannot_be_made(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "int8", unreadable(VARIANTS["int8"]))
    for precision in ("auto", "int8"):
        manifest = exported(run, precision=precision)
        assert manifest.selection["chosen"] == "int8, embeddings in fp32"
        assert manifest.selection["forced"] is False
    monkeypatch.setitem(FALLBACKS, "int8", ())
    with pytest.raises(ExportError, match="precision int8 cannot be had: ONNX Runtime does not"):
        exported(run, precision="int8")


def test_a_tie_of_fp32_is_no_reason_to_refuse_it(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "batch_sensitivity", lambda *_: BatchSensitivity(1e-7, 1))
    manifest = exported(run)
    assert by_name(manifest)["fp32"]["verdict"] == "passed"
    assert by_name(manifest)["int8"]["verdict"] == "refused"


def test_batches_of_long_texts_stay_within_memory() -> None:
    assert [batch_within_memory(64, n) for n in (32, 512, 1024, 8192)] == [64, 64, 16, 1]
    assert batch_within_memory(2, 512) == 2


def test_the_screen_shows_what_ships(
    run: TrainedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_selection(exported(run).selection)
    printed = capsys.readouterr().out
    assert "→ int8" in printed
    assert "ships: int8, which passes the gates" in printed
