"""The data check: every code is found, counted in rows, and shown without a text."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.conftest import ROOT, write_csv
from tests.languages import TEXTS
from training.data.findings import Rows, find_errors
from training.data.near_duplicates import (
    SIMILARITY,
    find_near_duplicates,
    normalized,
    shingles,
    similar_groups,
)
from training.data.output import draw_data, write_findings
from training.data.preflight import Preflight, preflight
from training.data.text_warnings import WholeTextTokenizer
from training.finetuning.base_models import embedded_folder
from whetstone.main import main

DATA = ROOT.parent / "shared" / "data"
WARNINGS = {
    "label_variants",
    "duplicate_rows",
    "conflicting_labels",
    "split_overlap",
    "near_duplicates",
    "rare_labels",
    "imbalance",
    "truncation",
    "unknown_tokens",
    "shredded_text",
    "markup",
    "label_in_text",
}


def rows_of(pairs: Sequence[tuple[Any, Any]], multi_label: bool = False) -> Rows:
    """Rows of (text, label), or of (text, labels) where there are several."""
    labels = [found if multi_label else ((found,) if found else ()) for _, found in pairs]
    return Rows("rows.csv", [text for text, _ in pairs], labels, multi_label)


@cache
def tokenizer() -> Tokenizer:
    """The embedded base model's."""
    return Tokenizer.from_file(str(embedded_folder() / "tokenizer.json"))


def look(cut_after: int | None = 256, **splits: Rows) -> Preflight:
    return preflight(
        splits,
        find_errors(splits),
        tokenizer=WholeTextTokenizer.of(tokenizer(), tokenizer().token_to_id("[UNK]")),
        cut_after=cut_after,
    )


def counts(found: Preflight, code: str) -> dict[str, int]:
    """Rows of a code by split."""
    return {f.split: f.count for f in found.findings if f.code == code}


def topics(count: int) -> list[tuple[str, str]]:
    """Texts of two topics that are not alike: nothing to find."""
    words = ["river", "engine", "garden", "window", "copper", "letter", "bridge", "violin"]
    others = ["paper", "silver", "mountain", "table", "forest", "candle", "button", "harbour"]
    verbs = ["waits", "sings", "breaks", "follows", "answers", "returns", "glows", "sinks"]
    made = []
    for n in range(count):
        one, two, three = words[n % 8], others[n // 8 % 8], verbs[n // 64 % 8]
        made.append((f"{one} {n * 7919 % 1000} beside {two} {three} {n}", "ab"[n % 2]))
    return made


def test_sound_data_gives_nothing() -> None:
    found = look(train=rows_of(topics(40)), test=rows_of([("quite another text", "a")]))
    assert [f.code for f in found.findings if f.code != "near_duplicates"] == []
    assert found.rows == {"train": 40, "test": 1}
    assert found.label_counts["train"] == {"a": 20, "b": 20}
    assert len(found.token_lengths["train"]) == 40


def test_labels_that_differ_only_by_case_or_white_space_are_warned_of() -> None:
    train = [*topics(30), *((f"more {n} {n * n}", " A ") for n in range(3))]
    found = look(train=rows_of(train), test=rows_of([("new", "a"), ("newer", "b")]))
    assert counts(found, "label_variants") == {"train": 3}
    (finding,) = [f for f in found.findings if f.code == "label_variants"]
    assert finding.rows == (31, 32, 33)
    assert "' A ' differs from 'a'" in finding.message


# Each example copies a whole tokenizer.
@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("ab")), min_size=4, max_size=30),
    st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from("ab")), max_size=12),
)
def test_repeats_conflicts_and_overlap_are_counted_as_by_hand(
    train: list[tuple[str, str]], test: list[tuple[str, str]]
) -> None:
    train = [*train, ("x", "a"), ("y", "a"), ("x2", "b"), ("y2", "b")]
    test = [*test, ("z", "a")]
    found = look(train=rows_of(train), test=rows_of(test))
    for name, rows in (("train", train), ("test", test)):
        repeats = sum(row in rows[:n] for n, row in enumerate(rows))
        assert counts(found, "duplicate_rows").get(name, 0) == repeats
        conflicts = 0
        for text in {text for text, _ in rows}:
            labels = [label for other, label in rows if other == text]
            conflicts += len(labels) - 1 if len(set(labels)) > 1 else 0
        assert counts(found, "conflicting_labels").get(name, 0) == conflicts
    known = {text for text, _ in train}
    overlap = sum(text in known for text, _ in test)
    assert counts(found, "split_overlap").get("test", 0) == overlap


def test_several_labels_conflict_as_sets() -> None:
    rows = [("one text", ("a", "b")), ("one text", ("b", "a")), ("other", ("a",)), ("other", ())]
    found = look(train=rows_of([*rows, ("third", ("b",))], multi_label=True))
    assert counts(found, "duplicate_rows") == {"train": 1}
    assert counts(found, "conflicting_labels") == {"train": 1}


