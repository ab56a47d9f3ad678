"""A built bento: no training code, one pinned model, and always the same answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import bentoml
import pytest
import yaml

from service.inference.classifier import Classifier
from service.package.files import file_record
from service.package.golden import read_golden, write_golden
from service.package.manifest import GOLDEN_FILE, package_version, read_manifest, write_manifest
from tests.conftest import ROOT, STORES, example_rows
from tests.servers import BENTOML, SERVICE, classify, get, serving
from training.registry.register import register

TEXTS = [row["text"] for row in example_rows("test")][:50]


def build(*arguments: str) -> Path:
    """Run `bentoml build`; return the bento's folder."""
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
    """Turn `package` into another sound package, with other labels."""
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


def test_a_bento_serves_the_model_that_it_was_built_with(tiny_package: Path, package: Path) -> None:
    empty_the_store()
    register(tiny_package)
    # Built without an argument, so the bento's own code must find the pinned model.
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


def test_a_named_model_is_pinned(tiny_package: Path, package: Path) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    with bentoml.models.create("text-classifier:000000000000"):
        pass
    content = yaml.safe_load((build("--arg", f"model={tag}") / "bento.yaml").read_text("utf-8"))
    pinned = [model["tag"] for service in content["services"] for model in service["models"]]
    assert pinned == [tag]


def test_a_named_version_is_served_although_a_newer_one_exists(
    tiny_package: Path, package: Path
) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    rename_labels(package)
    register(package)
    with serving(SERVICE, arguments=["--arg", f"model={tag}"]) as address:
        assert f'"version":"{read_manifest(tiny_package).version}"' in get(address, "/info")[1]


def test_a_damaged_model_of_the_store_is_neither_built_nor_served(tiny_package: Path) -> None:
    empty_the_store()
    tag, _ = register(tiny_package)
    golden = Path(bentoml.models.get(tag).path) / GOLDEN_FILE
    golden.write_text(golden.read_text("utf-8") + "\n", "utf-8")
    for command in (["build"], ["serve", SERVICE, "--port", "1"]):
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
    assert {path.name for path in (bento / "src" / "service" / "page").glob("ui.*")} == {
        "ui.html",
        "ui.css",
        "ui.js",
    }
    installed = (bento / "env" / "python" / "requirements.txt").read_text("utf-8").lower()
    assert "onnxruntime==" in installed
    assert not {"torch", "transformers", "datasets", "optimum"} & {
        line.partition("==")[0] for line in installed.splitlines()
    }
