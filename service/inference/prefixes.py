"""How much of a text must be tokenized to know its first tokens: a prefix, where that is certain.

A tokenizer reads 100,000 characters to keep 256 tokens of them. Where it splits a text into words
and treats each alone, what follows a word changes nothing before it, so a prefix that ends between
two words has the tokens that the whole text begins with. Whether a tokenizer is of that kind is
read from its file, part by part (https://huggingface.co/docs/tokenizers/components); of one with a
part that is not known here, every text is read whole.

A text is cut before a single space between two letters or digits. There no normalizer joins, drops
or reorders anything: the space is a starter that composes with nothing (Unicode Standard Annex 15),
and no grapheme cluster reaches over it (Annex 29). Where CJK ideographs are words of their own, as
BERT has them, a text is cut between two of them, too.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from service.model_package import Text

# Letters and digits between which a space may be cut at, of scripts that are written with spaces.
# Those left out are letters that form a grapheme cluster with what is before or after them.
PLAIN = r"[^\W_\u0d4e\u0e33\u0eb3\u3000-\U0010ffff]"
SPACE_CUT = re.compile(f"(?<={PLAIN})(?= {PLAIN})")
IDEOGRAPH = r"[\u4e00-\u9fff]"
IDEOGRAPH_CUT = re.compile(f"(?<={PLAIN})(?= {PLAIN})|(?<={IDEOGRAPH})(?={IDEOGRAPH})")
# Characters that a token has at most, as a rule: what is read first. More is read where it was not
# enough.
CHARACTERS_PER_TOKEN = 6
# A cut is looked for in so many characters after those.
SEARCHED_CHARACTERS = 1000

# Parts of tokenizers that treat each character, or what stands together without a space, alone.
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
# These split at every space, or before it.
SPLITTING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# These split by what each character is, whatever stands around it.
LOCAL_SPLITS = {"Digits", "Punctuation"}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}


class Beginning(NamedTuple):
    """The beginning of a text, or a pair; `is_whole` says that there is no more of it."""

    text: Text
    is_whole: bool


class Prefixes:
    """Cuts texts for one tokenizer, where that is certain to change nothing.

    Args:
        tokenizer: it says how it truncates.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        parts = json.loads(tokenizer.to_str())
        self._cut = IDEOGRAPH_CUT if _splits_ideographs(parts) else SPACE_CUT
        self.certain = _is_certain(parts)

    def of(self, text: str, tokens: int) -> Beginning:
        """The shortest beginning that is likely to have so many tokens."""
        least = tokens * CHARACTERS_PER_TOKEN
        if not self.certain or len(text) <= least:
            return Beginning(text, True)
        found = self._cut.search(text, least, min(len(text), least + SEARCHED_CHARACTERS))
        return Beginning(text, True) if found is None else Beginning(text[: found.start()], False)


def _is_certain(parts: dict[str, Any]) -> bool:
    """Whether a text that is cut between two words keeps the tokens before the cut."""
    return (
        (parts["truncation"] or {}).get("direction") == "Right"
        and parts["model"]["type"] in MODELS
        # Dropout draws anew for every word.
        and not parts["model"].get("dropout")
        and all(map(_is_local_normalizer, _steps(parts["normalizer"], "normalizers")))
        and _splits_at_spaces(_steps(parts["pre_tokenizer"], "pretokenizers"))
        # A token that was added by hand is found before the text is split.
        and not any(re.search(r"\s", token["content"]) for token in parts["added_tokens"])
    )


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """What a sequence of parts consists of, sequences in it too."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[name] for step in _steps(inner, name)]


def _is_local_normalizer(step: dict[str, Any]) -> bool:
    if step["type"] != "Replace":
        return step["type"] in LOCAL_NORMALIZERS
    # A pattern with a space and something else might reach over the cut.
    pattern = step["pattern"]
    literal = pattern.get("String")
    if literal:
        return not re.search(r"\s", literal)
    return bool(pattern.get("Regex") == " {2,}")


def _splits_at_spaces(steps: list[dict[str, Any]]) -> bool:
    """Whether there is a split at the cut, and whatever comes before that step is local."""
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
    """Whether ideographs are words of their own, by a step that is sure to come first."""
    normalizers = _steps(parts["normalizer"], "normalizers")
    pre_tokenizers = _steps(parts["pre_tokenizer"], "pretokenizers")
    return (
        len(normalizers) == 1
        and normalizers[0]["type"] == "BertNormalizer"
        and normalizers[0]["handle_chinese_chars"] is True
        and bool(pre_tokenizers)
        and pre_tokenizers[0]["type"] in SPLITTING
        # A token that was added by hand may be of several ideographs.
        and all(token["content"].isascii() for token in parts["added_tokens"])
    )