LONG = "where is the parcel that I ordered on Tuesday, it should have been here by now"


def test_nearly_equal_texts_are_found_in_train_and_across_splits() -> None:
    train = [*topics(20), (LONG, "a"), (LONG.upper() + "!", "a"), (LONG + " ok", "a")]
    test = [(LONG + "?!", "a"), (LONG, "a"), ("nothing like it at all, by any means", "b")]
    found = near({"train": train, "test": test})
    # The first of its kind and the exact repetition do not count.
    assert found == {"train": [21, 22], "test": [0]}


def near(splits: dict[str, list[tuple[str, str]]]) -> dict[str, list[int]]:
    texts = {name: [text for text, _ in rows] for name, rows in splits.items()}
    given_rows = {name: (range(len(found)), found) for name, found in texts.items()}
    return find_near_duplicates(given_rows)


def test_a_test_row_near_another_test_row_is_no_leak() -> None:
    test = [(LONG, "a"), (LONG + " ok", "a")]
    assert near({"train": topics(4), "test": test})["test"] == []


def test_a_test_row_near_a_training_row_is_found_and_an_exact_repetition_is_not_counted() -> None:
    steps = [LONG, LONG.replace("Tuesday", "Wednesday"), LONG.replace("Tuesday", "Wednesday") + "!"]
    assert near({"train": [(steps[0], "a")], "test": [(steps[1], "a"), (steps[0], "a")]}) == {
        "train": [],
        "test": [0],
    }
    assert near({"train": [(steps[1], "a")], "test": [(steps[2], "a")]})["test"] == [0]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("ticket 48213: I was charged twice", "Ticket 7: I was charged twice!", True),
        ("order a81c2f where is my parcel", "order 99eb01 where is my parcel", True),
        ("error 404", "error 500", False),
        ("12.5 17 3 44 81 93", "11.5 18 2 43 82 94", False),
        ("hi!", "Hi", True),
        ("yes", "no", False),
        # No word at all.
        ("👍", "👎", False),
        ("", "?", False),
        (
            "我的订单12345还没有送到 请帮我查一下好吗",
            "我的订单777还没有送到 请帮我查一下好吗",
            True,
        ),
        (("where is it now, please", "on the way"), ("Where is it now please", "on the way"), True),
    ],
)
def test_texts_are_nearly_equal_where_few_words_differ(one: Any, other: Any, alike: bool) -> None:
    assert similar_groups([one, other]).tolist() == [0, 0 if alike else 1]


def test_groups_are_those_of_comparing_every_text_with_every_other() -> None:
    random = np.random.default_rng(5)
    words = [
        "river",
        "engine",
        "garden",
        "window",
        "copper",
        "letter",
        "bridge",
        "violin",
        "paper",
        "silver",
    ]
    texts: list[str] = []
    for _ in range(60):
        kept = list(random.choice(words, 14))
        for _ in range(4):
            kept[int(random.integers(14))] = str(random.choice(words))
            texts.append(" ".join(kept))
    parents = list(range(len(texts)))
    pieces = [shingles(normalized(text)) for text in texts]
    for one in range(len(texts)):
        for other in range(one):
            common = len(pieces[one] & pieces[other])
            if common >= SIMILARITY * len(pieces[one] | pieces[other]):
                ends = parents[one], parents[other]
                parents = [min(ends) if place in ends else place for place in parents]
    assert 60 < len(set(parents)) < 200
    assert similar_groups(texts).tolist() == parents


def test_many_similar_texts_are_one_group() -> None:
    texts = [f"{LONG} {chr(97 + n % 26)}{chr(97 + n // 26 % 26)}" for n in range(3000)]
    assert set(similar_groups(texts).tolist()) == {0}


def test_a_group_that_training_has_is_found_in_later_splits() -> None:
    train = replace(rows_of(topics(4)), groups=["ann", "bob", None, "ann"])
    test = rows_of([("new", "a"), ("newer", "b"), ("newest", "a")])
    test = replace(test, groups=["bob", None, "eve"])
    found = look(train=train, test=test)
    assert counts(found, "group_overlap") == {"test": 1}


def test_rare_labels_and_imbalance_are_warned_of() -> None:
    train = [*topics(120), *((f"rare {n} {n * 31}", "c") for n in range(9))]
    found = look(train=rows_of(train))
    assert counts(found, "rare_labels") == {"train": 9}
    assert counts(found, "imbalance") == {"train": 9}
    message = next(f.message for f in found.findings if f.code == "imbalance")
    assert "class_weights: balanced" in message
    found = look(train=rows_of([*train, ("rare 9", "c"), ("rare 10", "c"), ("rare 11", "c")]))
    assert counts(found, "rare_labels") == counts(found, "imbalance") == {}


