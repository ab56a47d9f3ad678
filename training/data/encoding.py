"""Rows → token ids and targets, for the Trainer, encoded as the package will encode them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.package.manifest import Aggregation, Task
from training.common.errors import BaseModelError, RecipeError
from training.data.splits import Split
from training.recipe.arguments import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


# The number of texts by which the length of all is estimated before they are tokenized.
MEASURED_TEXTS = 2000


@dataclass(frozen=True)
class TextEncoding:
    """How a text becomes token ids: its first `max_length` tokens, or all of it in windows.

    `window_stride` is the number of tokens that neighboring windows share, and `aggregation` how
    their probabilities become those of the text; both are None where there are no windows.
    """

    max_length: int
    window_stride: int | None = None
    aggregation: Aggregation | None = None

    def tokenizer_options(self) -> dict[str, Any]:
        """The options that a transformers tokenizer is called with."""
        if self.window_stride is None:
            return {"truncation": True, "max_length": self.max_length}
        return {
            "truncation": True,
            "max_length": self.max_length,
            "stride": self.window_stride,
            "return_overflowing_tokens": True,
        }


@dataclass(frozen=True)
class EncodedSplit:
    """Token ids in `table`: text i is the next `windows[i]` rows; one row where it is truncated."""

    table: Dataset
    windows: list[int]

    def window_shares(self) -> np.ndarray:
        """The weight of each row of `table`, of shape (rows,), 1 on average; all texts weigh alike.

        The weight of a window is one over the windows of its text. With equal weights long texts
        would be most of what is learned, although they are no more texts than short ones.
        """
        counts = np.asarray(self.windows)
        return np.repeat(counts.mean() / counts, counts).astype(np.float32)


@dataclass(frozen=True)
class RowSizes:
    """The number of windows of all texts, and the tokens of the longest window."""

    windows: int
    longest: int


def resolve_text_encoding(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> TextEncoding:
    """The recipe's `max_length` and windows, which the model must be able to read.

    Raises:
        BaseModelError: the model reads fewer tokens.
        RecipeError: windows of that length cannot share that many tokens.
    """
    wanted = recipe.model.max_length
    has_pairs = recipe.data.text_pair_column is not None
    # Tokenizers that state no limit carry a huge number; the embeddings have one all the same.
    limit = tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa and its kin count positions from the one after the padding's.
        counted = any(kind in config.model_type for kind in ("roberta", "mpnet", "camembert"))
        offset = tokenizer.pad_token_id + 1 if counted else 0
        limit = min(limit, positions - offset)
    special = tokenizer.num_special_tokens_to_add(pair=has_pairs)
    lowest = special + (2 if has_pairs else 1)
    if not lowest <= wanted <= limit:
        raise BaseModelError(
            f"max_length is {wanted}, but {recipe.model.model_name_or_path} reads from {lowest} "
            f"to {limit} tokens: set max_length within that"
        )
    if recipe.model.long_text == "truncate":
        return TextEncoding(wanted)
    room = wanted - special
    stride = recipe.model.window_stride
    if stride is None:
        stride = room // 4
    if stride >= room:
        raise RecipeError(
            f"window_stride is {stride}, but windows of max_length {wanted} hold {room} tokens of "
            f"text: choose a stride below {room}"
        )
    return TextEncoding(wanted, stride, recipe.model.window_aggregation)


def encode_split(
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    labels: list[str],
    task: Task,
    text_encoding: TextEncoding,
    cache: Path | None = None,
) -> EncodedSplit:
    """Token ids, not padded (the collator pads each batch to its longest), and targets.

    Every window of a text is a row with the text's labels.

    Args:
        cache: folder where they are kept, and read from when texts, targets, tokenizer and encoding
            are the same; a file in it is complete or not there.
    """
    from datasets import Dataset

    targets = make_targets(split, labels, task)

    def encode(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        pairs = {"text_pair": rows["text_pair"]} if "text_pair" in rows else {}
        encoded = dict(tokenizer(rows["text"], **pairs, **text_encoding.tokenizer_options()))
        owners = encoded.pop("overflow_to_sample_mapping", range(len(indices)))
        texts = [indices[owner] for owner in owners]
        # Numbers of Python's are large where labels are many: no more of them than for a batch.
        return {**encoded, "labels": targets[texts].tolist(), "owner": texts}

    columns = {"text": [text if isinstance(text, str) else text[0] for text in split.texts]}
    if split.texts and isinstance(split.texts[0], tuple):
        columns["text_pair"] = [text[1] for text in split.texts]
    table = Dataset.from_dict(columns).map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=list(columns),
        desc="tokenize",
        cache_file_name=_cache_file(cache, split, tokenizer, text_encoding, targets),
        load_from_cache_file=True,
    )
    windows = np.bincount(np.asarray(table["owner"][:], dtype=np.int64), minlength=len(split))
    return EncodedSplit(table.remove_columns("owner"), windows.tolist())


def _cache_file(
    cache: Path | None,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    text_encoding: TextEncoding,
    targets: np.ndarray,
) -> str | None:
    """The file of a cache that only the same rows, encoded in the same way, have."""
    if cache is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    # With every call a tokenizer changes what it says of truncation and padding.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None}
    content = [state, text_encoding.tokenizer_options(), split.texts]
    digest = hashlib.sha256(json.dumps(content).encode())
    digest.update(targets.tobytes())
    return str(cache / f"{digest.hexdigest()}.arrow")


def row_sizes(
    split: Split, tokenizer: PreTrainedTokenizerFast, text_encoding: TextEncoding
) -> RowSizes:
    """Windows and tokens of the texts, from at most MEASURED_TEXTS of them, evenly drawn."""
    drawn = split.take(
        np.linspace(0, len(split), min(len(split), MEASURED_TEXTS), False).astype(int)
    )
    firsts = [text if isinstance(text, str) else text[0] for text in drawn.texts]
    seconds = [text[1] for text in drawn.texts if not isinstance(text, str)]
    encoded = tokenizer(firsts, seconds or None, **text_encoding.tokenizer_options())
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return RowSizes(round(len(split) * len(lengths) / len(drawn)), max(lengths))


def by_length(split: Split) -> Split:
    """The rows from the longest text to the shortest, so that batches need little padding."""
    lengths = [len(t) if isinstance(t, str) else len(t[0]) + len(t[1]) for t in split.texts]
    return split.take(np.argsort(-np.asarray(lengths), kind="stable"))


def make_targets(split: Split, labels: list[str], task: Task) -> np.ndarray:
    """Label numbers of shape (rows,), or for several labels a row 0.0 and 1.0, (rows, labels)."""
    index = {label: position for position, label in enumerate(labels)}
    if task == "single_label":
        return np.asarray([index[names[0]] for names in split.labels], dtype=np.int64)
    targets = np.zeros((len(split), len(labels)), dtype=np.float32)
    for row, names in enumerate(split.labels):
        targets[row, [index[name] for name in names]] = 1
    return targets
