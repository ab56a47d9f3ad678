"""The classifier: order, batching, padding and truncation never change an answer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service.inference.batches import MAX_BATCH_TOKENS, length_sorted_batches
from service.inference.classifier import Classifier
from service.inference.cores import available_cores
from service.inference.decisions import softmax
from service.inference.device import DeviceError
from service.inference.errors import NotFiniteError
from service.inference.tokenizing import TokenizationOptions
from service.package.files import PackageFileError, file_record
from service.package.golden import GoldenMismatchError
from service.package.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    package_version,
    read_manifest,
    write_manifest,
)
from tests.conftest import example_rows

TEXTS = [
    *(row["text"] for row in example_rows("test")[:30]),
    *("x", "🙂", "שלום", "word " * 500),
]


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=2)


def spoil(package: Path, name: str, content: str) -> None:
    """Change the content of a file, and the manifest with it."""
    (package / name).write_text(content, "utf-8")
    manifest = read_manifest(package)
    files = {**manifest.files, name: file_record(package / name)}
    changed = manifest.model_copy(update={"files": files})
    version = package_version(files, changed)
    write_manifest(package, changed.model_copy(update={"version": version}))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_an_answer_does_not_depend_on_its_batch(classifier: Classifier, batch_size: int) -> None:
    alone = [classifier.classify([text])[0] for text in TEXTS]
    together = classifier.classify(TEXTS, batch_size=batch_size)
    for one, other in zip(alone, together, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)


def test_answers_come_in_the_order_of_the_texts(classifier: Classifier) -> None:
    forwards = classifier.classify(TEXTS)
    backwards = classifier.classify(TEXTS[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)
        assert one.tokens == other.tokens


def test_an_answer_is_its_most_probable_label(classifier: Classifier) -> None:
    for answer in classifier.classify(TEXTS):
        assert answer.probs.sum() == pytest.approx(1, abs=1e-5)
        assert answer.score == answer.probs.max()
        assert answer.label == classifier.manifest.labels[answer.probs.argmax()]


def test_only_a_text_that_was_cut_off_counts_as_truncated(classifier: Classifier) -> None:
    short, long = classifier.classify(["a b", "word " * 500])
    assert (short.truncated, long.truncated) == (False, True)
    assert long.tokens == classifier.manifest.max_length


def test_many_texts_are_answered_part_by_part(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = classifier.classify(TEXTS)
    monkeypatch.setattr("service.inference.classifier.TEXTS_AT_ONCE", 8)
    sizes: list[int] = []
    encode = classifier.encode
    monkeypatch.setattr(
        classifier, "encode", lambda texts: sizes.append(len(texts)) or encode(texts)
    )
    answered: list[int] = []
    parts = classifier.classify(TEXTS, on_batch=answered.append)
    assert max(sizes) == 8 and sum(sizes) == sum(answered) == len(TEXTS)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)


def test_no_texts_get_no_answers(classifier: Classifier) -> None:
    assert classifier.classify([]) == []


def test_progress_counts_every_text(classifier: Classifier) -> None:
    counted: list[int] = []
    classifier.classify(TEXTS, batch_size=4, on_batch=counted.append)
    assert sum(counted) == len(TEXTS)


def test_left_padding_and_multiples_follow_the_package(package: Path) -> None:
    plain = Classifier.load(package).classify(TEXTS)
    tokenizer = json.loads((package / TOKENIZER_FILE).read_text("utf-8"))
    tokenizer["padding"]["pad_to_multiple_of"] = 8
    spoil(package, TOKENIZER_FILE, json.dumps(tokenizer))
    padded = Classifier.load(package)
    for one, other in zip(plain, padded.classify(TEXTS), strict=True):
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)
    tokenizer["padding"]["direction"] = "Left"
    spoil(package, TOKENIZER_FILE, json.dumps(tokenizer))
    left = Classifier.load(package)
    # BERT counts positions from the left, so left padding changes the answer.
    changed = left.classify(["a b", TEXTS[0]], batch_size=2)[0]
    assert np.abs(changed.probs - plain[0].probs).max() > 0


@pytest.mark.parametrize("missing", ["padding", "truncation"])
def test_a_tokenizer_without_padding_or_truncation_is_refused(package: Path, missing: str) -> None:
    tokenizer = json.loads((package / TOKENIZER_FILE).read_text("utf-8"))
    tokenizer[missing] = None
    spoil(package, TOKENIZER_FILE, json.dumps(tokenizer))
    with pytest.raises(PackageFileError, match="padding and truncation"):
        Classifier.load(package)


@pytest.mark.parametrize("name", [TOKENIZER_FILE, MODEL_FILE])
def test_a_file_of_the_wrong_kind_is_refused(package: Path, name: str) -> None:
    spoil(package, name, "nonsense")
    with pytest.raises(PackageFileError, match=f"{name} cannot be loaded"):
        Classifier.load(package)


def test_a_true_copy_gives_the_golden_answers(package: Path) -> None:
    assert Classifier.load(package).check_golden(package) > 0


def test_a_copy_that_answers_differently_is_refused(package: Path) -> None:
    lines = [json.loads(line) for line in (package / GOLDEN_FILE).read_text("utf-8").splitlines()]
    lines[1]["probs"] = [1.0, *[0.0] * (len(lines[1]["probs"]) - 1)]
    spoil(package, GOLDEN_FILE, "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(GoldenMismatchError, match="golden text 2"):
        Classifier.load(package).check_golden(package)


@given(
    lengths=st.lists(st.integers(1, 512), max_size=200),
    batch_size=st.integers(1, 64),
)
def test_batches_hold_each_text_once_within_their_limits(
    lengths: list[int], batch_size: int
) -> None:
    batches = length_sorted_batches(lengths, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[index] for index in batch) * len(batch)
        assert len(batch) <= batch_size
        assert padded <= MAX_BATCH_TOKENS or len(batch) == 1


def test_softmax_is_stable_for_large_logits() -> None:
    probs = softmax(np.array([[1e4, 0.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(probs, [[1, 0], [0.5, 0.5]])


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1


def test_an_unavailable_device_is_refused_before_and_after_loading(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider here"):
        Classifier.load(tiny_package, device="cuda")
    # A build for CUDA on a machine without its libraries: ONNX Runtime falls back, and says so
    # only in its log.
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"),
    ):
        Classifier.load(tiny_package, device="cuda")


def test_only_the_tokens_that_are_read_are_kept(classifier: Classifier) -> None:
    texts = ["word " * 20_000, "parcel " * 20_000]
    left = TokenizationOptions(keep_end=True)
    for encoded in classifier.encode(texts) + classifier.encode(texts, left):
        assert encoded.truncated
        (window,) = encoded.windows
        # An `Encoding` of it would take two megabytes.
        assert len(pickle.dumps(window)) < 100 * len(window)


def test_texts_without_finite_logits_are_named_and_get_no_answer(tiny_package: Path) -> None:
    class NotFinite(Classifier):
        def logits(self, encodings: Any) -> Any:
            rows = super().logits(encodings).copy()
            for row, encoding in zip(rows, encodings, strict=True):
                if len(encoding) > 10:
                    row[0] = np.inf
            return rows

    classifier = NotFinite.load(tiny_package, threads=2)
    texts = ["word"] * 40
    assert len(classifier.classify(texts)) == 40
    texts[7] = texts[31] = "word " * 20
    with pytest.raises(NotFiniteError, match="first for text 8") as caught:
        classifier.classify(texts, batch_size=4)
    assert caught.value.texts == (7, 31)


def test_golden_texts_without_finite_logits_refuse_the_copy(tiny_package: Path) -> None:
    class Nothing(Classifier):
        def logits(self, encodings: Any) -> Any:
            return np.full_like(super().logits(encodings), np.nan)

    with pytest.raises(GoldenMismatchError, match="that are not finite"):
        Nothing.load(tiny_package).check_golden(tiny_package)


@pytest.mark.parametrize(
    "text", ["word " * 20_000, "w" * 50_000, "中 " * 20_000, "a" + " " * 9_000]
)
def test_a_beginning_gives_the_same_tokens_as_the_whole_text(
    classifier: Classifier, tiny_package: Path, text: str
) -> None:
    (encoded,) = classifier.encode([text])
    tokenizer = Tokenizer.from_file(str(tiny_package / TOKENIZER_FILE))
    tokenizer.no_padding()
    whole = tokenizer.encode(text)
    assert encoded.windows[0].ids == whole.ids
    assert encoded.truncated == bool(whole.overflowing)
