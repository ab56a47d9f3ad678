"""A split that does not flatter: what hangs together stays on one side, and the newest are last."""

from __future__ import annotations

import csv
import re
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import EXAMPLE, write_csv
from training.common.errors import DataError, RecipeError
from training.data.dataset import LabeledData, load_data
from training.data.splits import Split, find_groups, stratified_split, time_split
from training.data.times import parse_times
from training.export.calibration import FOLDS, with_calibration
from training.finetuning.record import run_identity
from training.recipe.arguments import DataArguments
from training.recipe.load import load_recipe
from whetstone.main import main

WORDS = ("river", "engine", "garden", "window", "copper", "letter", "bridge", "violin")
SENTENCES = [
    f"the {one} waits beside a {other} since {third}"
    for one, other, third in zip(WORDS, WORDS[3:] + WORDS[:3], WORDS[5:] + WORDS[:5], strict=True)
]

Drawn = list[tuple[int, int, set[str], str | None]]
ROWS = st.lists(
    st.tuples(
        st.integers(0, len(SENTENCES) - 1),
        st.integers(0, 3),
        st.sets(st.sampled_from("abcd"), min_size=1),
        st.sampled_from(["ann", "bob", "eve", None, None, None, None]),
    ),
    min_size=2,
    max_size=60,
)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**31)


def drawn(rows: Drawn) -> tuple[Split, list[str | None]]:
    """Sentences that only a number, or nothing, tells apart, with their customers."""
    texts = [f"{SENTENCES[which]} {number}" for which, number, _, _ in rows]
    customers = [customer for *_, customer in rows]
    labels = [tuple(sorted(found)) for _, _, found, _ in rows]
    return Split(list(texts), labels, find_groups(texts, customers)), customers


def sides(validation: Split, whole: Split) -> list[bool]:
    """Whether each row of the whole, in order, is in validation; rows are told by their place."""
    place, found = 0, []
    for row in range(len(whole)):
        here = (
            place < len(validation)
            and (whole.texts[row], whole.labels[row])
            == (validation.texts[place], validation.labels[place])
            and np.asarray(whole.groups)[row] == np.asarray(validation.groups)[place]
        )
        found.append(here)
        place += here
    assert place == len(validation)
    return found


def divided(
    whole: Split, share: float, seed: int, times: np.ndarray | None
) -> tuple[Split, Split] | None:
    """The split, or None where none is possible."""
    try:
        if times is None:
            return stratified_split(whole, share, seed)
        return time_split(whole, times, share)
    except DataError as error:
        assert "no validation rows can be set aside" in str(error)
        return None


@given(rows=ROWS, share=SHARES, seed=SEEDS, by_time=st.booleans())
def test_rows_of_one_group_are_never_parted(
    rows: Drawn, share: float, seed: int, by_time: bool
) -> None:
    whole, customers = drawn(rows)
    times = np.arange(len(rows)) // 3 if by_time else None
    found = divided(whole, share, seed, times)
    if found is None:
        return
    train, validation = found
    assert len(train) + len(validation) == len(whole)
    assert len(train)
    assert len(validation)
    kinds = [{text.rpartition(" ")[0] for text in part.texts} for part in found]
    assert not kinds[0] & kinds[1]
    held = sides(validation, whole)
    for customer in {customer for customer in customers if customer is not None}:
        assert len({held[row] for row, one in enumerate(customers) if one == customer}) == 1
    # Training keeps a row of every label.
    assert {x for labels in train.labels for x in labels} == {
        x for labels in whole.labels for x in labels
    }
    assert divided(whole, share, seed, times) == found


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
    share=st.floats(0.05, 0.5),
    seed=SEEDS,
)
def test_the_share_is_met_within_what_groups_allow(
    sizes: list[int], share: float, seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    whole = Split([str(row) for row in range(len(groups))], [("a",)] * len(groups), groups)
    _, validation = stratified_split(whole, share, seed)
    wanted = max(1, round(share * len(whole)))
    # Not farther away than half a group, but where the smallest is more than that by itself.
    assert abs(len(validation) - wanted) <= max(max(sizes) / 2, min(sizes) - wanted)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
    share=SHARES,
    seed=SEEDS,
    labels=st.data(),
)
def test_a_label_with_two_groups_is_on_both_sides(
    sizes: list[int], share: float, seed: int, labels: st.DataObject
) -> None:
    of_group = labels.draw(
        st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes))
    )
    groups = np.repeat(np.arange(len(sizes)), sizes)
    names = [(of_group[group],) for group in groups]
    whole = Split([str(row) for row in range(len(groups))], names, groups)
    several = {label for label, count in Counter(of_group).items() if count > 1}
    found = divided(whole, share, seed, None)
    assert (found is None) == (not several)
    if found is not None:
        assert {x for found_labels in found[1].labels for x in found_labels} == several


