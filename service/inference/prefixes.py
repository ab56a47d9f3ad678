"""Cut a long text before it is tokenized, where this certainly keeps its first tokens.

A tokenizer would read 100,000 characters to keep 256 tokens. Many tokenizers split a text into
words and treat each word alone, so what follows a word does not change the tokens before it. A
prefix that ends between two words then has the tokens that the whole text begins with. The parts
of the tokenizer's file say whether a tokenizer is of this kind
(https://huggingface.co/docs/tokenizers/components). With a part that is unknown here, every text
is read whole.

A text is cut before a single space between two letters or digits. There, no normalizer joins,
drops or reorders anything: the space is a starter that composes with nothing (Unicode Standard
Annex 15), and no grapheme cluster crosses it (Annex 29). Where CJK ideographs are words of their
own, as in BERT, a text may also be cut between two of them.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from service.package.manifest import Text

# Letters and digits of scripts that are written with spaces. The excluded letters form a grapheme
# cluster with a neighbor.
PLAIN = r"[^\W_\u0d4e\u0e33\u0eb3\u3000-\U0010ffff]"
SPACE_CUT = re.compile(f"(?<={PLAIN})(?= {PLAIN})")
IDEOGRAPH = r"[\u4e00-\u9fff]"
IDEOGRAPH_CUT = re.compile(f"(?<={PLAIN})(?= {PLAIN})|(?<={IDEOGRAPH})(?={IDEOGRAPH})")
# The characters that are read first for each token. Few texts need more.
CHARACTERS_PER_TOKEN = 6
# The cut must lie within so many characters after those.
SEARCHED_CHARACTERS = 1000

# Normalizers that treat each character, or each run without a space, alone.
LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Strip",
    "StripAccents",
}
# Pre-tokenizers that split at every space, or before it.
SPLITTING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# Pre-tokenizers that split by each character alone.
LOCAL_SPLITS = {"Digits", "Punctuation"}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}


class Beginning(NamedTuple):
    """The beginning of a text, or a pair; `is_whole` says that this is all of it."""

    text: Text
    is_whole: bool


class Prefixes:
    """Cuts texts for one tokenizer, where this certainly keeps their first tokens.

    Args:
        tokenizer: it states its truncation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        parts = json.loads(tokenizer.to_str())
        self._cut = IDEOGRAPH_CUT if _splits_ideographs(parts) else SPACE_CUT
        self.certain = _is_certain(parts)

    def of(self, text: str, tokens: int) -> Beginning:
        """A beginning that is likely to have at least `tokens` tokens."""
        least = tokens * CHARACTERS_PER_TOKEN
        if not self.certain or len(text) <= least:
            return Beginning(text, True)
        cut = self._cut.search(text, least, min(len(text), least + SEARCHED_CHARACTERS))
        return Beginning(text, True) if cut is None else Beginning(text[: cut.start()], False)


def _is_certain(parts: dict[str, Any]) -> bool:
    """Whether a text that is cut between two words keeps its tokens before the cut."""
    return (
        (parts["truncation"] or {}).get("direction") == "Right"
        and parts["model"]["type"] in MODELS
        # Dropout is random for every word.
        and not parts["model"].get("dropout")
        and all(map(_is_local_normalizer, _steps(parts["normalizer"], "normalizers")))
        and _splits_at_spaces(_steps(parts["pre_tokenizer"], "pretokenizers"))
        # Added tokens are matched before the text is split.
        and not any(re.search(r"\s", token["content"]) for token in parts["added_tokens"])
    )


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The single steps of a part; sequences are resolved."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[name] for step in _steps(inner, name)]


def _is_local_normalizer(step: dict[str, Any]) -> bool:
    if step["type"] != "Replace":
        return step["type"] in LOCAL_NORMALIZERS
    # A pattern with a space and something else might cross the cut.
    pattern = step["pattern"]
    literal = pattern.get("String")
    if literal:
        return not re.search(r"\s", literal)
    return bool(pattern.get("Regex") == " {2,}")


def _splits_at_spaces(steps: list[dict[str, Any]]) -> bool:
    """Whether one step splits at the cut, and all steps before it are local."""
    for step in steps:
        kind = step["type"]
        if kind in SPLITTING:
            return True
        if kind == "ByteLevel" and step.get("use_regex", True):
            return True
        if kind == "Metaspace" and step.get("split", True):
            return True
        if kind not in LOCAL_SPLITS:
            return False
    return False


def _splits_ideographs(parts: dict[str, Any]) -> bool:
    """Whether the first step makes every ideograph a word of its own."""
    normalizers = _steps(parts["normalizer"], "normalizers")
    pre_tokenizers = _steps(parts["pre_tokenizer"], "pretokenizers")
    return (
        len(normalizers) == 1
        and normalizers[0]["type"] == "BertNormalizer"
        and normalizers[0]["handle_chinese_chars"] is True
        and bool(pre_tokenizers)
        and pre_tokenizers[0]["type"] in SPLITTING
        # An added token may have several ideographs.
        and all(token["content"].isascii() for token in parts["added_tokens"])
    )
