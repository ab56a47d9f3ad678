"""Behavior tests: each kind passes and fails as it should, and a bad table is one sentence."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.inference.classifier import Classifier, Prediction
from service.package.manifest import InferenceConfig, Text
from tests.conftest import EXAMPLE
from tests.test_project import words
from training.common.errors import DataError
from training.evaluation.behavior import CHANGES, run_behavior, with_typos
from training.evaluation.behavior_file import BehaviorTests, read_behavior
from training.evaluation.output import print_behavior
from whetstone.main import main

LABELS = ("fault", "praise")


class Stub:
    """A classifier whose probability of praise is a function of the text."""

    def __init__(self, praise: Callable[[Text], float], **config: Any) -> None:
        fields = InferenceConfig(labels=LABELS, max_length=8, **config).model_dump()
        self.manifest = SimpleNamespace(
            **fields, name="stub", has_pairs=len(fields["text_columns"]) == 2
        )
        self._praise = praise

    def classify(self, texts: list[Text]) -> list[Prediction]:
        """One label a text, or those from 0.5 on."""
        answers = []
        for text in texts:
            praise = self._praise(text)
            probs = np.asarray([1 - praise, praise], dtype=np.float32)
            several = self.manifest.task == "multi_label"
            labels = tuple(n for n, p in zip(LABELS, probs, strict=True) if p >= 0.5)
            best = LABELS[int(probs.argmax())]
            answers.append(
                Prediction(best, 0.5, probs, labels if several else None, None, 3, 1, False)
            )
        return answers


def run(tmp_path: Path, content: str, praise: Callable[[Any], float], **config: Any) -> Any:
    path = tmp_path / "behaviour.yaml"
    path.write_text(content, encoding="utf-8")
    return run_behavior(path, Stub(praise, **config))  # type: ignore[arg-type]


def by_word(text: Any) -> float:
    """Praise where the text says so."""
    return 0.9 if "great" in text else 0.2


def test_must_have_cases_pass_by_their_label(tmp_path: Path) -> None:
    content = """
must_have:
  - name: plain
    cases:
      - {text: great, label: praise}
      - {text: broken, label: fault}
      - {text: fine, label: praise}
"""
    found = run(tmp_path, content, by_word)
    assert (found["passed"], found["failed"]) == (2, 1)
    assert found["failures"] == [
        {
            "kind": "must_have",
            "name": "plain",
            "text": "fine",
            "expected": "praise",
            "got": "fault",
        }
    ]


def test_invariance_compares_each_variant_with_its_text(tmp_path: Path) -> None:
    content = """
invariance:
  - {name: case, change: uppercase, texts: [great, broken]}
  - name: names
    replace: {from: [Anna], to: [Kofi, great]}
    texts: [Anna called, nobody called]
  - name: same
    groups: [[great, great thing, good]]
"""
    found = run(tmp_path, content, by_word)
    counts = {test["name"]: (test["passed"], test["failed"]) for test in found["tests"]}
    assert counts == {"case": (1, 1), "names": (1, 1), "same": (1, 1)}
    assert found["kinds"] == {"invariance": {"passed": 3, "failed": 3}}
    assert [failure["text"] for failure in found["failures"]] == ["GREAT", "great called", "good"]
    assert found["failures"][0]["expected"] == "praise, as for 'great'"
    assert found["failures"][0]["got"] == "fault"


def test_names_are_replaced_as_words(tmp_path: Path) -> None:
    content = r"""
invariance:
  - name: names
    replace: {from: [Ann, Joe], to: ['great\1']}
    texts: [MaryAnn and Anna asked Ann, Joes call]
"""
    found = run(tmp_path, content, by_word)
    assert [failure["text"] for failure in found["failures"]] == [r"MaryAnn and Anna asked great\1"]
    assert (found["passed"], found["failed"]) == (0, 1)


def test_direction_needs_a_move_of_at_least_its_step(tmp_path: Path) -> None:
    content = """
direction:
  - name: much
    label: praise
    by: 0.5
    cases:
      - {from: broken, to: great, change: up}
      - {from: great, to: broken, change: down}
      - {from: great, to: broken, change: up}
  - name: just
    label: praise
    by: 0.7
    cases: [{from: broken, to: great, change: up}, {from: great, to: broken, change: down}]
  - name: more
    label: fault
    by: 0.75
    cases: [{from: great, to: broken, change: up}]
  - name: any
    label: fault
    cases: [{from: great, to: broken, change: up}, {from: broken, to: bad, change: up}]
