"""Token ids, windows and targets: every token of a text is read, under the right labels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import example_rows
from training.common.errors import BaseModelError, RecipeError
from training.data.encoding import (
    RowSizes,
    TextEncoding,
    by_length,
    encode_split,
    make_targets,
    resolve_text_encoding,
    row_sizes,
)
from training.data.splits import Split
from training.finetuning.base_models import resolve_base_model
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.losses import weighted_loss
from training.recipe.arguments import (
    DataArguments,
    ExportArguments,
    FineTuningArguments,
    ModelArguments,
    Recipe,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base))).tokenizer()


TEXTS: list[Any] = ["short", "where is my parcel? " * 9, "x", "thank you so much " * 20]
SEVERAL = Split(TEXTS, [("b",), (), ("c", "a"), ("a",)])


def test_targets_are_in_the_order_of_the_labels() -> None:
    names = ["a", "b", "c"]
    targets = make_targets(SEVERAL, names, "multi_label")
    assert targets.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]]
    one = Split(TEXTS[:2], [("c",), ("a",)])
    assert make_targets(one, names, "single_label").tolist() == [2, 0]


def test_token_ids_are_kept_and_taken_again_only_for_the_same(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Texts, targets, tokenizer and reading decide; a torn file cannot be there."""

    def encode(
        texts: list[Any] = TEXTS, labels: str = "abc", reading: TextEncoding | None = None
    ) -> Any:
        split = Split(texts, SEVERAL.labels)
        reading = reading or TextEncoding(12)
        return encode_split(split, tokenizer, list(labels), "multi_label", reading, tmp_path)

    first = encode()
    (file,) = tmp_path.iterdir()
    changed = file.stat().st_mtime_ns
    again = encode()
    assert again.windows == first.windows
    assert again.table[:] == first.table[:]
    assert (list(tmp_path.iterdir()), file.stat().st_mtime_ns) == ([file], changed)
    whole = encode_split(SEVERAL, tokenizer, list("abc"), "multi_label", TextEncoding(12))
    assert whole.table[:] == first.table[:]

    encode(texts=[*TEXTS[:3], "another"])
    encode(labels="bac")
    encode(reading=TextEncoding(8))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("stride", [0, 3, 9])
def test_windows_cover_a_text_and_share_the_stride(tokenizer: Any, stride: int) -> None:
    reading = TextEncoding(max_length=12, window_stride=stride, aggregation="mean")
    encoded = encode_split(SEVERAL, tokenizer, ["a", "b", "c"], "multi_label", reading)
    targets = make_targets(SEVERAL, ["a", "b", "c"], "multi_label").tolist()
    rows = iter(encoded.table)
    for text, count, target in zip(TEXTS, encoded.windows, targets, strict=True):
        found: list[int] = []
        for number in range(count):
            row = next(rows)
            assert row["labels"] == target
            ids = row["input_ids"][1:-1]
            assert len(row["input_ids"]) <= 12
            if number:
                assert found[len(found) - stride :] == ids[:stride]
                ids = ids[stride:]
            found += ids
        assert found == tokenizer(text)["input_ids"][1:-1]
    assert next(rows, None) is None
    assert encoded.windows[0] == 1
    assert encoded.windows[3] > 5


def test_windows_belong_to_their_texts_also_in_a_large_split(tokenizer: Any) -> None:
    # `datasets` encodes a thousand rows at a time.
    texts: list[Any] = ["a " * (1 + n % 3 * 6) for n in range(1_200)]
    split = Split(texts, [("ab"[n % 2],) for n in range(1_200)])
    reading = TextEncoding(max_length=8, window_stride=2, aggregation="mean")
    encoded = encode_split(split, tokenizer, ["a", "b"], "single_label", reading)
    # 1, 7 and 13 words, in windows of 6 of which 4 are new.
    assert encoded.windows == [1, 2, 3] * 400
    expected = [n % 2 for n in range(1_200) for _ in range(encoded.windows[n])]
    assert encoded.table["labels"][:] == expected


def test_sizes_are_those_of_the_encoded_rows(tokenizer: Any, monkeypatch: Any) -> None:
    for reading in (TextEncoding(12, 4), TextEncoding(12), TextEncoding(64)):
        encoded = encode_split(SEVERAL, tokenizer, ["a", "b", "c"], "multi_label", reading)
        longest = max(map(len, encoded.table["input_ids"]))
        assert row_sizes(SEVERAL, tokenizer, reading) == RowSizes(len(encoded.table), longest)
    # Of many texts some are tokenized, the first and others at like distances.
    monkeypatch.setattr("training.data.encoding.MEASURED_TEXTS", 2)
    found = row_sizes(SEVERAL, tokenizer, TextEncoding(12, 4))
    assert found.windows == 4 and found.longest < 12


