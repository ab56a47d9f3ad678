"""Rows → token ids and targets, as the Trainer takes them and as the package will read them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.model_package import Aggregation, Task
from training.config import Recipe
from training.data.splits import Split
from training.errors import BaseModelError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


# Texts by which it is known how long they are, before all are tokenized.
MEASURED_TEXTS = 2000


@dataclass(frozen=True)
class Reading:
    """How much of a text is read: the first `max_length` tokens, or all of it by windows.

    `window_stride` is how many tokens neighbouring windows share, `aggregation` how their
    probabilities become the text's; both None where there are no windows.
    """

    max_length: int
    window_stride: int | None = None
    aggregation: Aggregation | None = None

    def tokenizer_options(self) -> dict[str, Any]:
        """What a transformers tokenizer is called with."""
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
    """`windows[i]` rows of `table`, one after another, are text i; one where it is truncated."""

    table: Dataset
    windows: list[int]

    def window_shares(self) -> np.ndarray:
        """What each row of `table` counts, of shape (rows,), 1 on average: as much by text.

        A window counts one over the windows of its text; otherwise long texts, which are no more
        than short ones, would be most of what is learned.
        """
        counts = np.asarray(self.windows)
        return np.repeat(counts.mean() / counts, counts).astype(np.float32)


@dataclass(frozen=True)
class RowSizes:
    """What training sees of texts: their windows in all, and the tokens of the longest one."""

    windows: int
    longest: int


def usable_reading(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> Reading:
    """The recipe's `max_length` and `window_stride`, which the model must be able to read.

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
        return Reading(wanted)
    room = wanted - special
    stride = recipe.model.window_stride
    if stride is None:
        stride = room // 4
    if stride >= room:
        raise RecipeError(
            f"window_stride is {stride}, but windows of max_length {wanted} hold {room} tokens of "
            f"text: choose a stride below {room}"
        )
    return Reading(wanted, stride, recipe.model.window_aggregation)


def encode_split(
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    labels: list[str],
    task: Task,
    reading: Reading,
    cache: Path | None = None,
) -> EncodedSplit:
    """Token ids, not padded (the collator pads each batch to its longest), and targets.

    Every window of a text is a row with the text's labels.

    Args:
        cache: folder where they are kept, and taken from when texts, targets, tokenizer and reading
            are the same; whole or not there.
    """
    from datasets import Dataset

    targets = make_targets(split, labels, task)
    file = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        # With every call a tokenizer changes what it says of truncation and padding.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}
        content = [state, reading.tokenizer_options(), split.texts]
        digest = hashlib.sha256(json.dumps(content).encode())
        digest.update(targets.tobytes())
        file = str(cache / f"{digest.hexdigest()}.arrow")

    def encode(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        pairs = {"text_pair": rows["text_pair"]} if "text_pair" in rows else {}
        encoded = dict(tokenizer(rows["text"], **pairs, **reading.tokenizer_options()))
        owners = encoded.pop("overflow_to_sample_mapping", range(len(indices)))
        texts = [indices[owner] for owner in owners]
        # As numbers of Python's no more than a batch at a time: with many labels they are large.
        return {**encoded, "labels": targets[texts].tolist(), "owner": texts}

    columns = {"text": [t if isinstance(t, str) else t[0] for t in split.texts]}
    if split.texts and isinstance(split.texts[0], tuple):
        columns["text_pair"] = [text[1] for text in split.texts]
    table = Dataset.from_dict(columns).map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=list(columns),
        desc="tokenize",
        cache_file_name=file,
        load_from_cache_file=True,
    )
    windows = np.bincount(np.asarray(table["owner"][:], dtype=np.int64), minlength=len(split))
    return EncodedSplit(table.remove_columns("owner"), windows.tolist())


def row_sizes(split: Split, tokenizer: PreTrainedTokenizerFast, reading: Reading) -> RowSizes:
    """Windows and tokens of the texts, from at most MEASURED_TEXTS of them, evenly drawn."""
    drawn = split.take(
        np.linspace(0, len(split), min(len(split), MEASURED_TEXTS), False).astype(int)
    )
    firsts = [text if isinstance(text, str) else text[0] for text in drawn.texts]
    seconds = [text[1] for text in drawn.texts if not isinstance(text, str)]
    encoded = tokenizer(firsts, seconds or None, **reading.tokenizer_options())
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
