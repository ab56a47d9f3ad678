# ruff: noqa: RUF001 - letters that look like others are what is tried
"""A prefix has exactly the first tokens of the whole text, for every kind of tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from service.inference.prefixes import CHARACTERS_PER_TOKEN, Prefixes
from tests.conftest import example_rows

MAX_LENGTH = 8
# Characters that join, split, change length or case, form words, or are cut at.
NASTY = [
    *"aAzß0٣,.'<>[]#▁\u2581Ġ",
    *" \t\n\r\u00a0\u2003\u2028\u200b\u200d\u00ad\ufeff\u0000\ufffd",
    *"é\u0301\u0308\u0345ſİıΣς\u037aǅﬁ½²",
    *"中国語한ᄒ\u1161나カﾞ\uff9eñ",
    *"ا\u0600\u0651ﷺनि\u094dกำ\u0e33\u0eb3\u0d4e\U000110bd",
    *"😀👩\u200d👩\u200d👧🇩🇪\u0300\u20e3",
]
WORDS = ["where is", "can't", "parcel", "tomorrow's", "<mask>", "[MASK]", "``quoted''", "a  b", " "]


def bert(**options: Any) -> tuple[Any, Any]:
    return normalizers.BertNormalizer(**options), pre_tokenizers.BertPreTokenizer()


def unigram_normalizer() -> Any:
    """The normalizer of XLM-R and T5, with SentencePiece's compiled map of characters."""
    from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["where is my parcel"] * 50),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    compiled = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    return normalizers.Sequence([compiled, normalizers.Replace(Regex(" {2,}"), " ")])


def albert_normalizer() -> Any:
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
    ]
    return normalizers.Sequence(steps)


KINDS: dict[str, tuple[str, Any, Any]] = {
    "WordPiece": ("WordPiece", *bert(lowercase=True)),
    "WordPiece, cased": ("WordPiece", *bert(lowercase=False, strip_accents=False)),
    "WordPiece, ideographs in words": ("WordPiece", *bert(handle_chinese_chars=False)),
    "byte-level BPE": ("BPE", None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level BPE with a space": (
        "BPE",
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
    ),
    "digits and bytes": (
        "BPE",
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Punctuation(),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
    ),
    "Unigram": ("Unigram", unigram_normalizer(), pre_tokenizers.Metaspace()),
    "Unigram, words and marks": (
        "Unigram",
        albert_normalizer(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(prepend_scheme="always"),
            ]
        ),
    ),
    "WordLevel": ("WordLevel", normalizers.Lowercase(), pre_tokenizers.Whitespace()),
}


def make(kind: str, *added: AddedToken) -> Tokenizer:
    """A tokenizer trained on the example's texts and on difficult ones."""
    name, normalizer, pre_tokenizer = KINDS[kind]
    unknown = {} if name == "Unigram" else {"unk_token": "?"}
    backend = Tokenizer(getattr(models, name)(**unknown))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    options: dict[str, Any] = {"unk_token": "?"} if name == "Unigram" else {}
    trainer = getattr(trainers, f"{name.capitalize() if name == 'BPE' else name}Trainer")(
        vocab_size=700, special_tokens=["?", "[PAD]"], show_progress=False, **options
    )
    texts = [row["text"] for row in example_rows("train")]
    backend.train_from_iterator([*texts, *NASTY, *WORDS], trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("[MASK]"), *added])
    backend.enable_truncation(MAX_LENGTH)
    return backend


@pytest.fixture(scope="module")
def tokenizers() -> Iterator[dict[str, Tokenizer]]:
    yield {kind: make(kind) for kind in KINDS}


def parts(plain: list[str]) -> st.SearchStrategy[str]:
    """A text with a cut after the shortest beginning, at a drawn place, or nowhere."""
    return st.lists(st.sampled_from(plain), min_size=0, max_size=60).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(
    before=parts([*NASTY, *WORDS, "word ", "parcel "]),
    near=parts([*NASTY, *WORDS]),
    after=parts([*NASTY, *WORDS, "word ", "中国"]),
    tokens=st.integers(1, 12),
)
@example("parcel " * 8, "", "word " * 60, MAX_LENGTH)
@example("中国" * 30, "", "中国" * 60, MAX_LENGTH)
def test_a_beginning_has_the_first_tokens_of_the_whole_text(
    tokenizers: dict[str, Tokenizer], kind: str, before: str, near: str, after: str, tokens: int
) -> None:
    tokenizer = tokenizers[kind]
    text = before + near + after
    tokenizer.enable_truncation(MAX_LENGTH)
    beginning = Prefixes(tokenizer).of(text, tokens)
    assert isinstance(beginning.text, str) and text.startswith(beginning.text)
    assert beginning.is_whole == (beginning.text == text)
    tokenizer.no_truncation()
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    ids = tokenizer.encode(beginning.text, add_special_tokens=False).ids
    assert whole[: len(ids)] == ids


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_beginning_of_a_long_text_is_read(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    tokenizers[kind].enable_truncation(MAX_LENGTH)
    beginning = Prefixes(tokenizers[kind]).of("where is my parcel " * 5000, MAX_LENGTH)
    least = CHARACTERS_PER_TOKEN * MAX_LENGTH
    assert least <= len(beginning.text) < least + 20
    assert not beginning.is_whole


def test_a_text_is_cut_between_ideographs_only_where_they_are_words() -> None:
    text = "中国" * 1000
    assert not Prefixes(make("WordPiece")).of(text, MAX_LENGTH).is_whole
    assert Prefixes(make("WordPiece, ideographs in words")).of(text, MAX_LENGTH).is_whole
    assert Prefixes(make("byte-level BPE")).of(text, MAX_LENGTH).is_whole
    assert Prefixes(make("WordPiece", AddedToken("国中"))).of(text, MAX_LENGTH).is_whole


def uncertain() -> dict[str, Tokenizer]:
    """Tokenizers for which the text after a word can change the tokens before it."""
    found = {
        "a token of two words": make("WordPiece", AddedToken("my parcel")),
        "a pattern with a space": make("WordPiece"),
        "no split": make("byte-level BPE"),
        "one word": make("Unigram"),
        "a pattern": make("byte-level BPE"),
        "no pre-tokenizer": make("byte-level BPE"),
        "spaces that become bytes": make("WordPiece"),
        "dropout": make("byte-level BPE"),
        "the end is kept": make("WordPiece"),
    }
    found["a pattern with a space"].normalizer = normalizers.Replace("e m", "x")
    found["no split"].pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    found["one word"].pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    found["a pattern"].pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated")
    found["no pre-tokenizer"].pre_tokenizer = None
    found["spaces that become bytes"].normalizer = normalizers.ByteLevel()
    found["dropout"].model.dropout = 0.1
    found["the end is kept"].enable_truncation(MAX_LENGTH, direction="left")
    return found


def test_a_text_is_read_whole_for_an_uncertain_tokenizer() -> None:
    for name, tokenizer in uncertain().items():
        beginning = Prefixes(tokenizer).of("where is my parcel " * 1000, MAX_LENGTH)
        assert beginning.is_whole, name
