"""Registering: the whole package into BentoML's store, once."""

from __future__ import annotations

from pathlib import Path

import bentoml
import pytest

from service.package.files import PackageError
from service.package.golden import write_golden
from service.package.manifest import GOLDEN_FILE, read_manifest
from service.package.package import seal_package, verify_package
from training.registry.register import register


def test_a_package_is_registered_once(tiny_package: Path) -> None:
    version = verify_package(tiny_package).version
    tag, _ = register(tiny_package)
    again, new = register(tiny_package)
    assert (tag, again, new) == (f"text-classifier:{version}", tag, False)
    stored = bentoml.models.get(tag)
    assert verify_package(Path(stored.path)).version == version
    assert stored.info.labels["name"] == "tiny"
    assert stored.info.metadata["classes"] == ["delivery", "praise", "returns"]
    # The report and the checkpoint hold users' text or torch's format: they stay behind.
    assert sorted(path.name for path in Path(stored.path).iterdir()) == [
        "README.md",
        "golden.jsonl",
        "manifest.json",
        "model.onnx",
        "model.yaml",
        "tokenizer.json",
    ]


def test_an_altered_package_is_not_registered(package: Path) -> None:
    (package / GOLDEN_FILE).unlink()
    with pytest.raises(PackageError, match=GOLDEN_FILE):
        register(package)


def test_a_copy_with_other_golden_texts_is_replaced(package: Path) -> None:
    """The same version: but who asked for no golden texts must not ship the old ones."""
    tag, _ = register(package)
    write_golden(package, [])
    seal_package(package, read_manifest(package))
    assert register(package) == (tag, True)
    assert (Path(bentoml.models.get(tag).path) / "golden.jsonl").read_bytes() == b""
    assert register(package) == (tag, False)


def test_a_package_with_an_unmeasured_metric_is_registered(package: Path) -> None:
    """As of a positive label that the test file has no row of."""
    manifest = read_manifest(package)
    metrics = {"accuracy": 1.0, "positive": {"f1": 0.0, "average_precision": None}}
    seal_package(package, manifest.model_copy(update={"metrics": metrics}))
    tag, _ = register(package)
    stored = bentoml.models.get(tag)
    assert stored.info.metadata["metrics"] == {"accuracy": 1.0, "positive": {"f1": 0.0}}
