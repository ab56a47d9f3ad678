"""Which captured texts are picked for labeling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from monitoring.collect import Collection, Pick, collect
from monitoring.output import print_collection
from service.capture.records import CapturedAnswer
from service.package.manifest import Manifest, Text
from tests.monitoring.made import answers, manifest
from training.common.errors import DataError
from training.data.leakage import KEY, fingerprint


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts that do not resemble each other."""
    chance = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return [" ".join("".join(chance.choice(letters, 7)) for _ in range(8)) for _ in range(count)]


def with_texts(lines: Sequence[CapturedAnswer], texts: Sequence[str]) -> list[CapturedAnswer]:
    return [
        line.model_copy(update={"text": text, "margin": place / len(texts)})
        for place, (line, text) in enumerate(zip(lines, texts, strict=True))
    ]


def embed(texts: Sequence[Text]) -> Any:
    """Vectors by the first letter: texts that begin alike are one cluster."""
    vectors = np.zeros((len(texts), 26), dtype=np.float32)
    for row, text in enumerate(texts):
        vectors[row, ord(str(text)[0]) - ord("a")] = 1
    return vectors


def package(known: Sequence[str] = ()) -> Manifest:
    return manifest(provenance={KEY: fingerprint(known)} if known else {})


def picked(found: Collection, reason: str | None = None) -> list[Pick]:
    return [pick for pick in found.picks if reason in (None, pick.reason)]


def test_a_stated_share_is_drawn_uniformly_and_the_rest_are_the_least_certain() -> None:
    made = with_texts(answers(500), texts_of(500))
    found = collect(package(), made, 50, embed=embed, uniform_share=0.4)
    assert len(found.picks) == 50
    assert len(picked(found, "uniform")) == 20
    uniform = np.mean([pick.answer.margin for pick in picked(found, "uniform")])
    uncertain = [pick.answer.margin for pick in picked(found, "uncertain")]
    assert 0.3 < uniform < 0.7
    # The candidates are ten times the rows that are still wanted.
    assert max(uncertain) < 0.65
    texts = [pick.answer.text for pick in found.picks]
    assert len(set(texts)) == 50


def test_what_training_had_and_what_is_there_twice_is_not_picked() -> None:
    texts = texts_of(40)
    made = with_texts(answers(40), texts)
    nearly = made[5].model_copy(update={"text": f"{texts[5]}!", "id": "again"})
    found = collect(
        package(texts[:3]), [*made, nearly], 60, embed=embed, labeled=[texts[10].upper()]
    )
    picks = {pick.answer.text for pick in found.picks}
    assert picks.isdisjoint([*texts[:3], texts[10], f"{texts[5]}!"])
    assert len(picks) == 36
    assert (found.known, found.repeated) == (3, 2)


def test_the_share_of_the_training_that_a_package_knows_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = texts_of(40)
    made = with_texts(answers(40), texts)
    sampled = manifest(provenance={KEY: fingerprint(texts[:20], most=5)})
    found = collect(sampled, made, 60, embed=embed)
    assert (found.known, found.known_share) == (5, 0.25)
    print_collection(found)
    assert "knows only 25% of its training texts: name the training file" in capsys.readouterr().out
    print_collection(collect(package(texts[:20]), made, 60, embed=embed))
    assert "knows only" not in capsys.readouterr().out


def test_disagreement_and_abstention_come_first() -> None:
    made = with_texts(answers(100), texts_of(100))
    made[90] = made[90].model_copy(update={"abstained": True})
    other = made[95].model_copy(update={"version": "f" * 12, "label": "something else"})
    found = collect(package(), [*made, other], 2, embed=embed, uniform_share=0)
    assert [(pick.reason, pick.answer.text) for pick in found.picks] == [
        ("disagreement", made[95].text),
        ("abstained", made[90].text),
    ]


def test_the_rows_that_teach_are_of_different_clusters() -> None:
    alike = [f"a{text}" for text in texts_of(30)]
    others = ["b one text", "c other words", "d quite something"]
    made = with_texts(answers(33), [*alike, *others])
    found = collect(package(), made, 4, embed=embed, uniform_share=0)
    assert sorted(str(pick.answer.text)[0] for pick in found.picks) == ["a", "b", "c", "d"]


def test_answers_that_were_kept_more_often_are_drawn_less_often() -> None:
    often = with_texts(answers(300, rate=1.0), texts_of(300))
    seldom = with_texts(answers(30, seed=1, rate=0.01), texts_of(30, seed=1))
    found = collect(package(), [*often, *seldom], 20, embed=embed, uniform_share=1)
    kept = [pick.answer.rate for pick in found.picks]
    # An even draw would take two of them.
    assert kept.count(0.01) >= 10


def test_without_texts_it_says_what_it_needs() -> None:
    with pytest.raises(DataError, match=r"none of 5 captured answers holds its text: serve with"):
        collect(package(), answers(5), 3, embed=embed)
    texts = texts_of(3)
    with pytest.raises(DataError, match="all 3 captured texts are known to the training"):
        collect(package(texts), with_texts(answers(3), texts), 3, embed=embed)
