"""Packages of every kind, served by two workers to many callers, answer like `Classifier`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.test_connections import BYSTANDERS, crowd_of
from tests.servers import SERVICE, Server, serving
from tests.service.inference.test_shapes import SAME_SCORE, Shape, request_of, shape

pytestmark = pytest.mark.faults

__all__ = ["shape"]


def test_every_answer_equals_that_of_the_classifier(shape: Shape, tmp_path: Path) -> None:
    expected = shape.classifier.classify(shape.texts)
    environment = {
        "WHETSTONE_PACKAGE": str(shape.folder / "package"),
        "WHETSTONE_WORKERS": "2",
    }
    with serving(SERVICE, environment, log=tmp_path / "log") as address:
        server = Server(address, tmp_path / "log")

        def check(start: int) -> None:
            texts = shape.texts[start : start + 1 + start % 5]
            status, content, _ = server.ask("/classify", request_of(texts))
            assert status == 200
            inputs = [list(text) if isinstance(text, tuple) else [text] for text in texts]
            status, ranked, _ = server.ask("/predict", {"inputs": inputs})
            assert status == 200
            wanted = expected[start : start + len(texts)]
            for answer, item, scores in zip(wanted, content["data"], ranked, strict=True):
                assert item["label"] == answer.label
                assert item["probs"] == pytest.approx(answer.probs.tolist(), abs=SAME_SCORE)
                several = None if answer.labels is None else list(answer.labels)
                assert item.get("labels") == several
                assert item.get("abstained") == answer.abstained
                by_label = {found["label"]: found["score"] for found in scores}
                probs = dict(zip(shape.manifest.labels, answer.probs.tolist(), strict=True))
                assert by_label == pytest.approx(probs, abs=SAME_SCORE)

        with ThreadPoolExecutor(8) as callers:
            list(callers.map(check, list(range(len(shape.texts))) * 4))


@pytest.mark.parametrize("shape", ["windows"], indirect=True)
@pytest.mark.parametrize("text", ["parcel " * 14_000, "x" * 100_000])
def test_a_crowd_of_texts_with_a_thousand_windows_is_answered_in_time(
    shape: Shape, text: str, tmp_path: Path
) -> None:
    """To read all of them to the end would take far longer than the deadlines."""
    environment = {
        "WHETSTONE_PACKAGE": str(shape.folder / "package"),
        # As many as such a text has; the default would refuse it.
        "WHETSTONE_MAX_WINDOWS": "20000",
    }
    log = tmp_path / "log"
    with serving(SERVICE, environment, log=log) as address:
        server = Server(address, log)
        statuses = crowd_of(server, text, 40)
        assert set(statuses) <= {200, 429, 504}
        assert statuses.total() == 40 + BYSTANDERS
        # Requests that nobody waits for are not computed.
        assert server.ask("/classify", {"input": "hello"})[0] == 200
        for path in ("/livez", "/readyz"):
            assert server.ask(path, method="GET")[0] == 200
    assert "Traceback" not in log.read_text("utf-8")
