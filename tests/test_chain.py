"""The whole chain on real weights: `make demo`, and every command of the documentation."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import bentoml
import pytest
from fsspec import filesystem

from service.inference.classifier import Classifier
from service.package.package import verify_package
from tests.browsers import browsing
from tests.conftest import EXAMPLE, ROOT
from tests.documentation import WrittenFile, steps, where_else
from tests.servers import classify, serving
from tests.service.page.test_page import ask, open_page, text_of
from training.evaluation.latency import batch_sensitivity
from whetstone.main import main

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
MINIMUM_ACCURACY = 0.90
# What the page for people is asked in the documentation's picture.
MESSAGE = (
    "I ordered the blue rain jacket on the 3rd, and the tracking page still says 'label created'. "
    "Can you find out where it is?"
)


@dataclass(frozen=True)
class Demo:
    """What the demo left behind, and what it printed."""

    run_folder: Path
    printed: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`make demo`, into a folder of this test run; the fast suite's tiny model plays no part."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "support_tickets"
    done = subprocess.run(
        [sys.executable, "examples/demo.py", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Demo(folder, done.stdout)


def test_the_demo_answers_three_messages_rightly(demo: Demo) -> None:
    answers = re.findall(r"^  (\w+) +([01]\.\d{3})  \S", demo.printed, re.MULTILINE)
    assert [label for label, _ in answers] == ["delivery", "technical_fault", "billing"]
    assert "bentoml serve text-classifier:" in demo.printed


def test_the_run_folder_holds_everything(demo: Demo) -> None:
    made = {str(path.relative_to(demo.run_folder)) for path in demo.run_folder.rglob("*")}
    assert {
        "checkpoint/model.safetensors",
        "package/model.onnx",
        "package/tokenizer.json",
        "package/manifest.json",
        "package/golden.jsonl",
        "package/README.md",
        "metrics.json",
        "report/index.html",
        "resolved_recipe.yaml",
    } <= made


def test_the_example_is_learned(demo: Demo) -> None:
    metrics = json.loads((demo.run_folder / "metrics.json").read_text("utf-8"))
    assert metrics["accuracy"] >= MINIMUM_ACCURACY
    assert metrics["rows"] >= 200
    manifest = verify_package(demo.run_folder / "package")
    assert manifest.metrics["test"]["accuracy"] == metrics["accuracy"]
    assert manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3


def test_the_built_bento_answers_as_the_classifier_does(demo: Demo) -> None:
    with (EXAMPLE / "test.csv").open(newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)][:50]
    expected = Classifier.load(demo.run_folder / "package").classify(texts)
    with serving(str(bentoml.bentos.get("text-classifier:latest").path)) as address:
        answers = classify(address, {"input": texts})["data"]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["label"] == prediction.label
        assert answer["probs"] == pytest.approx(prediction.probs.tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def graphs(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package of each graph that was asked for; the demo's own is put back."""
    package, kept = demo.run_folder / "package", tmp_path_factory.mktemp("graphs")
    shutil.copytree(package, kept / "demo")
    for graph in ("fp32", "int8"):
        recipe = ["export", str(EXAMPLE / "recipe.yaml"), "--output_dir", str(demo.run_folder)]
        assert main([*recipe, "--precision", graph]) == 0
        shutil.copytree(package, kept / graph)
    shutil.rmtree(package)
    shutil.copytree(kept / "demo", package)
    return {graph: kept / graph for graph in ("fp32", "int8")}


def test_int8_of_real_weights_is_smaller_and_agrees(graphs: dict[str, Path]) -> None:
    fp32, int8 = (verify_package(graphs[graph]) for graph in ("fp32", "int8"))
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert int8.files["model.onnx"].size < fp32.files["model.onnx"].size / 3
    found = {row["name"]: row for row in int8.selection["candidates"]}
    assert found["int8"]["label_agreement"] >= 0.97
    assert found["int8"]["mean_probability_drift"] < 0.02
    # Half the weights are read as embeddings; the matrices make it cheaper.
    for length, cost in found["int8"]["cpu_ms_per_text"].items():
        assert 0 < cost < found["fp32"]["cpu_ms_per_text"][length]


def test_an_answer_of_int8_is_the_same_in_any_batch(graphs: dict[str, Path]) -> None:
    """On real weights, which dynamic quantization by batch changed by up to 0.33."""
    classifier = Classifier.load(graphs["int8"])
    with (EXAMPLE / "test.csv").open(newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)]
    change, flips = batch_sensitivity(classifier, classifier.manifest, texts)
    assert change < 1e-5
    assert flips == 0


def test_the_report_opens_in_a_browser(
    demo: Demo, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The pictures of the documentation are this test's: `make screenshots`."""
    chosen = pytestconfig.getoption("screenshots")
    folder = Path(chosen) if chosen else tmp_path
    with browsing() as browser:
        browser.open((demo.run_folder / "report" / "index.html").as_uri())
        for scheme in ("light", "dark"):
            browser.show(1280, scheme)
            browser.screenshot(folder / f"report-{scheme}.png")
        assert browser.console() == []
        assert "support_tickets" in browser.run("return document.body.textContent")
    assert (folder / "report-dark.png").stat().st_size > 10_000


def test_the_page_for_people_answers_in_a_browser(
    demo: Demo, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """As above: pictures of the documentation."""
    chosen = pytestconfig.getoption("screenshots")
    folder = Path(chosen) if chosen else tmp_path
    environment = {"WHETSTONE_PACKAGE": str(demo.run_folder / "package"), "WHETSTONE_UI": "1"}
    with serving("service.service:TextClassifier", environment) as address, browsing() as browser:
        for scheme in ("light", "dark"):
            browser.show(1280, scheme)
            open_page(browser, address)
            ask(browser, MESSAGE)
            browser.run("document.activeElement.blur();")
            browser.screenshot(folder / f"ui-{scheme}.png")
        assert text_of(browser, ".outcome bdi") == ["delivery"]
        assert browser.console() == []
    assert (folder / "ui-dark.png").stat().st_size > 10_000


def test_every_command_of_the_documentation_works(demo: Demo, s3: str) -> None:
    """From the front page to the last guide, in one folder that holds the demo's run.

    A command that stands on several pages is run once.
    """
    messages = gzip.compress((EXAMPLE / "test.csv").read_bytes())
    filesystem("s3").mkdir("bucket")
    filesystem("s3").pipe("bucket/messages/monday.csv.gz", messages)
    home = demo.run_folder.parent.parent
    (home / "examples").symlink_to(ROOT / "examples")
    shutil.copy(EXAMPLE / "test.csv", home / "messages.csv")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran: set[str] = set()
    for step in steps():
        if isinstance(step, WrittenFile):
            (home / step.path).write_text(step.content, "utf-8")
            continue
        if step in ran or where_else(step) is not None:
            continue
        done = subprocess.run(
            ["bash", "-c", step],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step}: {done.stderr}"
        ran.add(step)
    assert len(ran) >= 15
