"""Captured files are read line by line, and what is broken loses itself only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring.captured import Reading, find_captured, parse_moment
from service.capture.records import Feedback
from tests.monitoring.made import START, VERSION, answers, write_part
from training.common.errors import DataError


def feedback(name: str, *labels: str, after: float = 0, version: str = VERSION) -> Feedback:
    moment = START + timedelta(seconds=after)
    return Feedback(id=name, time=moment, version=version, labels=labels)


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    made = answers(7)
    write_part(tmp_path, made[:4], "2026-11-01/a.jsonl")
    write_part(tmp_path, made[4:], "2026-11-02/a.jsonl")
    assert list(find_captured([str(tmp_path)]).answers()) == made
    one = find_captured([str(tmp_path / "2026-11-02" / "a.jsonl")])
    assert list(one.answers()) == made[4:]


def test_a_part_that_was_cut_off_loses_its_last_line_only(tmp_path: Path) -> None:
    made = answers(5)
    path = write_part(tmp_path, made)
    path.write_bytes(path.read_bytes()[:-20])
    reading = Reading()
    assert list(find_captured([str(tmp_path)]).answers(reading)) == made[:4]
    assert reading.broken_lines == 1


def test_lines_of_a_time_span_and_a_version_are_chosen(tmp_path: Path) -> None:
    made = answers(10)
    other = [line.model_copy(update={"version": "f" * 12}) for line in answers(3, seed=1)]
    write_part(tmp_path, [*made, *other])
    since, until = START + timedelta(seconds=2), START + timedelta(seconds=5)
    reading = Reading()
    chosen = find_captured([str(tmp_path)], since, until, VERSION)
    assert list(chosen.answers(reading)) == made[2:5]
    assert reading.other_versions == {"f" * 12: 1}


def test_parts_from_before_the_time_span_are_not_read(tmp_path: Path) -> None:
    made = answers(3)
    day_before = START - timedelta(days=1)
    early = [line.model_copy(update={"time": day_before}) for line in answers(2, seed=1)]
    write_part(tmp_path, made, "2026-11-01/a.jsonl")
    late = [feedback(made[0].id, "refund", after=3 * 86400)]
    write_part(tmp_path, late, "2026-11-04/a.jsonl")
    # Answers that the folder's name denies: whoever reads the part, finds them.
    write_part(tmp_path, made, "2026-10-30/a.jsonl")
    write_part(tmp_path, [*early, "{broken"], "2026-10-31/a.jsonl")
    chosen = find_captured([str(tmp_path)], since=START)
    reading = Reading()
    assert list(chosen.answers(reading)) == made
    # The day before is read, as clocks differ.
    assert reading.broken_lines == 1
    assert list(chosen.feedback()) == [(made[0].id, 0)]
    assert len(list(find_captured([str(tmp_path)]).answers())) == 8


def test_of_feedback_to_one_answer_the_last_counts(tmp_path: Path) -> None:
    lines = [
        feedback("a", "refund", after=5),
        feedback("a", "billing", after=9),
        feedback("a", "delivery", after=7),
        feedback("b", "refund"),
    ]
    write_part(tmp_path, lines)
    found = find_captured([str(tmp_path)], until=START).feedback()
    assert {key: line.labels for key, line in found.items()} == {
        ("a", 0): ("billing",),
        ("b", 0): ("refund",),
    }


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        find_captured([str(tmp_path / "none")])
    with pytest.raises(DataError, match="holds no captured part"):
        find_captured([str(tmp_path)])
    with pytest.raises(DataError, match="'yesterday' is no time: write it as 2026-11-28"):
        parse_moment("yesterday")
    assert parse_moment("2026-11-01") == START
    for text, ago in (("12h", timedelta(hours=12)), ("7d", timedelta(days=7))):
        assert abs(datetime.now(UTC) - ago - parse_moment(text)) < timedelta(minutes=1)
    for text in ("7", "d", "-1d", "7w"):
        with pytest.raises(DataError, match="is no time"):
            parse_moment(text)