def test_truncation_names_the_length_that_would_do() -> None:
    long = [(f"{n} " + "parcel " * 30, "ab"[n % 2]) for n in range(4)]
    train = rows_of([*topics(36), *long])
    found = look(cut_after=16, train=train)
    assert counts(found, "truncation") == {"train": 4}
    (finding,) = [f for f in found.findings if f.code == "truncation"]
    # The number, thirty words, [CLS] and [SEP].
    assert "10.0% of the texts" in finding.message
    assert "33 tokens cover 99%" in finding.message
    assert finding.rows == (37, 38, 39, 40)
    assert counts(look(cut_after=None, train=train), "truncation") == {}
    assert counts(look(cut_after=33, train=train), "truncation") == {}


def test_unknown_tokens_ask_about_the_language() -> None:
    train = [*topics(20), ("ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ", "a"), ("ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ", "b")]
    assert counts(look(train=rows_of(train)), "unknown_tokens") == {"train": 2}
    assert counts(look(train=rows_of(topics(20))), "unknown_tokens") == {}


@pytest.mark.parametrize(
    "text",
    [
        "<b>late</b>",
        "late &amp; lost",
        "it &lt;#&gt; me",
        "oil #39;s price",
        "say quot;no",
        "a\x07b",
    ],
)
def test_markup_is_found_in_texts(text: str) -> None:
    assert counts(look(train=rows_of([*topics(20), (text, "a")])), "markup") == {"train": 1}


@pytest.mark.parametrize("text", ["a < b and c > d", "AT&T; fine", "I <3 you", "tab\tand\nline"])
def test_text_without_markup_gives_no_warning(text: str) -> None:
    assert counts(look(train=rows_of([*topics(20), (text, "a")])), "markup") == {}


@pytest.mark.parametrize(
    ("text", "label", "there"),
    [
        ("my Card-Arrival is late", "card_arrival", True),
        ("my card_arrival is late", "card arrival", True),
        ("discarded arrivals", "card_arrival", False),
        ("what a b", "a", True),
        ("??", "?", False),
    ],
)
def test_a_label_named_in_its_text_is_warned_of(text: str, label: str, there: bool) -> None:
    train = [*((f"x{n}", "zz") for n in range(4)), (text, label), (f"y{text[:1]}", label)]
    assert counts(look(train=rows_of(train)), "label_in_text") == ({"train": 1} if there else {})


def test_rows_with_errors_get_no_warnings() -> None:
    train = [*topics(20), ("<b>x</b>", ""), ("", "a"), ("<i>y</i>", "a")]
    found = look(train=rows_of(train))
    codes = {(f.code, f.severity): (f.count, f.rows) for f in found.findings}
    assert codes[("missing_label", "error")] == (1, (21,))
    assert codes[("empty_text", "error")] == (1, (22,))
    assert codes[("markup", "warning")] == (1, (23,))


def test_pairs_are_compared_whole() -> None:
    train = [((text, f"second {text}"), label) for text, label in topics(10)]
    train += [(("same", "one"), "a"), (("same", "two"), "b"), (("same", "one"), "a")]
    found = look(train=rows_of(train))
    assert counts(found, "duplicate_rows") == {"train": 1}
    assert counts(found, "conflicting_labels") == {}


# The command


def messy(folder: Path) -> tuple[Path, Path]:
    """A file with something of nearly everything, and a test file that repeats some of it."""
    rows = [{"text": text, "label": label} for text, label in topics(130)]
    rows += [rows[0], {"text": rows[2]["text"], "label": "b"}, {"text": LONG, "label": "b"}]
    rows += [{"text": LONG + " ok", "label": "B"}, {"text": "<b>see</b> a &amp; b", "label": "a"}]
    rows += [{"text": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ ᠬᠡᠯᠡ " * 30, "label": "B"}, {"text": "w" * 9, "label": "c"}]
    rows += [{"text": "parcel " * 300, "label": "c"}]
    rows += [{"text": f"{text} " * 4, "label": "a"} for text in TEXTS["Russian"]]
    return (
        write_csv(folder / "train.csv", rows),
        write_csv(folder / "test.csv", [rows[5], {"text": LONG + " now", "label": "b"}]),
    )


def test_check_finds_everything_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = messy(tmp_path)
    words = ["check", "--train_file", str(train), "--test_file", str(test)]
    json_file, plot = tmp_path / "made" / "findings.json", tmp_path / "made" / "data.png"
    assert main([*words, "--json", str(json_file), "--plot", str(plot)]) == 0
    found = json.loads(json_file.read_text("utf-8"))["findings"]
    assert {finding["code"] for finding in found} == WARNINGS
    keys = {"code", "severity", "split", "count", "rows", "message", "place"}
    assert all(set(finding) == keys for finding in found)
    assert all(finding["place"].startswith(str(tmp_path)) for finding in found)
    assert all(finding["count"] >= len(finding["rows"]) > 0 for finding in found)
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "parcel" not in shown + json_file.read_text("utf-8")
    # Warnings alone end with 0; under --strict they are errors.
    assert main([*words, "--strict", "--json", str(json_file)]) == 1
    found = json.loads(json_file.read_text("utf-8"))["findings"]
    assert {finding["severity"] for finding in found} == {"error"}


def test_check_ends_with_1_on_an_error_unless_it_may_be_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text, "label": label} for text, label in topics(40)]
    path = write_csv(tmp_path / "train.csv", [*rows, {"text": " ", "label": "a"}])
    json_file = tmp_path / "findings.json"
    words = ["check", "--train_file", str(path), "--json", str(json_file)]
    assert main(words) == 1
    (found,) = [
        f for f in json.loads(json_file.read_text("utf-8"))["findings"] if f["severity"] == "error"
    ]
    assert (found["code"], found["count"], found["rows"]) == ("empty_text", 1, [41])
    capsys.readouterr()
    assert main([*words, "--drop_invalid"]) == 0
    assert "will be dropped: 1" in capsys.readouterr().out
    one = write_csv(tmp_path / "one.csv", [row | {"label": "a"} for row in rows])
    # Nothing that could be dropped makes a second label.
    assert main(["check", "--train_file", str(one), "--drop_invalid"]) == 1


