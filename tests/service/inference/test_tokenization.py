"""The tokenization options of a request give the same token ids as `tokenizers` itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from service.inference.classifier import Classifier
from service.inference.errors import TokenizerError
from service.inference.tokenizing import AS_PACKAGED, EncodedText, TokenizationOptions
from tests.conftest import example_rows
from tests.training.finetuning.test_families import FAMILIES, Family, train_tokenizer

MAX_LENGTH = 24
STRIDE = 4
# WordPiece, byte-level BPE and Unigram.
KINDS: dict[str, Family] = {family.kind: family for family in FAMILIES}


def bert(tokenizer: Tokenizer, first: str, last: str) -> Any:
    return processors.BertProcessing(
        (last, tokenizer.token_to_id(last)), (first, tokenizer.token_to_id(first))
    )


def roberta(tokenizer: Tokenizer, first: str, last: str) -> Any:
    return processors.RobertaProcessing(
        (last, tokenizer.token_to_id(last)), (first, tokenizer.token_to_id(first))
    )


def none(_tokenizer: Tokenizer, _first: str, _last: str) -> Any:
    return processors.ByteLevel()


PROCESSORS: dict[str, Callable[..., Any]] = {"bert": bert, "roberta": roberta, "none": none}


@cache
def packaged(kind: str, processor: str = "", side: str = "right") -> str:
    """The JSON of a tokenizer, as in a package."""
    family = KINDS[kind]
    tokenizer = train_tokenizer(family, [row["text"] for row in example_rows("train")])
    if processor:
        ends = ("<s>", "</s>") if "<s>" in family.special else ("[CLS]", "[SEP]")
        tokenizer.post_processor = PROCESSORS[processor](tokenizer, *ends)
    tokenizer.enable_truncation(MAX_LENGTH, stride=STRIDE, direction=side)
    tokenizer.enable_padding()
    return str(tokenizer.to_str())


def classifier_of(package: str, *, pairs: bool, long_text: str = "truncate") -> Classifier:
    """A classifier that only tokenizes."""
    manifest: Any = SimpleNamespace(max_length=MAX_LENGTH, long_text=long_text, has_pairs=pairs)
    session: Any = SimpleNamespace(get_inputs=list)
    return Classifier(manifest, Tokenizer.from_str(package), session, 1)


def ids(encoded: EncodedText) -> list[tuple[list[int], list[int]]]:
    return [(list(window.ids), list(window.type_ids)) for window in encoded.windows]


def expected(
    package: str, item: Any, options: TokenizationOptions
) -> tuple[list[int], list[int], bool]:
    """The token ids of `tokenizers` itself, with its truncation set to the options."""
    tokenizer = Tokenizer.from_str(package)
    tokenizer.no_padding()
    side = tokenizer.truncation["direction"]
    if options.keep_end is not None:
        side = "left" if options.keep_end else "right"
    limit = options.max_length or MAX_LENGTH
    tokenizer.enable_truncation(limit, direction=side)
    pair = item if isinstance(item, tuple) else (item, None)
    encoding = tokenizer.encode(*pair, add_special_tokens=options.add_special_tokens)
    return encoding.ids, encoding.type_ids, bool(encoding.overflowing)


texts = st.text(max_size=60) | st.lists(
    st.sampled_from(["parcel", "[SEP]", "</s>", "<s> ", "[CLS]", "é", "漢字", "🎉", "\n", "  "]),
    max_size=40,
).map(" ".join)
sides = st.sampled_from([None, True, False])


@pytest.mark.parametrize("processor", ["", *PROCESSORS])
@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_match_those_of_tokenizers(kind: str, processor: str) -> None:
    @given(
        st.sampled_from(["left", "right"]),
        texts | st.tuples(texts, texts),
        sides,
        st.none() | st.integers(1, MAX_LENGTH),
        st.booleans(),
    )
    # In a pair, the longer first text keeps the odd token.
    @example("right", ("parcel " * 9, "parcel " * 8), False, 12, True)
    @example("right", ("parcel " * 90, "parcel " * 80), False, 11, True)
    @example("left", ("parcel " * 80, "parcel " * 90), None, 11, False)
    def check(own: str, item: Any, side: bool | None, limit: int | None, special: bool) -> None:
        package = packaged(kind, processor, own)
        classifier = classifier_of(package, pairs=isinstance(item, tuple))
        least = classifier.encoder.special_tokens + 1
        options = TokenizationOptions(side, limit and max(limit, least), special)
        (encoded,) = classifier.encode([item], options)
        found_ids, type_ids, truncated = expected(package, item, options)
        assert ids(encoded) == [(found_ids, type_ids)]
        assert encoded.truncated == truncated

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_limit_a_text_is_read_in_one_window(kind: str) -> None:
    package = packaged(kind)
    text = " ".join(row["text"] for row in example_rows("test")[:5])
    classifier = classifier_of(package, pairs=False, long_text="window")
    for options in (
        TokenizationOptions(max_length=MAX_LENGTH),
        TokenizationOptions(keep_end=True, max_length=9),
        TokenizationOptions(max_length=9, add_special_tokens=False),
    ):
        (encoded,) = classifier.encode([text], options)
        found_ids, type_ids, _ = expected(package, text, options)
        assert ids(encoded) == [(found_ids, type_ids)]
        assert encoded.truncated
    # Without a limit the whole text is read, whatever the truncation side is.
    (whole,) = classifier.encode([text])
    assert len(whole.windows) > 3
    assert ids(classifier.encode([text], TokenizationOptions(keep_end=True))[0]) == ids(whole)
    (bare,) = classifier.encode([text], TokenizationOptions(add_special_tokens=False))
    assert len(bare.windows) > 3 and not bare.truncated
    assert max(map(len, bare.windows)) == MAX_LENGTH


def test_the_tokenizer_is_copied_once_and_only_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = []
    original = Tokenizer.from_str
    classifier = classifier_of(packaged("wordpiece"), pairs=False)
    stand_in = SimpleNamespace(from_str=lambda text: copies.append(1) or original(text))
    monkeypatch.setattr("service.inference.tokenizing.Tokenizer", stand_in)
    for options in (
        AS_PACKAGED,
        TokenizationOptions(False),
        TokenizationOptions(None, None, False),
    ):
        assert classifier.encoder.is_prepared(options)
        classifier.encoder.prepare(options)
        classifier.encode(["a"], options)
    assert copies == []
    cut = [TokenizationOptions(max_length=limit) for limit in range(3, MAX_LENGTH)]
    cut.append(TokenizationOptions(keep_end=True))
    assert not any(map(classifier.encoder.is_prepared, cut))
    threads = [
        threading.Thread(target=classifier.encode, args=(["a b c"], options)) for options in cut
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copies == [1]
    assert all(map(classifier.encoder.is_prepared, cut))


@pytest.mark.parametrize("options", [AS_PACKAGED, TokenizationOptions(max_length=8)])
def test_a_panic_of_the_tokenizer_can_be_caught(
    options: TokenizationOptions,
) -> None:
    """A panic of Rust is not an `Exception` and would end the thread."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    # A pattern that backtracks for every way to divide the letters.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?:a|a)+b"), "isolated")
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding()
    classifier = classifier_of(tokenizer.to_str(), pairs=False)
    assert classifier.encode(["aab"], options)
    with pytest.raises(TokenizerError):
        classifier.encode(["a" * 30], options)