"""
    found = run(tmp_path, content, by_word)
    counts = {test["name"]: (test["passed"], test["failed"]) for test in found["tests"]}
    assert counts == {"much": (2, 1), "just": (2, 0), "more": (0, 1), "any": (1, 1)}
    assert [failure["expected"] for failure in found["failures"]] == [
        "praise up by at least 0.5 from 0.900, as of 'great'",
        "fault up by at least 0.75 from 0.100, as of 'great'",
        "fault up from 0.800, as of 'broken'",
    ]


def test_must_have_takes_several_labels_and_pairs(tmp_path: Path) -> None:
    both = """
must_have:
  - name: sets
    cases:
      - {text: even, labels: [praise, fault]}
      - {text: even, labels: [praise]}
"""
    several = {"task": "multi_label", "thresholds": dict.fromkeys(LABELS, 0.5)}
    found = run(tmp_path, both, lambda _: 0.5, **several)
    assert (found["passed"], found["failed"]) == (1, 1)
    none = "must_have: [{name: none, cases: [{text: even, labels: []}]}]"
    assert run(tmp_path, none, lambda _: 0.5, **several)["failures"][0]["expected"] == "no label"
    pairs = "must_have: [{name: pairs, cases: [{text: a, text_pair: great, label: praise}]}]"
    found = run(tmp_path, pairs, lambda text: by_word(text[1]), text_columns=("text", "text_pair"))
    assert found["passed"] == 1


def test_changes_change_what_they_say_and_always_alike() -> None:
    text = "My account has been blocked."
    assert {name: change(text) for name, change in CHANGES.items() if name != "typos"} == {
        "lowercase": "my account has been blocked.",
        "uppercase": "MY ACCOUNT HAS BEEN BLOCKED.",
        "punctuation": "My account has been blocked",
        "whitespace": "  My  account  has  been  blocked.\n",
    }
    changed = with_typos(text)
    assert changed == with_typos(text) != text
    assert sorted(changed) == sorted(text)
    words = zip(text.split(), changed.split(), strict=True)
    assert sum(one != other for one, other in words) == 2
    assert with_typos("a b aaaaaa") == "a b aaaaaa"
    # Numbers and marks are no letters, and the outer letters stay.
    assert with_typos("order 1234567890, (gloves)!") == "oredr 1234567890, (golves)!"


@pytest.mark.parametrize(
    "change", ["change: lowercase", "change: typos", "replace: {from: [Ana], to: [Kofi]}"]
)
def test_a_change_that_changes_nothing_is_no_passed_test(tmp_path: Path, change: str) -> None:
    content = f"invariance: [{{name: x, {change}, texts: [it is ok, so]}}]"
    with pytest.raises(DataError, match="'x': the change leaves each of its texts as it is"):
        run(tmp_path, content, by_word)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "holds no tests"),
        ("{}", "holds no tests"),
        ("a: [", "is not YAML at line 1"),
        ("a: 2026-99-99", "is not YAML: month must be in 1..12"),
        ("[" * 3000, "is not YAML"),
        ("musthave: []", "unknown key 'musthave': did you mean 'must_have'"),
        ("must_have: [{name: x, cases: [{text: a}]}]", "must_have.1.cases.1: give either label"),
        (
            "must_have: [{name: x, cases: [{text: a, lable: b}]}]",
            "unknown key 'lable': did you mean 'label'",
        ),
        (
            "must_have: [{name: x, cases: [{text: a, label: prais}]}]",
            "'x', case 1: stub has no label 'prais': did you mean 'praise'",
        ),
        (
            "must_have: [{name: x, cases: [{text: a, labels: [praise]}]}]",
            "answers with one label",
        ),
        (
            "must_have: [{name: x, cases: [{text: a, text_pair: b, label: praise}]}]",
            "single texts: leave out text_pair",
        ),
        ("invariance: [{name: x, texts: [a]}]", "give texts with either change or replace"),
        ("invariance: [{name: x, groups: [[a]]}]", "a group has two texts"),
        (
            "invariance: [{name: x, change: shout, texts: [a]}]",
            "invariance.1.change: 'shout' is no choice: give 'typos', 'lowercase'",
        ),
        (
            "invariance: [{name: x, replace: {old: [a], new: [b]}, texts: [a]}]",
            "invariance.1.replace: unknown key 'old': did you mean 'to'",
        ),
        (
            "invariance: [{name: x, replace: {from: [''], to: [b]}, texts: [a]}]",
            "invariance.1.replace.from.1: it is empty: write some text",
        ),
        (
            "direction: [{name: x, label: praise, cases: [{from: a, to: b, chnge: up}]}]",
            "direction.1.cases.1: unknown key 'chnge': did you mean 'change'",
        ),
        (
            "direction: [{name: x, label: praise, by: 2, cases: [{from: a, to: b, change: up}]}]",
            "direction.1.by: 2 is no step: give a number from 0 to below 1",
        ),
        ("must_have: [{cases: [{text: a, label: praise}]}]", "1.name: it is missing: add it"),
        ("must_have: [{name: x, cases: []}]", "1.cases: it is an empty list"),
        ("must_have: {name: x}", "must_have: it is no list"),
        ("must_have: [x]", "must_have.1: it is no mapping"),
        ("must_have: [{name: x, 3: 4, cases: []}]", "must_have.1: unknown key '3'"),
        (
            "must_have: [{name: x, cases: [{text: a, label: yes}]}]",
            "must_have.1.cases.1.label: it is no text: put text in quotes",
        ),
        ("direction: [{name: x, label: y, cases: [{from: a, to: b, change: up}]}]", "no label 'y'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        run(tmp_path, content, by_word)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "behaviour.yaml" in str(raised.value)


def test_pairs_have_must_have_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only must_have"):
        run(
            tmp_path,
            "invariance: [{name: x, change: typos, texts: [a]}]",
            by_word,
            text_columns=("text", "text_pair"),
        )


def test_the_screen_shows_counts_and_failures_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "must_have: [{name: '[b]x', cases: [{text: '[/b] :smile:', label: praise}]}]"
    print_behavior(run(tmp_path, content, by_word))
    shown = capsys.readouterr().out
    assert "[b]x: '[/b] :smile:' expected praise, got fault" in shown
    assert "0 passed, 1 failed" in shown


def _letters(text: str) -> str:
    """A text without what a copy of it may differ in."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _written(tests: BehaviorTests) -> list[str]:
    """Every text of a file of tests."""
    return [
        *(case.text for test in tests.must_have for case in test.cases),
        *(text for test in tests.invariance for text in test.texts or []),
        *(text for test in tests.invariance for group in test.groups or [] for text in group),
        *(
            text
            for test in tests.direction
            for case in test.cases
            for text in (case.before, case.after)
        ),
    ]


