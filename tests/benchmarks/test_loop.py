"""`bench-loop`: where a curve reaches a figure, what is labeled first, the table and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.loop import Row, first_rows, read, write
from benchmarks.loop_report import ARMS, draw, rows_to_reach, summary


def entries(random: list[float], collect: list[float], name: str = "a_set") -> dict[str, Any]:
    fixed = {"set": name, "seed": 0, "test_rows": 500}
    return {
        f"{name} {arm} {number}": {
            "arm": arm,
            "round": number,
            "rows": 100 + 50 * number,
            "macro_f1": score,
            **fixed,
        }
        for arm, scores in zip(ARMS, (random, collect), strict=True)
        for number, score in enumerate(scores)
    }


def test_rows_are_read_from_the_line_between_two_rounds() -> None:
    curve = [{"rows": 100, "macro_f1": 0.5}, {"rows": 200, "macro_f1": 0.7}]
    assert rows_to_reach(curve, 0.6) == 150
    assert rows_to_reach(curve, 0.7) == 200
    assert rows_to_reach(curve, 0.8) is None


def test_the_sentence_says_whether_the_aim_is_met() -> None:
    met = summary(entries([0.5, 0.55, 0.58, 0.6], [0.5, 0.6, 0.7, 0.8]))
    assert "250 random rows reach a macro-F1 of 0.600" in met
    assert "it takes 150 rows: 60% of them, and 33% of the rows" in met and "met." in met
    missed = summary(entries([0.5, 0.55, 0.58, 0.6], [0.5, 0.55, 0.6, 0.8]))
    assert "it takes 200 rows: 80% of them" in missed and "missed." in missed
    assert "does not reach it" in summary(entries([0.5, 0.6], [0.5, 0.55]))


def test_an_interrupted_run_shows_the_rounds_that_both_arms_have(tmp_path: Path) -> None:
    found = entries([0.5, 0.6, 0.7], [0.5, 0.65])
    assert "| `a_set` | 1 | 150 | 0.600 | 0.650 |" in summary(found)
    assert "| 2 |" not in summary(found)
    draw(found, tmp_path / "loop.png")
    assert (tmp_path / "loop.png").stat().st_size > 5_000


def test_the_first_rows_have_some_of_every_label(tmp_path: Path) -> None:
    pool = [Row(f"often {number}", "often") for number in range(100)]
    pool += [Row(f"rare {number}", "rare|often") for number in range(6)]
    chosen = first_rows(pool, 20)
    assert len(chosen) == len(set(chosen)) == 20
    assert sum("rare" in row.label for row in chosen) == 4
    path = write(tmp_path / "train.csv", [*pool, Row("rare 1", "often"), Row("", "often")])
    assert read(path) == pool
