"""How much of a text a tokenizer cuts into pieces of words, whatever its family."""

from __future__ import annotations

from functools import cache

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.languages import TEXTS
from training.data import shredding
from training.data.findings import Rows, find_errors
from training.data.preflight import preflight
from training.data.shredding import count_shreds
from training.data.text_warnings import MULTILINGUAL_BASE, SHREDDED_SHARE, WholeTextTokenizer
from training.finetuning.base_models import embedded_folder


@cache
def embedded() -> Tokenizer:
    """The embedded base model's, for English."""
    tokenizer = Tokenizer.from_file(str(embedded_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def trained(family: str, texts: list[str]) -> Tokenizer:
    """A tokenizer of one family that knows the words of these texts."""
    if family == "Unigram":
        words = {f"▁{word}" for text in texts for word in text.split()}
        pieces = {**dict.fromkeys("▁" + "".join(texts), -20.0), **dict.fromkeys(words, -5.0)}
        tokenizer = Tokenizer(models.Unigram([("<unk>", -50.0), *sorted(pieces.items())], unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        return tokenizer
    if family == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(
            texts * 20,
            trainers.WordPieceTrainer(
                vocab_size=4000, special_tokens=["[UNK]"], show_progress=False
            ),
        )
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts * 20,
        trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


@pytest.mark.parametrize(
    ("language", "least", "most"),
    [
        ("English", 0.0, 0.07),
        ("code", 0.0, 0.15),
        ("log lines", 0.0, 0.15),
        ("French", 0.25, 0.4),
        ("German", 0.4, 0.55),
        ("Hindi", 0.5, 0.65),
        ("Russian", 0.7, 0.85),
        # Each character is a word and a token.
        ("Chinese", 0.0, 0.01),
    ],
)
def test_the_embedded_base_knows_english_words(language: str, least: float, most: float) -> None:
    share = count_shreds(embedded(), TEXTS[language]).share
    assert least <= share <= most
    assert (share >= SHREDDED_SHARE) == (least >= 0.2)


def test_it_counts_what_wordpiece_marks() -> None:
    for texts in (TEXTS["German"], TEXTS["Russian"], TEXTS["English"]):
        found = count_shreds(embedded(), texts)
        pieces = [embedded().encode(text, add_special_tokens=False).tokens for text in texts]
        assert found.tokens.tolist() == [len(tokens) for tokens in pieces]
        marked = [sum(token.startswith("##") for token in tokens) for tokens in pieces]
        assert found.continuations.tolist() == marked


@pytest.mark.parametrize("family", ["WordPiece", "byte-level BPE", "Unigram"])
@pytest.mark.parametrize("language", ["English", "German", "Russian"])
def test_every_family_knows_the_words_it_was_made_of(family: str, language: str) -> None:
    own = trained(family, TEXTS[language])
    letters = sorted(set("".join(TEXTS[language])))
    foreign = trained(family, [*TEXTS["Chinese"], *TEXTS["code"], " ".join(letters)])
    assert count_shreds(own, TEXTS[language]).share < 0.1
    if family != "WordPiece":
        # Which has a token for a word that it does not know all pieces of.
        assert count_shreds(foreign, TEXTS[language]).share > 0.5


def test_a_character_in_several_tokens_is_shredded() -> None:
    """Bytes of Chinese, which has no blanks to tell words by."""
    english = trained("byte-level BPE", TEXTS["English"])
    assert count_shreds(english, TEXTS["Chinese"]).share > 0.6
    assert count_shreds(trained("byte-level BPE", TEXTS["Chinese"]), TEXTS["Chinese"]).share < 0.1


def test_pairs_are_counted_whole_and_empty_texts_have_no_tokens() -> None:
    found = count_shreds(embedded(), [("a parcel", "Zurückschicken"), "", ("", "")])
    assert found.tokens.tolist()[1:] == [0, 0]
    assert 0 < found.continuations[0] < found.tokens[0]
    assert count_shreds(embedded(), [""]).share == 0


def look(texts: list[str]) -> list[str]:
    """Messages of the finding about these texts."""
    splits = {"train": Rows("rows.csv", list(texts), [("a",), ("b",)] * (len(texts) // 2))}
    found = preflight(
        splits,
        find_errors(splits),
        tokenizer=WholeTextTokenizer.of(embedded(), embedded().token_to_id("[UNK]")),
        cut_after=256,
    )
    return [
        f"{finding.count} {finding.message}"
        for finding in found.findings
        if finding.code == "shredded_text"
    ]


def test_the_check_names_a_base_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(TEXTS["English"]) == look(TEXTS["Chinese"]) == look(TEXTS["log lines"]) == []
    (said,) = look(TEXTS["Russian"])
    assert said.startswith("6 7")
    assert MULTILINGUAL_BASE in said
    assert "rows looked at" not in said
    monkeypatch.setattr(shredding, "LOOKED_AT_ROWS", 3)
    (said,) = look(TEXTS["Russian"])
    assert said.startswith("3 ")
    assert "of 3 rows looked at" in said
