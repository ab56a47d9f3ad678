"""What is kept of an answer, and what never is."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.capture.capture import (
    GROUP_HEADER,
    Capture,
    CaptureError,
    CaptureRules,
    load_redaction,
    read_key,
)
from service.capture.records import (
    MOST_GROUPS,
    OTHER_GROUP,
    CapturedAnswer,
    Feedback,
    parse_line,
    share_of,
)
from service.capture.store import FolderStore
from service.capture.writer import CaptureWriter
from service.inference.classifier import Classifier, Prediction
from service.inference.pieces import PieceCounter
from service.inference.tokenizing import EncodedText
from service.package.manifest import Manifest, Text

TEXTS: list[Text] = ["my card is lost", "the parcel has not come"]
SECRET = b"sixteen bytes or more"
NO_PIECES = PieceCounter(unknown_id=None, continues=None)


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package)


Kept = Callable[..., list[Any]]


@pytest.fixture
def kept(classifier: Classifier, tmp_path: Path) -> Kept:
    """The lines that some rules make of requests, each an id and its texts."""

    def lines(rules: CaptureRules, requests: dict[str, list[Text]], **more: Any) -> list[Any]:
        folder = tmp_path / "kept"
        dropped: dict[str, int] = {}
        writer = CaptureWriter(FolderStore(folder), lambda why, n: dropped.update({why: n}))
        capture = Capture(classifier.manifest, rules, writer, classifier.encoder.pieces)
        for name, texts in requests.items():
            encoded = classifier.encode(texts)
            answers = classifier.classify(texts)
            capture.keep(name, more.get("headers", {}), texts, encoded, answers)
        capture.close(20)
        assert dropped == {}
        parts = sorted(folder.rglob("*.jsonl"))
        return [parse_line(line) for part in parts for line in part.read_bytes().splitlines()]

    return lines


def test_each_text_of_a_request_has_a_line(classifier: Classifier, kept: Kept) -> None:
    found = kept(CaptureRules(), {"one": TEXTS})
    expected = classifier.classify(TEXTS)
    assert [(line.id, line.index) for line in found] == [("one", 0), ("one", 1)]
    for line, answer in zip(found, expected, strict=True):
        assert isinstance(line, CapturedAnswer)
        assert (line.label, line.tokens) == (answer.label, answer.tokens)
        assert line.score == pytest.approx(answer.score, abs=1e-5)
        assert 0 <= line.margin <= 1
        assert line.version == classifier.manifest.version


def test_without_the_second_switch_no_text_is_kept(kept: Kept) -> None:
    found = kept(CaptureRules(key=SECRET), {"one": TEXTS})
    assert [line.text for line in found] == [None, None]
    assert "card" not in "".join(line.model_dump_json() for line in found)


def test_with_it_texts_are_kept_as_the_redaction_gives_them(kept: Kept) -> None:
    rules = CaptureRules(text=True, redact=lambda text: text.replace("card", "****"))
    assert [line.text for line in kept(rules, {"one": TEXTS})] == [
        "my **** is lost",
        "the parcel has not come",
    ]


def test_a_redaction_that_fails_keeps_nothing(classifier: Classifier, tmp_path: Path) -> None:
    def broken(text: str) -> str:
        raise ValueError(text)

    dropped: list[tuple[str, int]] = []
    writer = CaptureWriter(FolderStore(tmp_path), lambda *why: dropped.append(why))
    capture = Capture(
        classifier.manifest, CaptureRules(text=True, redact=broken), writer, NO_PIECES
    )
    encoded = classifier.encode(TEXTS)
    capture.keep("one", {}, TEXTS, encoded, classifier.classify(TEXTS))
    capture.close(20)
    assert dropped == [("error", 2)]
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_texts_that_wait_hold_no_more_than_is_stated(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def write(self, name: str, content: bytes) -> None:
            raise ConnectionError

    monkeypatch.setattr("service.capture.writer.MOST_BYTES", 4_000_000)
    monkeypatch.setattr("service.capture.writer.PART_BYTES", 200_000)
    dropped: dict[str, int] = {}

    def drop(why: str, count: int) -> None:
        dropped[why] = dropped.get(why, 0) + count

    encoded, answers = classifier.encode(["a"]), classifier.classify(["a"])
    tracemalloc.start()
    try:
        writer = CaptureWriter(Away(), drop)
        capture = Capture(classifier.manifest, CaptureRules(text=True), writer, NO_PIECES)
        for number in range(200):
            # Four bytes a character, of which twelve characters of a line are made.
            text = "\N{GRINNING FACE}" * 20_000 + str(number)
            capture.keep(str(number), {}, [text], encoded, answers)
            # So that parts are made meanwhile.
            time.sleep(0.002)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        capture.close(0)
    assert dropped["queue"] > 100
    assert most < 8_000_000


def test_a_label_of_another_model_is_redacted_like_a_text(
    classifier: Classifier, tmp_path: Path
) -> None:
    own = classifier.manifest.labels[0]
    rules = CaptureRules(text=True, redact=lambda text: "*" * len(text))
    writer = CaptureWriter(FolderStore(tmp_path), lambda *_: None)
    capture = Capture(classifier.manifest, rules, writer, NO_PIECES)
    capture.keep_feedback("one", 0, [own, "Jane"], "call her", "f" * 12)
    capture.close(20)
    (line,) = next(tmp_path.rglob("*.jsonl")).read_bytes().splitlines()
    found = parse_line(line)
    assert isinstance(found, Feedback)
    assert (found.labels, found.note) == ((own, "****"), "********")


def test_equal_texts_have_equal_keys_and_only_with_the_secret(kept: Kept) -> None:
    found = kept(CaptureRules(key=SECRET), {"one": [*TEXTS, TEXTS[0]]})
    keys = [line.text_key for line in found]
    assert keys[0] == keys[2] != keys[1]
    other = kept(CaptureRules(key=SECRET + b"!"), {"two": TEXTS})
    assert {line.text_key for line in other if line.id == "two"}.isdisjoint(keys)


def test_a_share_of_the_requests_is_kept_whole(kept: Kept) -> None:
    names = [f"request-{number}" for number in range(60)]
    found = kept(CaptureRules(rate=0.4), dict.fromkeys(names, TEXTS))
    chosen = [name for name in names if share_of(name) < 0.4]
    assert [(line.id, line.index) for line in found] == [
        (name, index) for name in chosen for index in (0, 1)
    ]
    assert 10 < len(chosen) < 40
    assert {line.rate for line in found} == {0.4}


@given(st.lists(st.text(min_size=1), unique=True, min_size=300, max_size=300))
def test_the_share_that_is_kept_does_not_depend_on_the_ids(names: list[str]) -> None:
    assert abs(sum(share_of(name) < 0.5 for name in names) - 150) < 50


@pytest.mark.parametrize(
    ("header", "group"),
    [(b"mobile-app.2", "mobile-app.2"), (b"two words", None), (b"x" * 65, None), (b"\xff", None)],
)
def test_a_callers_group_is_kept_where_it_is_sane(
    kept: Kept, header: bytes, group: str | None
) -> None:
    found = kept(CaptureRules(), {"one": TEXTS[:1]}, headers={GROUP_HEADER: header})
    assert found[0].group == group


def test_the_groups_of_a_worker_are_bounded(classifier: Classifier, tmp_path: Path) -> None:
    writer = CaptureWriter(FolderStore(tmp_path), lambda *_: None)
    capture = Capture(classifier.manifest, CaptureRules(), writer, NO_PIECES)
    encoded, answers = classifier.encode(TEXTS[:1]), classifier.classify(TEXTS[:1])
    for number in [*range(MOST_GROUPS + 5), 0]:
        headers = {GROUP_HEADER: b"g%d" % number}
        capture.keep(f"r{number}", headers, TEXTS[:1], encoded, answers)
    capture.close(20)
    lines = next(tmp_path.rglob("*.jsonl")).read_bytes().splitlines()
    groups = [json.loads(line)["group"] for line in lines]
    assert groups == [*(f"g{n}" for n in range(MOST_GROUPS)), *[OTHER_GROUP] * 5, "g0"]


def test_pieces_of_words_are_counted(kept: Kept) -> None:
    # Of the first word a letter and three that continue it; the last one is not known.
    (line,) = kept(CaptureRules(), {"one": ["zzzq my card \u65e5"]})
    assert (line.continued, line.unknown) == (3, 1)


def test_no_character_of_a_text_ends_a_line(kept: Kept) -> None:
    text = "one\ntwo\r\nthree\u2028four\x85five \U0001f600"
    assert [line.text for line in kept(CaptureRules(text=True), {"one": [text]})] == [text]


def test_feedback_is_kept_with_its_note_only_where_texts_are(
    classifier: Classifier, tmp_path: Path
) -> None:
    for text, note in ((False, None), (True, "he asked ****")):
        folder = tmp_path / str(text)
        writer = CaptureWriter(FolderStore(folder), lambda *_: None)
        rules = CaptureRules(text=text, redact=lambda note: note.replace("Ann", "****"))
        capture = Capture(classifier.manifest, rules, writer, NO_PIECES)
        capture.keep_feedback("classify-one", 3, ["refund"], "he asked Ann")
        capture.close(20)
        line = parse_line(next(folder.rglob("*.jsonl")).read_bytes())
        assert isinstance(line, Feedback)
        assert (line.id, line.index, line.labels, line.note) == ("one", 3, ("refund",), note)


def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="nowhere:mask cannot be used: ModuleNotFoundError"):
        load_redaction("nowhere:mask")
    with pytest.raises(CaptureError, match="must give a text, and gave int"):
        load_redaction("builtins:len")
    assert load_redaction("builtins:str")("a") == "a"
    short = tmp_path / "key"
    short.write_text("short\n")
    with pytest.raises(CaptureError, match="fewer than 16 bytes"):
        read_key(short)
    with pytest.raises(CaptureError, match="cannot be read: No such file"):
        read_key(tmp_path / "none")
    short.write_bytes(SECRET + b"\n")
    assert read_key(short) == SECRET


def test_a_line_that_was_cut_off_is_no_line() -> None:
    whole = json.dumps(
        {
            "kind": "feedback",
            "id": "a",
            "time": "2026-11-28T10:00:00Z",
            "version": "0" * 12,
            "labels": ["x"],
        }
    )
    assert parse_line(whole).kind == "feedback"
    with pytest.raises(ValueError, match="EOF"):
        parse_line(whole[:-5])


@pytest.mark.parametrize(
    ("task", "thresholds", "margin"),
    [
        ("multi_label", {"a": 0.3, "b": 0.5, "c": 0.5}, 0.1),
        ("single_label", {}, 0.2),
        ("single_label", {"b": 0.55}, 0.15),
    ],
)
def test_the_margin_is_how_near_an_answer_is_to_another_one(
    task: str, thresholds: dict[str, float], margin: float, tmp_path: Path
) -> None:
    probs = np.array([0.6, 0.4] if len(thresholds) < 2 else [0.6, 0.4, 0.1], dtype=np.float32)
    package = Manifest.model_construct(
        version="0" * 12, labels=("a", "b", "c")[: len(probs)], task=task, thresholds=thresholds
    )
    several = ["a"] if task == "multi_label" else None
    answer = Prediction("a", 0.6, probs, several, None, tokens=3, windows=1, truncated=False)
    writer = CaptureWriter(FolderStore(tmp_path), lambda *_: None)
    capture = Capture(package, CaptureRules(), writer, NO_PIECES)
    capture.keep("one", {}, ["x"], [EncodedText((), False)], [answer])
    capture.close(20)
    line = parse_line(next(tmp_path.rglob("*.jsonl")).read_bytes())
    assert isinstance(line, CapturedAnswer)
    assert line.margin == pytest.approx(margin, abs=1e-5)
    if several:
        assert line.labels == ("a",)
        assert (line.expected_right, line.expected_set) == pytest.approx((0.6, 1.1), abs=1e-5)
