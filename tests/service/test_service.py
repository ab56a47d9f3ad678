"""The BentoML service in real processes: no torch inside, folder or bento, one pinned model."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bentoml.exceptions import BentoMLException

from service.inference.classifier import Classifier
from service.package.golden import write_golden
from service.package.manifest import read_manifest
from service.package.package import seal_package
from service.startup import pinned_model, refuse_unsound
from tests.conftest import ROOT, example_rows
from tests.servers import BENTOML, SERVICE, classify, get, serving

# Makes `import torch` and `import transformers` fail, then answers one text.
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "optimum", "datasets", "training"):
            raise ImportError(f"{name} is not for serving")

sys.meta_path.insert(0, Refuse())
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch can still be imported: this test proves nothing")
"""


def test_serving_needs_neither_torch_nor_transformers(tiny_package: Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "service").rglob("*.py")
        if path.name != "__init__.py"
    )
    code = WITHOUT_TORCH + "\n".join(
        [
            *(f"import {module}" for module in modules),
            "from service.service import routes, TextClassifier",
            "TextClassifier.inner()",
            "from starlette.testclient import TestClient",
            "answer = TestClient(routes).post('/classify', json={'input': 'hello'})",
            "print(answer.status_code)",
            "routes.lifecycle.close()",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "WHETSTONE_PACKAGE": str(tiny_package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("200")


def test_a_folder_is_served_with_an_empty_model_store(tiny_package: Path, tmp_path: Path) -> None:
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "BENTOML_HOME": str(tmp_path)}
    with serving(SERVICE, environment) as address:
        assert get(address, "/livez")[0] == 200
        assert get(address, "/readyz")[0] == 200
        classify(address, {"input": "hello"})
        status, metrics = get(address, "/metrics")
        assert status == 200
        assert 'whetstone_requests_total{route="/classify",status="200"} 1.0' in metrics
        expected = Classifier.load(tiny_package).classify(["where is my parcel"])[0]
        (item,) = classify(address, {"input": "where is my parcel"})["data"]
        assert item["label"] == expected.label
        assert item["score"] == pytest.approx(expected.score, abs=1e-5)


def test_concurrent_callers_get_their_own_answers(tiny_package: Path) -> None:
    texts = [row["text"] for row in example_rows("test")]
    lists = [texts[start : start + 1 + start % 4] for start in range(0, 60, 2)]
    classifier = Classifier.load(tiny_package)
    with (
        serving(SERVICE, {"WHETSTONE_PACKAGE": str(tiny_package)}) as address,
        ThreadPoolExecutor(16) as callers,
    ):
        answers = callers.map(lambda texts: classify(address, {"input": texts}), lists * 3)
        for asked, answer in zip(lists * 3, answers, strict=True):
            for item, expected in zip(answer["data"], classifier.classify(asked), strict=True):
                assert item["probs"] == pytest.approx(expected.probs.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WHETSTONE_PACKAGE": "/nowhere"}, "/nowhere is not a model package"),
        ({"WHETSTONE_PACKGE": "x"}, "did you mean WHETSTONE_PACKAGE"),
        ({"WHETSTONE_API_KEYS_FILE": "/nowhere"}, "/nowhere cannot be read"),
        ({"WHETSTONE_API_KEYS_FILE": ""}, "WHETSTONE_API_KEYS_FILE is empty"),
        ({"WHETSTONE_OPEN_ROUTES": "/livez,/metric"}, "did you mean /metrics?"),
    ],
)
def test_a_start_that_fails_prints_one_sentence(environment: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [BENTOML, "serve", SERVICE, "--port", "1"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_for_the_other_device_is_refused(package: Path) -> None:
    refuse_unsound(package, "cpu")
    with pytest.raises(BentoMLException, match=r"proven for a CPU, and WHETSTONE_DEVICE is cuda"):
        refuse_unsound(package, "cuda")
    seal_package(package, read_manifest(package).model_copy(update={"target_device": "gpu"}))
    with pytest.raises(BentoMLException, match=r"target_device: cpu"):
        refuse_unsound(package, "cpu")


def test_a_package_without_golden_texts_is_served(package: Path) -> None:
    write_golden(package, [])
    seal_package(package, read_manifest(package))
    with serving(SERVICE, {"WHETSTONE_PACKAGE": str(package)}) as address:
        assert classify(address, {"input": "hello"})["data"][0]["label"]


BENTO = """\
models: []
services:
- name: text-classifier
  models:
  - tag: text-classifier:aaaaaaaaaaaa
  - tag: another-model:bbb
"""


def test_a_bento_pins_its_own_model(tmp_path: Path) -> None:
    bento = tmp_path / "bento.yaml"
    bento.write_text(BENTO, "utf-8")
    assert pinned_model(bento) == "text-classifier:aaaaaaaaaaaa"


def test_no_model_is_pinned_outside_a_bento(tmp_path: Path) -> None:
    assert pinned_model(tmp_path / "bento.yaml") is None


@pytest.mark.parametrize(
    "content", ["models: []", BENTO + "  - tag: text-classifier:cccccccccccc\n", "services:"]
)
def test_a_bento_without_exactly_one_model_is_refused(tmp_path: Path, content: str) -> None:
    bento = tmp_path / "bento.yaml"
    bento.write_text(content, "utf-8")
    with pytest.raises(BentoMLException, match="not one"):
        pinned_model(bento)