def test_bytes_that_are_not_utf8_are_a_finding(tmp_path: Path) -> None:
    path, json_file = tmp_path / "train.csv", tmp_path / "findings.json"
    lines = [f"{text},{label}\n".encode() for text, label in topics(40)]
    path.write_bytes(b"text,label\n" + b"".join(lines) + b"caf\xe9,a\n")
    words = ["check", "--train_file", str(path), "--json", str(json_file)]
    assert main(words) == 1
    found = json.loads(json_file.read_text("utf-8"))["findings"]
    assert [(f["code"], f["severity"], f["rows"]) for f in found[:1]] == [
        ("undecodable", "error", [41])
    ]


def test_check_names_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "train.csv", [{"body": "a", "label": "b"}])
    assert main(["check", "--train_file", str(path)]) == 1
    assert "no column 'text', it has body, label" in capsys.readouterr().err
    assert main(["check"]) == 1
    assert "names no data" in capsys.readouterr().err


def test_training_checks_the_data_first_and_keeps_the_findings(tiny_run_folder: Path) -> None:
    found = json.loads((tiny_run_folder / "report" / "findings.json").read_text("utf-8"))
    assert {f["severity"] for f in found["findings"]} <= {"warning"}
    assert (tiny_run_folder / "report" / "data.png").read_bytes().startswith(b"\x89PNG")


def test_findings_are_written_whole(tmp_path: Path) -> None:
    found = look(train=rows_of([*topics(20), ("Überraschung <b>", "ä"), ("<b> ä", "ä")]))
    write_findings(found, tmp_path / "findings.json")
    assert "\\u" not in (tmp_path / "findings.json").read_text("utf-8")
    draw_data(found, tmp_path / "data.png", 256)
    assert {path.name for path in tmp_path.iterdir()} == {"findings.json", "data.png"}


@pytest.mark.slow
def test_the_benchmark_writes_its_measurements(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/check_data.py", "--rows", "3000", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = json.loads(out.read_text("utf-8"))
    assert results["rows"] == 3000
    assert results["cpu_seconds"] > results["split_cpu_seconds"] > 0
    assert set(results["findings"]) == {"duplicate_rows", "conflicting_labels", "near_duplicates"}


# Real sets, whose README lists what is wrong with them


def real(name: str, column: str = "label") -> dict[str, Rows]:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    splits = {}
    for split in ("train", "validation", "test"):
        if (folder / f"{split}.csv").is_file():
            with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as handle:
                rows = list(csv.DictReader(handle))
            several = column == "labels"
            labels = [tuple(filter(None, row[column].split("|"))) for row in rows]
            splits[split] = Rows(split, [row["text"] for row in rows], labels, several)
    return splits


@pytest.mark.parametrize(
    ("name", "column", "code", "expected"),
    [
        ("sms_spam", "label", "split_overlap", {"test": 120}),
        ("sms_spam", "label", "duplicate_rows", {"train": 268, "test": 31}),
        ("unfair_tos", "labels", "split_overlap", {"test": 226}),
        ("unfair_tos", "labels", "duplicate_rows", {"train": 1133, "test": 369}),
        ("cuad_clauses", "label", "conflicting_labels", {"train": 997, "test": 273}),
    ],
)
def test_known_faults_of_real_data_sets_are_found(
    name: str, column: str, code: str, expected: dict[str, int]
) -> None:
    assert counts(look(**real(name, column)), code) == expected