def test_another_seed_gives_another_split_of_the_same_groups() -> None:
    texts = [f"{sentence} {n}" for sentence in SENTENCES for n in range(3)]
    whole = Split(texts, [("ab"[row // 3 % 2],) for row in range(len(texts))])
    made = {tuple(stratified_split(whole, 0.2, seed)[1].texts) for seed in range(8)}
    assert len(made) > 1
    assert stratified_split(whole, 0.2, 3) == stratified_split(whole, 0.2, 3)


# Twins


def tickets() -> tuple[list[str], list[tuple[str, ...]]]:
    """400 messages of the example, each three times with another ticket number."""
    with (EXAMPLE / "train.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if len(row["text"]) > 30][:400]
    numbers = np.random.default_rng(0).permutation(90_000)[: 3 * len(rows)] + 10_000
    texts = [
        f"Ticket {number}: {row['text']}" for number, row in zip(numbers, rows * 3, strict=True)
    ]
    return texts, [(row["label"],) for row in rows * 3]


def twins(train: Split, validation: Split) -> int:
    """Validation rows that training has with another ticket number."""

    def message(text: Any) -> str:
        return re.sub(r"^Ticket \d+: ", "", str(text))

    known = {message(text) for text in train.texts}
    return sum(message(text) in known for text in validation.texts)


def test_no_validation_row_has_a_twin_in_training() -> None:
    texts, labels = tickets()
    assert len(texts) == 1200
    # As if equal texts alone stayed together.
    parted = stratified_split(Split(list(texts), labels, np.arange(len(texts))), 0.1, 42)
    assert twins(*parted) > 0.9 * len(parted[1])
    together = stratified_split(Split(list(texts), labels), 0.1, 42)
    assert twins(*together) == 0
    assert 100 <= len(together[1]) <= 140
    wanted = {label: count / 10 for label, count in Counter(labels).items()}
    for label, count in Counter(together[1].labels).items():
        assert abs(count - wanted[label]) <= 3


# Files


def load(folder: Path, rows: list[dict[str, str]], **keys: Any) -> LabeledData:
    path = write_csv(folder / "rows.csv", rows)
    return load_data(DataArguments(train_file=[str(path)], **keys), seed=0)


def customers(count: int = 40, each: int = 5) -> list[dict[str, str]]:
    """Rows of short texts of their own; every customer has some, written on days that follow."""
    return [
        {
            "text": f"t{row}",
            "label": "ab"[row % 2],
            "customer": f"c{row % count}",
            "day": f"2026-{row // 28 + 1:02}-{row % 28 + 1:02}",
        }
        for row in range(count * each)
    ]


def test_a_customer_is_on_one_side(tmp_path: Path) -> None:
    rows = customers()
    of_text = {row["text"]: row["customer"] for row in rows}
    data = load(tmp_path, rows, group_column="customer")
    found = [{of_text[str(text)] for text in part.texts} for part in (data.train, data.validation)]
    assert not found[0] & found[1]
    assert (len(data.validation), data.findings) == (20, ())
    alone = load(tmp_path, rows)
    found = [{of_text[str(t)] for t in part.texts} for part in (alone.train, alone.validation)]
    assert found[0] & found[1]


def test_a_row_without_a_group_is_its_own(tmp_path: Path) -> None:
    rows = [row | {"customer": " " if n % 2 else "c"} for n, row in enumerate(customers(10))]
    # So far all rows of label a are one customer's.
    rows += [{**rows[0], "text": f"u{n}", "customer": ""} for n in range(10)]
    data = load(tmp_path, rows, group_column="customer")
    assert Counter(data.validation.labels) == {("a",): 4, ("b",): 2}
    assert data.dropped == 0


def test_a_label_whose_rows_are_one_group_is_warned_of(tmp_path: Path) -> None:
    rows = customers()
    lone = [{**rows[0], "text": f"z{n}", "label": "lone", "customer": "new"} for n in range(6)]
    data = load(tmp_path, rows + lone, group_column="customer")
    (finding,) = data.findings
    assert (finding.code, finding.count, finding.rows[0]) == ("unmeasured_label", 6, 201)
    assert "label 'lone' has no row in the validation split" in finding.message
    assert "one group of group_column" in finding.message
    assert ("lone",) in data.train.labels
    assert ("lone",) not in data.validation.labels


def test_no_split_at_all_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"customer": row["label"]} for row in customers()]
    with pytest.raises(DataError, match="name a validation_file"):
        load(tmp_path, rows, group_column="customer")
    words = ["--train_file", str(tmp_path / "rows.csv"), "--group_column", "customer"]
    assert main(["check", *words]) == 1
    assert "no_validation" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["group_column", "time_column"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"has no column 'x', it has text, .* with {key}"):
        load(tmp_path, customers(), **{key: "x"})


def test_the_newest_rows_are_validation(tmp_path: Path) -> None:
    rows = customers()
    data = load(tmp_path, rows[::-1], time_column="day")
    days = {row["text"]: row["day"] for row in rows}
    train, validation = (
        [days[str(text)] for text in part.texts] for part in (data.train, data.validation)
    )
    assert len(validation) == 20
    assert max(train) < min(validation)


def test_rows_of_one_time_stay_together() -> None:
    times = np.asarray([1] * 10 + [2] * 6 + [3] * 4)
    whole = Split([f"t{n}" for n in range(20)], [("ab"[n % 2],) for n in range(20)])
    assert len(time_split(whole, times, 0.25)[1]) == 4
    assert len(time_split(whole, times, 0.4)[1]) == 10
    # Nearer to what is wanted than none, and never all.
    assert len(time_split(whole, times, 0.05)[1]) == 4
    assert len(time_split(whole, times, 0.99)[1]) == 10
    with pytest.raises(DataError, match="all rows have one time"):
        time_split(whole, np.ones(20), 0.1)


def test_a_group_is_as_new_as_its_newest_row() -> None:
    groups = np.asarray([0, 1, 2, 3, 4, 5, 6, 7, 0, 9])
    whole = Split([f"t{n}" for n in range(10)], [("ab"[n % 2],) for n in range(10)], groups)
    train, validation = time_split(whole, np.arange(10), 0.3)
    # The first row is the ninth's.
    assert validation.texts == ["t0", "t8", "t9"]
    assert train.texts == [f"t{n}" for n in range(1, 8)]


def test_a_label_that_only_the_newest_rows_have_stays_in_training(tmp_path: Path) -> None:
    rows = customers()
    rows[-10:] = [row | {"label": "new"} for row in rows[-10:]]
    data = load(tmp_path, rows, time_column="day")
    # Its oldest row.
    assert Counter(data.train.labels)[("new",)] == 1
    assert Counter(data.validation.labels)[("new",)] == 9
    rows[-10:] = [row | {"customer": "one"} for row in rows[-10:]]
    data = load(tmp_path, rows, time_column="day", group_column="customer")
    assert Counter(data.train.labels)[("new",)] == 10
    assert [finding.code for finding in data.findings] == ["unmeasured_label"]


def test_a_row_without_a_time_is_an_error_or_dropped(tmp_path: Path) -> None:
    rows = customers()
    rows[3] |= {"day": ""}
    rows[7] |= {"day": "yesterday"}
    rows[9] |= {"day": "31/01/2026"}
    with pytest.raises(
        DataError, match=r"row 4 \(line 5\): the time is missing .*\(and 2 more rows\)"
    ):
        load(tmp_path, rows, time_column="day")
    data = load(tmp_path, rows, time_column="day", drop_invalid=True)
    assert (data.dropped, len(data.train) + len(data.validation)) == (3, 197)


def test_a_test_file_needs_neither_group_nor_time(tmp_path: Path) -> None:
    test = write_csv(tmp_path / "test.csv", [{"text": "a", "label": "a"}])
    data = load(
        tmp_path, customers(), group_column="customer", time_column="day", test_file=str(test)
    )
    assert data.test is not None
    assert data.test.texts == ["a"]


@pytest.mark.parametrize(
    ("values", "order"),
    [
        (["2026-01-31", "2026-01-30", "2025-12-31"], [2, 1, 0]),
        # One moment in two zones, and a time without one, which is UTC.
        (["2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00Z", "2026-01-31 10:00:01"], [0, 1, 2]),
        ([1700000000, "1700000001", 1699999999.5], [2, 0, 1]),
        (["20260131", "20251231"], [1, 0]),
        ([datetime(2026, 1, 31, tzinfo=UTC), date(2026, 1, 30), "2026-01-29"], [2, 1, 0]),
        # More than nanoseconds of 64 bits can hold.
        (["9999-12-31", "0999-01-01", "2026-01-01"], [1, 2, 0]),
    ],
)
def test_times_of_every_kind_have_their_order(values: list[Any], order: list[int]) -> None:
    parsed = parse_times(values)
    assert not np.isnan(parsed).any()
    assert np.argsort(parsed, kind="stable").tolist() == order


@pytest.mark.parametrize(
    "value", [None, "", " ", "nan", "inf", "soon", "31/01/2026", True, [1], "25:00"]
)
def test_a_value_that_is_no_time_is_not_read_as_one(value: Any) -> None:
    assert np.isnan(parse_times([value, "2026-01-31"])).tolist() == [True, False]


def test_numbers_and_dates_have_no_common_order() -> None:
    with pytest.raises(
        DataError, match=r"^f.csv: time_column holds a number in row 2 and a date in row 3"
    ):
        parse_times(["soon", 5, "2026-01-31"], "f.csv")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"time_column": "day", "validation_file": "b.csv"}, "leave one of them out"),
        ({"group_column": "text"}, "group_column and text_column are both 'text'"),
        ({"time_column": "label"}, "time_column and label_column are both 'label'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(None, {"name": "x", "train_file": "a.csv", **keys})


# What follows from a split


def test_another_split_is_another_run(tmp_path: Path) -> None:
    """A run that was begun with one split is not gone on with on another."""
    path = write_csv(tmp_path / "rows.csv", customers())

    def identity(**keys: str) -> str:
        recipe = load_recipe(None, {"name": "x", "train_file": str(path), **keys})
        return run_identity(recipe, load_data(recipe.data, seed=0))

    prints = [
        identity(),
        identity(group_column="customer"),
        identity(time_column="day"),
        identity(time_column="day", group_column="customer"),
    ]
    assert len(set(prints)) == len(prints)
    assert identity(time_column="day") == prints[2]


def test_calibration_is_tried_on_rows_of_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins in the other folds would make it look better than it is on rows of their own."""
    from tests.training.export.test_calibration import single
    from training.export import calibration as calibrate

    seen: list[tuple[set[int], set[int]]] = []
    original = calibrate.ValidationRows.take
    random = np.random.default_rng(0)
    groups = random.integers(0, 40, 400)
    logits = random.normal(size=(400, 3)).astype(np.float32)

    def take(self: Any, chosen: np.ndarray) -> Any:
        seen.append((set(groups[chosen]), set(groups[~chosen])))
        return original(self, chosen)

    monkeypatch.setattr(calibrate.ValidationRows, "take", take)
    truth = [("abc"[n % 3],) for n in range(400)]
    with_calibration(single(), truth, [1] * 400, logits, groups)
    assert len(seen) == 2 * FOLDS
    assert all(not held & others for held, others in seen)
    few = with_calibration(single(), truth, [1] * 400, logits, groups % 4)
    assert few.calibration["reason"] == "the validation rows are fewer than 5 groups"
