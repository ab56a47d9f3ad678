"""The model card is one that the hub's own library reads."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from service.model_package import read_manifest
from training.card import model_card


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
    evidence = {"method": "temperature", "before": measured, "after": {**measured, "ece": 0.01}}
    manifest = read_manifest(tiny_package).model_copy(
        update={"temperature": 1.7, "calibration": evidence}
    )
    text = model_card(manifest)
    assert "by a temperature of 1.7" in text
    assert "from 0.0500 to 0.0100" in text
