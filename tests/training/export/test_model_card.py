"""The model card is one that the hub's own library reads."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from service.package.manifest import read_manifest
from training.export.model_card import model_card


def test_the_hub_reads_the_card(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package)
    card = ModelCard((tiny_package / "README.md").read_text("utf-8"))
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == manifest.provenance["base_model"]["name"]
    found = {result.metric_name: result for result in card.data.eval_results or []}
    assert found["accuracy"].metric_value == round(manifest.metrics["validation"]["accuracy"], 4)
    assert found["accuracy"].dataset_split == "validation"


def test_the_card_tells_what_ships_and_why(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package)
    text = model_card(manifest)
    assert manifest.selection["reason"] in text
    for row in manifest.selection["candidates"]:
        assert f"| {row['name']} | {row['verdict']} |" in text
        assert all(reason in text for reason in row["reasons"])
    assert "Probabilities are not calibrated: 48 validation rows are fewer than 50." in text


def test_the_card_says_how_probabilities_are_calibrated(tiny_package: Path) -> None:
    measured = {"ece": 0.05, "brier": 0.2, "log_loss": 0.4}
    after = {**measured, "ece": 0.01}
    evidence = {"method": "temperature", "rows": 500, "before": measured, "after": after}
    manifest = read_manifest(tiny_package).model_copy(
        update={"temperature": 1.7, "calibration": evidence}
    )
    text = model_card(manifest)
    assert "by a temperature of 1.7" in text
    assert "from 0.05 to 0.010" in text


def test_the_card_says_on_what_numbers_rest_and_what_is_not_promised(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package)
    rests_on = manifest.metrics["validation"]["rests_on"]
    assert rests_on == "validation rows, which also chose the checkpoint"
    promise = {"wanted": 0.9, "rows": 12, "promised": False, "observed": 1.0, "lower_bound": 0.749}
    promises = {"confidence": 0.9, "labels": {"billing": promise}}
    text = model_card(manifest.model_copy(update={"calibration": {"promises": promises}}))
    assert f"| {rests_on} |" in text
    assert (
        "- label 'billing': 12 validation rows can promise a precision of 0.82 at most, not 0.9; "
        "from its threshold on they prove 0.74"
    ) in text
    # A card of a package that says neither can still be written.
    old = {key: v for key, v in manifest.metrics["validation"].items() if key != "rests_on"}
    assert "## Labels" in model_card(manifest.model_copy(update={"metrics": {"validation": old}}))