def test_the_example_fits_the_examples_labels_and_copies_no_message() -> None:
    rows = []
    for name in ("train.csv", "test.csv"):
        with (EXAMPLE / name).open(newline="", encoding="utf-8") as handle:
            rows += list(csv.DictReader(handle))
    labels = tuple(sorted({row["label"] for row in rows}))
    messages = {row["text"] for row in rows}
    manifest = SimpleNamespace(
        labels=labels, has_pairs=False, task="single_label", name="support_tickets"
    )
    tests = read_behavior(EXAMPLE / "behaviour.yaml", manifest)  # type: ignore[arg-type]
    named = {case.label for test in tests.must_have for case in test.cases}
    assert named == set(labels)
    written = {_letters(text) for text in _written(tests)}
    assert not written & {_letters(text) for text in messages}
    bags = [words(message) for message in messages]
    for text in _written(tests):
        bag = words(text)
        assert max(len(bag & other) / len(bag | other) for other in bags) <= 0.6, text
    assert tests.invariance
    assert tests.direction


def test_evaluate_runs_behavior_tests_and_the_report_shows_them(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label,channel\nwhere is it,delivery,mail\nlovely,praise,\n", "utf-8")
    behaviour = tmp_path / "behaviour.yaml"
    behaviour.write_text(
        "must_have: [{name: plain, cases: [{text: where, label: delivery}]}]", "utf-8"
    )
    out = tmp_path / "out"
    words = ["evaluate", str(tiny_package), str(rows), "--behaviour", str(behaviour)]
    assert main([*words, "--slices", "channel", "--output_dir", str(out)]) == 0
    asked = run_behavior(behaviour, Classifier.load(tiny_package))
    shown = capsys.readouterr().out
    assert f"{asked['passed']} passed, {asked['failed']} failed" in shown
    page = (out / "report" / "index.html").read_text("utf-8")
    assert "Behavior tests" in page
    assert "By channel" in page
