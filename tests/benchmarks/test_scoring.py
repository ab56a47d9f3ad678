"""The benchmark of scoring engines: its rows, and what it says about a result."""

from __future__ import annotations

from pathlib import Path

from pyarrow import parquet

from benchmarks import scoring


def test_rows_are_the_same_at_each_call_and_as_long_as_they_should_be(tmp_path: Path) -> None:
    scoring.write_rows(tmp_path / "rows", 2001)
    rows = parquet.read_table(tmp_path / "rows").sort_by("id").to_pydict()
    assert rows["id"] == list(range(2001))
    assert rows["text"] == list(scoring.texts(2001))
    lengths = sorted(len(text.split()) for text in rows["text"])
    assert scoring.DECILES[0] <= lengths[0] <= lengths[-1] <= scoring.DECILES[-1]
    assert abs(lengths[1000] - scoring.DECILES[5]) <= 1


def test_the_table_has_ratios_shares_and_the_line_of_sizes() -> None:
    costs = (100.0, 105.0, 110.0, 112.0, 120.0, 125.0)
    ways = {
        way: scoring.Run(cpu, cpu / (2 if "2" in way else 1), 5.0, 0.9 * cpu)._asdict()
        for way, cpu in zip(scoring.WAYS, costs, strict=True)
    }
    said = scoring.markdown({"rows": 20_000, "ways": ways})
    assert "| local | 190 | 1.05 | 105 | 5 s | 10% |" in said
    # One worker takes 110 s, two take 56 s.
    assert "Ray, 2 workers 1.96 times as fast as one (met)" in said
    ways["Spark, 2 executors"]["seconds"] = ways["Spark, 1 executor"]["seconds"]
    assert "Spark, 2 executors 1.00 times as fast as one (missed)" in scoring.gains(ways)
    assert (
        "A billion such rows on 100 such cores: 1,556 core-hours (16 hours) with Ray and " in said
    )
    assert "1,736 core-hours (17 hours) with Spark." in said