def test_a_truncated_text_is_one_row(tokenizer: Any) -> None:
    encoded = encode_split(SEVERAL, tokenizer, ["a", "b", "c"], "multi_label", TextEncoding(12))
    assert encoded.windows == [1, 1, 1, 1]
    assert max(len(ids) for ids in encoded.table["input_ids"][:]) == 12


def test_a_pair_is_one_row_of_both_texts(tokenizer: Any) -> None:
    split = Split([("one text", "another"), ("a", "b c")], [("a",), ("b",)])
    encoded = encode_split(split, tokenizer, ["a", "b"], "single_label", TextEncoding(12))
    assert encoded.table["input_ids"][0] == tokenizer("one text", "another")["input_ids"]
    assert set(encoded.table["token_type_ids"][0]) == {0, 1}
    assert encoded.table["labels"][:] == [0, 1]


def read(tokenizer: Any, config: Any = None, **keys: Any) -> TextEncoding:
    pair = keys.pop("pair", None)
    recipe = Recipe(
        ModelArguments(**keys),
        DataArguments(text_pair_column=pair),
        FineTuningArguments(),
        ExportArguments(),
        {},
        Path(),
    )
    return resolve_text_encoding(recipe, tokenizer, config or SimpleNamespace(model_type="bert"))


WINDOWS = {"long_text": "window", "window_aggregation": "max"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"max_length": 64}, TextEncoding(64)),
        ({"max_length": 3}, TextEncoding(3)),
        ({"max_length": 5, "pair": "second"}, TextEncoding(5)),
        ({"max_length": 32, **WINDOWS}, TextEncoding(32, 7, "max")),
        ({"max_length": 3, **WINDOWS}, TextEncoding(3, 0, "max")),
        ({"max_length": 32, "window_stride": 29, **WINDOWS}, TextEncoding(32, 29, "max")),
        ({"max_length": 32, "window_stride": 0, **WINDOWS}, TextEncoding(32, 0, "max")),
    ],
)
def test_a_max_length_that_the_model_can_read_is_accepted(
    tokenizer: Any, keys: dict[str, Any], expected: TextEncoding
) -> None:
    assert read(tokenizer, **keys) == expected


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_length": 65}, "from 3 to 64 tokens"),
        ({"max_length": 2}, "from 3 to 64 tokens"),
        ({"max_length": 4, "pair": "second"}, "from 5 to 64 tokens"),
        ({"max_length": 32, "window_stride": 30, **WINDOWS}, "choose a stride below 30"),
    ],
)
def test_a_max_length_that_the_model_cannot_read_is_refused(
    tokenizer: Any, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises((BaseModelError, RecipeError), match=said):
        read(tokenizer, **keys)


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", 20), ("roberta", 19), ("xlm-roberta", 19), ("mpnet", 19)]
)
def test_the_models_positions_are_a_limit_too(tokenizer: Any, kind: str, limit: int) -> None:
    config = SimpleNamespace(model_type=kind, max_position_embeddings=20)
    assert read(tokenizer, config, max_length=limit) == TextEncoding(limit)
    with pytest.raises(BaseModelError, match=f"to {limit} tokens"):
        read(tokenizer, config, max_length=limit + 1)


def test_rows_are_sorted_by_length_with_their_labels() -> None:
    found = by_length(SEVERAL)
    assert [len(text) for text in found.texts] == sorted(map(len, TEXTS), reverse=True)
    pairs = set(zip(TEXTS, SEVERAL.labels, strict=True))
    assert set(zip(found.texts, found.labels, strict=True)) == pairs


def test_validation_rows_keep_their_order_where_training_is_grouped_by_length(
    tiny_base: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import DataCollatorWithPadding, TrainingArguments

    rows = example_rows("train")[:60]
    split = Split([row["text"] for row in rows], [(row["label"],) for row in rows])
    names = sorted({row["label"] for row in rows})
    encoded = encode_split(split, tokenizer, names, "single_label", TextEncoding(32))
    base = resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base)))
    trainer = FineTuner(
        model=base.classifier(["a", "b", "c"], "single_label", 0),
        args=TrainingArguments(
            output_dir=str(tmp_path), group_by_length=True, use_cpu=True, report_to="none"
        ),
        eval_dataset=encoded.table,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=weighted_loss(None, "single_label", 0.0),
    )
    found = trainer.predict(encoded.table).label_ids
    assert np.array_equal(found, encoded.table["labels"][:])


def test_a_tokenizer_that_is_not_fast_is_refused(tmp_path: Path) -> None:
    from transformers import CanineConfig, CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path)
    CanineConfig().save_pretrained(tmp_path)
    base = resolve_base_model(ModelArguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(BaseModelError, match="has no fast tokenizer"):
        base.tokenizer()
