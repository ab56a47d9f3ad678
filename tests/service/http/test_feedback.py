"""What is taken as feedback, and what is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.capture.capture import Capture, CaptureRules
from service.capture.records import Feedback, parse_line
from service.capture.start import check_capture, start_capture
from service.capture.store import FolderStore
from service.capture.writer import CaptureWriter
from service.http.errors import UnacceptableRequestError
from service.http.feedback import parse_feedback
from service.http.limits import Limits
from service.http.routes import Routes
from service.inference.capacity import Capacity
from service.inference.classifier import Classifier
from service.inference.engine import Engine
from service.settings import Settings, SettingsError
from tests.monitoring.made import LABELS, manifest

SEVERAL = manifest().model_copy(update={"task": "multi_label"})
GOOD = {"id": "classify-a.b:c", "label": LABELS[0]}


def test_the_right_label_is_taken() -> None:
    feedback = parse_feedback(GOOD | {"index": 2, "note": "x"}, manifest(), Limits())
    assert (feedback.index, feedback.known, feedback.note) == (2, (LABELS[0],), "x")


@pytest.mark.parametrize("labels", [[], [LABELS[0]], list(LABELS)])
def test_a_model_of_several_labels_takes_any_number(labels: list[str]) -> None:
    feedback = parse_feedback({"id": "a", "labels": labels}, SEVERAL, Limits())
    assert feedback.known == tuple(labels)


@pytest.mark.parametrize(
    ("content", "param", "sentence"),
    [
        ([], None, "must be a JSON object"),
        ({"label": LABELS[0]}, "id", "id: Field required"),
        (GOOD | {"id": "two words"}, "id", "id: String should match"),
        (GOOD | {"index": -1}, "index", "greater than or equal to 0"),
        (GOOD | {"index": 256}, "index", "larger than any request has texts"),
        (GOOD | {"note": "x" * 1001}, "note", "at most 1000 characters"),
        (GOOD | {"more": 1}, None, "a field is unknown"),
        ({"id": "a"}, "label", "takes feedback as label"),
        ({"id": "a", "labels": [1] * 500_000}, "labels", "more labels than this model has"),
        ({"id": "a", "labels": [LABELS[0]]}, "label", "takes feedback as label"),
        ({"id": "a", "label": "nothing"}, "label", "does not have: GET /info lists them"),
    ],
)
def test_what_is_no_feedback_is_refused(content: Any, param: str | None, sentence: str) -> None:
    with pytest.raises(UnacceptableRequestError, match=sentence) as refused:
        parse_feedback(content, manifest(), Limits())
    assert refused.value.param == param
    assert "nothing" not in refused.value.message.replace("nothing is", "")


def test_the_route_exists_only_where_answers_are_captured() -> None:
    client = TestClient(Routes(Settings()), raise_server_exceptions=False)
    assert client.post("/feedback", json=GOOD).status_code == 404


def test_feedback_and_answers_go_through_the_routes(tiny_package: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(tiny_package)
    settings = Settings(capture=str(tmp_path))
    writer = CaptureWriter(FolderStore(tmp_path), lambda *_: None)
    capture = Capture(classifier.manifest, CaptureRules(), writer, classifier.encoder.pieces)
    routes = Routes(settings)
    engine = Engine(classifier, Capacity(threads=1), answers=classifier.row_answers)
    routes.attach(classifier, engine, capture=capture)
    client = TestClient(routes)
    try:
        answer = client.post("/classify", json={"input": ["one", "two"]}).json()
        label = classifier.manifest.labels[0]
        told = client.post("/feedback", json={"id": answer["id"], "index": 1, "label": label})
        assert (told.status_code, told.json()) == (202, {"status": "accepted"})
        noted = client.post("/feedback", json={"id": "a", "label": label, "note": "x"})
        assert noted.status_code == 422
    finally:
        routes.lifecycle.close()
    parts = sorted(tmp_path.rglob("*.jsonl"))
    lines = [parse_line(line) for part in parts for line in part.read_bytes().splitlines()]
    assert [(line.kind, line.index) for line in lines] == [
        ("answer", 0),
        ("answer", 1),
        ("feedback", 1),
    ]
    assert isinstance(lines[2], Feedback)
    assert lines[2].labels == (label,)
    # Without `version`, it is of the answer that this process has given.
    assert lines[2].version == classifier.manifest.version
    assert len({line.id for line in lines}) == 1


def test_the_settings_of_capture_need_each_other(tmp_path: Path) -> None:
    assert check_capture(Settings()) is None
    for settings, sentence in (
        (Settings(capture_text=True), "CAPTURE_TEXT needs WHETSTONE_CAPTURE"),
        (Settings(capture=str(tmp_path), capture_redact="a:b"), "needs WHETSTONE_CAPTURE_TEXT=1"),
        (
            Settings(capture=str(tmp_path), capture_key_file=tmp_path / "none"),
            "WHETSTONE_CAPTURE_KEY_FILE: ",
        ),
    ):
        with pytest.raises((SettingsError, ValueError), match=sentence):
            check_capture(settings)
    rules = check_capture(
        Settings(capture=str(tmp_path), capture_text=True, capture_redact="builtins:str")
    )
    assert rules == CaptureRules(text=True, redact=str)


def test_nothing_is_started_where_nothing_is_captured(tiny_package: Path) -> None:
    classifier = Classifier.load(tiny_package)
    assert start_capture(None, Settings(), classifier, None) is None  # type: ignore[arg-type]
