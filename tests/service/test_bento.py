"""A built bento: no training code, one pinned model, the same answers whatever comes later."""

from __future__ import annotations

import subprocess
from pathlib import Path

import bentoml
import pytest
import yaml

from service.classifier import Classifier
from service.model_package import (
    GOLDEN_FILE,
    file_record,
    package_version,
    read_golden,
    read_manifest,
    write_golden,
    write_manifest,
)
from tests.conftest import ROOT, STORES, example_rows
from tests.servers import BENTOML, classify, get, serving
from training.register import register

TEXTS = [row["text"] for row in example_rows("test")][:50]


def build(*arguments: str) -> Path:
    """`bentoml build`; the bento's folder."""
    done = subprocess.run(
        [BENTOML, "build", "--output", "tag", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(bentoml.bentos.get(done.stdout.strip().removeprefix("__tag__:")).path)


def empty_the_store() -> None:
    """Delete every registered text classifier of this test run."""
    assert all(str(model.path).startswith(STORES.name) for model in bentoml.models.list())
    for model in bentoml.models.list():
        bentoml.models.delete(model.tag)


def rename_labels(package: Path) -> None:
    """Turn `package` into another sound one, whose labels no answer of the first has."""
    manifest = read_manifest(package)
    golden = [
        answer.model_copy(update={"label": f"other {answer.label}"})
        for answer in read_golden(package)
    ]
    write_golden(package, golden)
    files = {**manifest.files, GOLDEN_FILE: file_record(package / GOLDEN_FILE)}
    labels = tuple(f"other {label}" for label in manifest.labels)
    changed = manifest.model_copy(update={"labels": labels, "files": files})
    version = package_version(files, changed)
    write_manifest(package, changed.model_copy(update={"version": version}))


def test_a_bento_keeps_serving_the_model_it_was_built_with(
    tiny_package: Path, package: Path
) -> None:
    empty_the_store()
    register(tiny_package)
    # As a user would build it: no argument, so the bento's own code must find what it pins.
    bento = build()
    rename_labels(package)
    later, new = register(package)
    assert new
    assert str(bentoml.models.get("text-classifier:latest").tag) == later

    expected = Classifier.load(tiny_package).classify(TEXTS)
    with serving(str(bento)) as address:
        assert f'"version":"{read_manifest(tiny_package).version}"' in get(address, "/info")[1]
        answers = classify(address, {"input": TEXTS})["data"]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["label"] == prediction.label
        assert answer["probs"] == pytest.approx(prediction.probs.tolist(), abs=1e-5)


def test_the_named_model_is_pinned_whatever_else_is_registered(
    tiny_package: Path, package: Path
) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    with bentoml.models.create("text-classifier:000000000000"):
        pass
    content = yaml.safe_load((build("--arg", f"model={tag}") / "bento.yaml").read_text("utf-8"))
    pinned = [model["tag"] for service in content["services"] for model in service["models"]]
    assert pinned == [tag]


def test_a_named_version_is_served_whatever_was_registered_last(
    tiny_package: Path, package: Path
) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    rename_labels(package)
    register(package)
    service = "service.service:TextClassifier"
    with serving(service, arguments=["--arg", f"model={tag}"]) as address:
        assert f'"version":"{read_manifest(tiny_package).version}"' in get(address, "/info")[1]


def test_a_damaged_model_of_the_store_is_neither_built_nor_served(tiny_package: Path) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    golden = Path(bentoml.models.get(tag).path) / GOLDEN_FILE
    golden.write_text(golden.read_text("utf-8") + "\n", "utf-8")
    for command in (["build"], ["serve", "service.service:TextClassifier", "--port", "1"]):
        done = subprocess.run(
            [BENTOML, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode != 0
        assert "golden.jsonl was altered" in done.stderr
    again, new = register(tiny_package)
    assert (again, new) == (tag, True), "registering again repairs it"
    assert register(tiny_package) == (tag, False)


def test_a_bento_holds_what_serving_needs_and_nothing_else(tiny_package: Path) -> None:
    tag, _ = register(tiny_package)
    bento = build("--arg", f"model={tag}")
    inside = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*.py")}
    assert inside == {str(path.relative_to(ROOT)) for path in (ROOT / "service").rglob("*.py")}
    assert {path.name for path in (bento / "src" / "service").glob("ui.*")} == {
        *("ui.py", "ui.html", "ui.css", "ui.js"),
    }
    installed = (bento / "env" / "python" / "requirements.txt").read_text("utf-8").lower()
    assert "onnxruntime==" in installed
    assert not {"torch", "transformers", "datasets", "optimum"} & {
        line.partition("==")[0] for line in installed.splitlines()
    }
