"""Token ids, windows and targets: every token of a text is read, under the right labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import example_rows
from training.base_models import resolve_base_model
from training.config import ModelArguments
from training.data import Split
from training.encoding import Reading, by_length, encode_split, make_targets
from training.errors import BaseModelError
from training.train import OrderedValidationTrainer


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


def test_windows_cover_a_text_and_share_the_stride(tokenizer: Any) -> None:
    reading = Reading(max_length=12, window_stride=3, aggregation="mean")
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
                assert found[-3:] == ids[:3]
                ids = ids[3:]
            found += ids
        assert found == tokenizer(text)["input_ids"][1:-1]
    assert next(rows, None) is None
    assert encoded.windows[0] == 1
    assert encoded.windows[3] > 5


def test_a_truncated_text_is_one_row(tokenizer: Any) -> None:
    encoded = encode_split(SEVERAL, tokenizer, ["a", "b", "c"], "multi_label", Reading(12))
    assert encoded.windows == [1, 1, 1, 1]
    assert max(len(ids) for ids in encoded.table["input_ids"][:]) == 12


def test_a_pair_is_one_row_of_both_texts(tokenizer: Any) -> None:
    split = Split([("one text", "another"), ("a", "b c")], [("a",), ("b",)])
    encoded = encode_split(split, tokenizer, ["a", "b"], "single_label", Reading(12))
    assert encoded.table["input_ids"][0] == tokenizer("one text", "another")["input_ids"]
    assert set(encoded.table["token_type_ids"][0]) == {0, 1}
    assert encoded.table["labels"][:] == [0, 1]


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
    encoded = encode_split(split, tokenizer, names, "single_label", Reading(32))
    base = resolve_base_model(ModelArguments(model_name_or_path=str(tiny_base)))
    trainer = OrderedValidationTrainer(
        model=base.classifier(["a", "b", "c"], "single_label", 0),
        args=TrainingArguments(
            output_dir=str(tmp_path), group_by_length=True, use_cpu=True, report_to="none"
        ),
        eval_dataset=encoded.table,
        data_collator=DataCollatorWithPadding(tokenizer),
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
