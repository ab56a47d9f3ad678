"""What the serving benchmarks make of their measurements; the server here only says OK or 429."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_serve import FULL, QUICK, TEXTS, Cell, read_counters
from benchmarks.bench_soak import BINS, growth, series
from benchmarks.load import Arrival, Load, drive, drive_open, percentile, post
from benchmarks.serve_attacks import bystander_summary, text_of
from benchmarks.serve_report import (
    cpu_ratio,
    draw,
    markdown,
    overload_summary,
    places_first,
    target,
    targets,
)
from benchmarks.serve_servers import REQUIREMENTS, last_line

SECONDS = 30


def cell(cpu: float, rate: float, p99: float, **more: Any) -> dict[str, Any]:
    """One server in one workload, three rounds of which the middle one is `cpu`."""
    return {
        "cpu_ms": cpu,
        "cpu_ms_rounds": [cpu * 0.9, cpu, cpu * 1.2],
        "texts_per_second": rate,
        "p50_ms": p99 / 2,
        "p99_ms": p99,
        "answers": 100,
        "errors": 0,
        "threads_cpu_ms": {"computing": cpu * 0.75, "event loop": cpu * 0.25},
        **more,
    }


def found() -> dict[str, Any]:
    """A result as it is written, of two peers of which one did not start."""
    short = {"p50_ms": 20.0, "p99_ms": 90.0}
    ours = {"short": cell(3, 500, 50), "mixed": cell(5, 300, 80, short_texts=short)}
    theirs = {"short": cell(9, 200, 150), "mixed": cell(20, 310, 70)}
    overload = overload_summary(
        [*[Arrival(0.1, 0, 0.5, 200, 0)] * 95, *[Arrival(0.2, 0, 0.01, 429, 0)] * 200], 0, 1, 1, 100
    )
    memory = {"before": 300.0, "first_half": 300.0, "second_half": 303.0}
    result: dict[str, Any] = {
        "rounds": 3,
        "machine": {"cores": 2, "processor": "a processor"},
        "model": {"name": "tickets", "precision": "int8"},
        "servers": {
            "whetstone": {"title": "Whetstone", "start": {"cpu_seconds": 3.5}},
            "bentoml": {"title": "Tutorial", "agreement": {"share": 0.99, "texts": 100}},
            "infinity": {"title": "infinity", "reason": "could not be installed: no wheel"},
        },
        "workloads": {kind: {"mean_tokens": 14.0} for kind in ("short", "mixed")},
        "raw": {
            kind: {
                "1": cell(4, 250, 5),
                "32": cell(2.5, 400, 90),
                "longest_ms": 25.0,
                "tokenize_cpu_ms": 0.1,
            }
            for kind in ("short", "mixed")
        },
        "results": {
            kind: {"16": {"whetstone": ours[kind], "bentoml": theirs[kind]}}
            for kind in ("short", "mixed")
        },
        "padding": {"mixed": None},
        "overload": {
            "short": {
                **overload,
                "memory_mb": memory,
                "cores": {"computing": 1.3, "event loop": 0.4, "load generator": 0.25},
            }
        },
        "overload_connecting": overload,
    }
    result["targets"] = targets(result)
    return result


def by_name(result: dict[str, Any], beginning: str) -> dict[str, Any]:
    """The one target whose name begins so."""
    (one,) = [one for one in result["targets"] if one["target"].startswith(beginning)]
    return one


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 3), (0.99, 4), (1, 4)])
def test_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_load_counts_successes_only() -> None:
    load = Load(seconds=2, latencies=[0.1, 0.2], places=[0, 2])
    load.statuses.update([200, 200, 503])
    cell = Cell()
    cell.note(load, used=0.01, generator=0.001, threads={"computing": 0.008, "event loop": 0.002})
    summary = cell.summary()
    assert (summary["cpu_ms"], summary["texts_per_second"]) == (5, 1)
    assert summary["threads_cpu_ms"] == {"computing": 4, "event loop": 1}
    assert (summary["answers"], summary["errors"]) == (2, 1)


def test_a_server_that_answers_nothing_has_no_figures() -> None:
    load = Load(seconds=1)
    load.statuses.update([500])
    cell = Cell()
    cell.note(load, used=0.01, generator=0.001)
    assert (cell.summary()["cpu_ms"], cell.summary()["errors"]) == (None, 1)


def test_a_bound_itself_is_met() -> None:
    assert target("", 0.9, 0.9, most=False)["met"] is True
    assert target("", 0.9, 0.9, most=True)["met"] is True
    assert target("", 0.9, 0.91, most=True)["met"] is False
    missing = target("", 0.9, None, most=True, why_not="not there")
    assert (missing["met"], missing["reason"]) == (None, "not there")


def test_ratios_are_of_the_same_round() -> None:
    # Each round twice as dear, though the machine slowed down threefold meanwhile.
    above, below = {"cpu_ms_rounds": [2, 4, 6]}, {"cpu_ms_rounds": [1, 2, 3]}
    assert cpu_ratio(above, below) == 2


def test_cpu_targets() -> None:
    result = found()
    assert by_name(result, "CPU per short text, times the raw loop's at 1 ")["measured"] == 0.75
    at_32 = by_name(result, "CPU per short text, times the raw loop's at 32")
    assert (at_32["measured"], at_32["met"]) == (1.2, True)
    tutorial = by_name(result, "CPU per short text, Tutorial")
    assert (tutorial["measured"], tutorial["met"]) == (3, True)


def test_a_peer_that_is_not_there_is_not_beaten() -> None:
    infinity = by_name(found(), "CPU per short text, infinity")
    assert infinity["met"] is None
    assert infinity["reason"] == "could not be installed: no wheel"


def test_first_everywhere_is_counted() -> None:
    result = found()
    assert places_first(result, "texts_per_second", most=True) == (1, 2)
    assert places_first(result, "p99_ms", most=False) == (1, 2)
    assert by_name(result, "first in throughput")["met"] is False


def test_short_texts_among_long_ones() -> None:
    # 3 x 20 + 25 = 85 < 90.
    tail = by_name(found(), "mixed lengths, p99 of short texts")
    assert (tail["bound"], tail["met"]) == ("at most 85", False)


def test_padding_that_is_not_counted_is_not_measured() -> None:
    result = found()
    assert by_name(result, "mixed lengths, share of tokens")["met"] is None
    result["padding"]["mixed"] = 0.08
    result["targets"] = targets(result)
    assert by_name(result, "mixed lengths, share of tokens")["met"] is True


def test_overload() -> None:
    arrivals = [
        *[Arrival(0.0, 0.001, 0.5, 200, 0)] * 90,
        # Late, refused by the deadline, broken: accepted, and not in time.
        Arrival(0.0, 0.0, 1.5, 200, 0),
        Arrival(0.0, 0.0, 1.0, 504, 0),
        Arrival(0.0, 0.0, 0.2, 0, 0),
        *[Arrival(0.0, 0.0, 0.004, 429, 0)] * 50,
    ]
    summary = overload_summary(arrivals, unsent=2, seconds=2, deadline=1, peak=50)
    assert (summary["offered"], summary["accepted"], summary["in_time"]) == (145, 93, 90)
    assert summary["goodput_through_peak"] == 0.9
    assert summary["in_time_share_of_accepted"] == pytest.approx(90 / 93)
    assert summary["refused_p50_ms"] == 4
    assert summary["statuses"] == {"0": 1, "200": 91, "429": 50, "504": 1}


def test_bystanders_of_a_crowd_are_a_row_each() -> None:
    arrivals = [
        *[Arrival(0.0, 0.0, 0.2, 200, 0)] * 3,
        # Answered, but late; refused.
        Arrival(0.0, 0.0, 1.4, 200, 0),
        Arrival(0.0, 0.0, 0.01, 429, 0),
    ]
    summary = bystander_summary(arrivals, deadline=1)
    assert (summary["goodput"], summary["p50_ms"], summary["slowest_ms"]) == (0.6, 200, 1400)
    assert summary["statuses"] == {"200": 4, "429": 1}
    assert bystander_summary([], deadline=1)["goodput"] is None
    crowd = {"texts": 80, "slowest_wave_ms": 9000.0}
    result = found() | {"attacks": {"long texts": {"crowd": crowd, "bystanders": {"2": summary}}}}
    row = "| 80 at once, long texts | 2 | 0.60 | 200 | 200 | 1,400 | 9,000 |"
    assert row in markdown(result).splitlines()
    assert "at once" not in markdown(found())


@pytest.mark.parametrize("characters", [1, 7, 100, 5000])
def test_a_text_of_a_crowd_has_the_length_that_it_should(characters: int) -> None:
    assert len(text_of(["parcel", "a"], characters)) == characters


def test_an_overload_that_refused_nobody() -> None:
    summary = overload_summary([Arrival(0, 0, 0.1, 200, 0)], 0, seconds=1, deadline=1, peak=1)
    assert summary["refused_p50_ms"] is None


def test_every_server_is_a_line_of_the_table() -> None:
    page = markdown(found())
    lines = page.splitlines()
    assert "| Whetstone | 3.00 | 5.00 | 500 | 25.0 | 50.0 |" in lines
    assert "| infinity | not measured: could not be installed: no wheel |  |  |  |  |" in lines
    assert any(line.endswith("| **missed** |") for line in lines)
    connecting = "100 % of the accepted requests were in time, and a refusal took 10 ms"
    assert any(connecting in line for line in lines)
    # Every table's lines have as many cells as its head.
    widths = [line.count("|") for line in lines]
    for before, after in pairwise(widths):
        assert not before or not after or before == after


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(found(), tmp_path / "serve.png")
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_counters_are_summed_over_labels() -> None:
    text = (
        "# HELP tokens_total of batches\n# TYPE tokens_total counter\n"
        'tokens_total{worker="1"} 10.0\ntokens_total{worker="2"} 5.0\n'
        "padding_total 3.0\ntokens_total_created 1e9\n"
    )
    assert read_counters(text, ("tokens_total", "padding_total")) == [15, 3]
    assert read_counters(text, ("tokens_total", "other_total")) is None


def test_growth_leaves_the_warm_up_out() -> None:
    # 100 at first, 200 from the warm-up on, 204 at the end.
    sizes = [100.0] * 50 + [200.0] * 700 + [204.0] * 150
    samples = [(float(second), size) for second, size in enumerate(sizes)]
    assert growth(samples, 900) == pytest.approx(0.02)


def test_series_puts_errors_and_answers_in_their_time() -> None:
    arrivals = [Arrival(0.5, 0, 0.1, 200, 0), Arrival(89.5, 0, 0.1, 500, 0)]
    points = series(arrivals, [(0.2, 1e6), (95.0, 2e6)], seconds=90)
    assert len(points) == BINS
    assert (points[0]["per_second"], points[0]["p50_ms"], points[0]["memory_mb"]) == (1, 100, 1)
    assert (points[-1]["errors"], points[-1]["p99_ms"], points[-1]["memory_mb"]) == (1, None, 2)


def test_every_peer_is_pinned() -> None:
    files = sorted(path.name for path in REQUIREMENTS.iterdir())
    assert files == ["bentoml.txt", "fastapi.txt", "infinity.txt", "setfit.txt", "shap.txt"]
    for name in files:
        for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines():
            assert line.startswith(("#", "-r ")) or "==" in line


def test_reasons_fit_into_a_table() -> None:
    assert last_line("a\n  no such | thing  \n\n") == "no such / thing"
    assert last_line("") == "nothing was said"


def test_plans_have_the_same_kinds() -> None:
    assert FULL.texts.keys() == QUICK.texts.keys() == TEXTS.keys()


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that refuses what has an `x` in it, and answers the rest."""
    loop = asyncio.new_event_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                status = b"429 Too Many Requests" if b"x" in body else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(end(), loop).result(SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_closed_loop(port: int) -> None:
    load = drive(port, [post("/", b"a"), post("/", b"x"), post("/", b"b")] * 10, connections=4)
    assert load.statuses == {200: 20, 429: 10}
    assert {place % 3 for place in load.places} == {0, 2}
    assert len(load.places) == len(load.latencies) == 20


@pytest.mark.parametrize("opened", [0, 8])
def test_open_loop(port: int, opened: int) -> None:
    ticks: list[float] = []
    requests = [post("/", b"a"), post("/", b"x")]
    load = drive_open(port, requests, 200, 0.5, opened=opened, on_tick=ticks.append, tick=0.1)
    statuses = [one.status for one in load.arrivals]
    # A hundred are due on average, and the times are drawn from the same seed always.
    assert 70 < len(statuses) < 130
    assert abs(statuses.count(200) - statuses.count(429)) <= 1
    assert len(statuses) == statuses.count(200) + statuses.count(429)
    assert load.unsent == 0
    assert all(0 <= one.due < 0.5 for one in load.arrivals)
    assert any(one.fresh for one in load.arrivals) or opened
    assert ticks
