"""What `benchmarks/bench_serve.py` found: targets, the tables for the README, a picture.

All of it comes from the result as it is written, so that a result can be read again later.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import Arrival, percentile

OURS = "whetstone"
# Where the targets of CPU are: so many connections, short texts.
CONNECTIONS = "16"
# CPU per text, at most so many times the raw loop's, which takes so many texts at a time.
RAW_LOOPS = {"1": 1.0, "32": 1.25}
# So many times less CPU per text than theirs.
LESS_CPU = {"bentoml": 2.5, "infinity": 4.5}
MOST_PADDING = 0.1
TAIL = 3
LEAST_GOODPUT = 0.9
REFUSED_MS = 20
LEAST_IN_TIME = 0.999
# Memory in the second half of an overload, at most so many times that in the first.
MOST_MEMORY = 1.05
START_CPU_SECONDS = 4
LEAST_AGREEMENT = 0.95
RAW_TITLES = {
    "1": "the raw loop, one text at a time, no HTTP",
    "32": "the raw loop, 32 at a time, no HTTP",
}

Result = Mapping[str, Any]
Target = dict[str, Any]


def target(
    name: str, bound: float, measured: float | None, *, most: bool, why_not: str = ""
) -> Target:
    """One line: what was wanted, what was measured, whether that is met (None: not measured)."""
    found: Target = {
        "target": name,
        "bound": f"{'at most' if most else 'at least'} {bound:g}",
        "measured": None if measured is None else round(measured, 4),
        "met": None if measured is None else bool(measured <= bound if most else measured >= bound),
    }
    if measured is None:
        found["reason"] = why_not
    return found


def cpu_ratio(above: Result, below: Result) -> float:
    """Median over the rounds of one server's CPU per text through another's in the same round."""
    pairs = zip(above["cpu_ms_rounds"], below["cpu_ms_rounds"], strict=False)
    return statistics.median(a / b for a, b in pairs)


def targets(result: Result) -> list[Target]:
    """Every target, in the order of the table."""
    found = [*_cpu_targets(result), *_first_targets(result), *_mixed_targets(result)]
    for kind, overload in result["overload"].items():
        found += _overload_targets(kind, overload)
    start = result["servers"][OURS]["start"]["cpu_seconds"]
    found.append(target("start to /readyz, CPU-seconds", START_CPU_SECONDS, start, most=True))
    for key, server in _peers(result).items():
        agreement = server.get("agreement")
        found.append(
            target(
                f"labels as Whetstone's, {server['title']}",
                LEAST_AGREEMENT,
                agreement["share"] if agreement else None,
                most=False,
                why_not=_why_not(result, key),
            )
        )
    return found


def _peers(result: Result) -> dict[str, Any]:
    return {key: server for key, server in result["servers"].items() if key != OURS}


def _why_not(result: Result, key: str) -> str:
    return str(result["servers"].get(key, {}).get("reason", "not part of this run"))


def _cpu_targets(result: Result) -> list[Target]:
    found = []
    cells = result["results"]["short"].get(CONNECTIONS, {})
    ours = cells.get(OURS)
    for batch, bound in RAW_LOOPS.items():
        ratio = cpu_ratio(ours, result["raw"]["short"][batch]) if ours else None
        name = f"CPU per short text, times the raw loop's at {batch} at a time"
        why_not = "no such number of connections"
        found.append(target(name, bound, ratio, most=True, why_not=why_not))
    for key, bound in LESS_CPU.items():
        title = result["servers"].get(key, {}).get("title", key)
        ratio = cpu_ratio(cells[key], ours) if ours and key in cells else None
        name = f"CPU per short text, {title} through Whetstone"
        found.append(target(name, bound, ratio, most=False, why_not=_why_not(result, key)))
    return found


def places_first(result: Result, figure: str, *, most: bool) -> tuple[int, int]:
    """In how many of the cells with peers Whetstone is the best, and how many there are."""
    first = cells = 0
    for by_connections in result["results"].values():
        for servers in by_connections.values():
            others = [one[figure] for key, one in servers.items() if key != OURS and one["answers"]]
            if not others or OURS not in servers:
                continue
            cells += 1
            own = servers[OURS][figure]
            first += own > max(others) if most else own < min(others)
    return first, cells


def _first_targets(result: Result) -> list[Target]:
    found = []
    for figure, title, most in (
        ("texts_per_second", "throughput", True),
        ("p99_ms", "p99", False),
    ):
        first, cells = places_first(result, figure, most=most)
        found.append(
            target(
                f"first in {title}, of {cells} workloads and connections",
                cells,
                first if cells else None,
                most=False,
                why_not="no peer was measured",
            )
        )
    return found


def _mixed_targets(result: Result) -> list[Target]:
    padding = result["padding"].get("mixed")
    found = [
        target(
            "mixed lengths, share of tokens that are padding",
            MOST_PADDING,
            padding,
            most=True,
            why_not="the server does not count tokens of padding",
        )
    ]
    longest = result["raw"]["mixed"]["longest_ms"]
    for connections, servers in result["results"]["mixed"].items():
        if int(connections) == 1 or OURS not in servers:
            continue
        short = servers[OURS]["short_texts"]
        bound = round(TAIL * short["p50_ms"] + longest, 1)
        name = f"mixed lengths, p99 of short texts in ms, {connections} connections"
        name += f" ({TAIL} x p50 + a long batch)"
        found.append(target(name, bound, short["p99_ms"], most=True))
    return found


def _overload_targets(kind: str, overload: Result) -> list[Target]:
    name = f"overload, {kind} texts"
    memory = overload["memory_mb"]
    return [
        target(
            f"{name}: goodput through peak",
            LEAST_GOODPUT,
            overload["goodput_through_peak"],
            most=False,
        ),
        target(
            f"{name}: median ms until refused",
            REFUSED_MS,
            overload["refused_p50_ms"],
            most=True,
            why_not="nothing was refused",
        ),
        target(
            f"{name}: share of accepted inside the deadline",
            LEAST_IN_TIME,
            overload["in_time_share_of_accepted"],
            most=False,
            why_not="nothing was accepted",
        ),
        target(
            f"{name}: memory, second half through first",
            MOST_MEMORY,
            memory["second_half"] / memory["first_half"],
            most=True,
        ),
    ]


def overload_summary(
    arrivals: Sequence[Arrival], unsent: int, seconds: float, deadline: float, peak: float
) -> dict[str, Any]:
    """What an overload came to.

    Accepted is whatever was not refused with 429, so an answer that came late, an error and a
    connection that broke all count against the share in time.

    Args:
        arrivals: of the open loop.
        unsent: requests that found no connection.
        seconds: from the first request to the last answer.
        deadline: of each request, in seconds.
        peak: texts a second of a closed loop.
    """
    refused = [one.took for one in arrivals if one.status == 429]
    accepted = [one for one in arrivals if one.status != 429]
    in_time = [one.took for one in accepted if one.status == 200 and one.took <= deadline]
    statuses: dict[str, int] = {}
    for one in arrivals:
        statuses[str(one.status)] = statuses.get(str(one.status), 0) + 1
    lags = [one.lag for one in arrivals]
    fresh = [one.took for one in arrivals if one.fresh]

    def milliseconds(values: Sequence[float], share: float) -> float | None:
        return round(percentile(values, share) * 1000, 2) if values else None

    return {
        "offered": len(arrivals) + unsent,
        "unsent": unsent,
        "statuses": dict(sorted(statuses.items())),
        "accepted": len(accepted),
        "in_time": len(in_time),
        "in_time_share_of_accepted": len(in_time) / len(accepted) if accepted else None,
        "goodput_per_second": round(len(in_time) / seconds, 1),
        "peak_per_second": round(peak, 1),
        "goodput_through_peak": len(in_time) / seconds / peak,
        "in_time_p50_ms": milliseconds(in_time, 0.5),
        "in_time_p99_ms": milliseconds(in_time, 0.99),
        "refused_p50_ms": milliseconds(refused, 0.5),
        "refused_p99_ms": milliseconds(refused, 0.99),
        "new_connections": len(fresh),
        "new_connections_p50_ms": milliseconds(fresh, 0.5),
        "new_connections_p99_ms": milliseconds(fresh, 0.99),
        "generator_lag_p50_ms": milliseconds(lags, 0.5),
        "generator_lag_p99_ms": milliseconds(lags, 0.99),
    }


def summary(result: Result) -> str:
    """What the README shows of it."""
    machine, model = result["machine"], result["model"]
    lines = [
        f"{machine['cores']} cores of {machine['processor']}, {model['name']} in "
        f"{model['precision']}; medians of {result['rounds']} interleaved rounds, the load "
        "generator on the same cores.",
        "",
        *_main_table(result),
        "",
        *_targets_table(result["targets"]),
        "",
        *_profile(result),
        *(_cores(kind, overload) for kind, overload in result["overload"].items()),
        *_connecting(result["overload_connecting"]),
        *_attacks_table(result.get("attacks", {})),
    ]
    return "\n".join(lines)


def markdown(result: Result) -> str:
    """All tables."""
    return "\n".join([summary(result), "", *_full_table(result)]) + "\n"


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _figure(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]


def _main_table(result: Result) -> list[str]:
    """CPU per text of each workload, and how fast short texts are, at 16 connections."""
    kinds = list(result["results"])
    head = ["16 connections", *(f"{kind}: CPU ms per text" for kind in kinds)]
    head += ["short: texts/s", "short: p50 ms", "short: p99 ms"]
    rows: list[list[object]] = []
    for key, server in result["servers"].items():
        cells = {kind: result["results"][kind].get(CONNECTIONS, {}).get(key) for kind in kinds}
        if not any(cells.values()):
            reason = server.get("reason", "not measured")
            rows.append([server["title"], f"not measured: {reason}", *[""] * (len(head) - 2)])
            continue
        row: list[object] = [server["title"]]
        row += [_figure(cell["cpu_ms"]) if cell else "" for cell in cells.values()]
        short = cells["short"] or {}
        figures = ("texts_per_second", "p50_ms", "p99_ms")
        rows.append([*row, *(_figure(short.get(figure)) for figure in figures)])
    for batch, title in RAW_TITLES.items():
        raw = {kind: result["raw"][kind][batch] for kind in kinds}
        row = [title, *(_figure(one["cpu_ms"]) for one in raw.values())]
        row += [_figure(raw["short"]["texts_per_second"])]
        # Of 32 at a time it would be a batch's.
        alone = batch == "1"
        row += [_figure(raw["short"][name]) if alone else "" for name in ("p50_ms", "p99_ms")]
        rows.append(row)
    return _table(head, rows)


def _targets_table(found: Sequence[Target]) -> list[str]:
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows = []
    for one in found:
        measured = one["measured"]
        shown = one.get("reason", "") if measured is None else f"{measured:,.4g}"
        rows.append((one["target"], one["bound"], shown, words[one["met"]]))
    return _table(("target", "bound", "measured", ""), rows)


def _profile(result: Result) -> list[str]:
    """What of the service's CPU per text computes: the rest is what HTTP and batching cost."""
    lines = []
    for kind, by_connections in result["results"].items():
        cell = by_connections.get(CONNECTIONS, {}).get(OURS)
        if cell is None:
            continue
        threads, raw = cell["threads_cpu_ms"], result["raw"][kind]
        lines.append(
            f"- A text of the {kind} workload at {CONNECTIONS} connections takes "
            f"{_figure(threads['computing'])} ms of CPU time for inference (and for tokenizing "
            f"long texts), and {_figure(threads['event loop'])} ms in the event loop for reading, "
            f"tokenizing, batching and answering. In the raw loop, tokenizing takes "
            f"{_figure(raw['tokenize_cpu_ms'])} ms. Inference takes "
            f"{_figure(raw['1']['cpu_ms'] - raw['tokenize_cpu_ms'])} ms with one text at a time, "
            f"and {_figure(raw['32']['cpu_ms'] - raw['tokenize_cpu_ms'])} ms with 32."
        )
    return lines


def _cores(kind: str, overload: Result) -> str:
    """Where the cores went in an overload: the bound of its goodput."""
    cores = overload["cores"]
    return (
        f"- In the overload of {kind} texts, {cores['computing']:.2f} cores computed, "
        f"{cores['event loop']:.2f} read, answered and refused, and {cores['load generator']:.2f} "
        "generated the load."
    )


def _connecting(overload: Result) -> list[str]:
    """What becomes of an overload's callers who have to connect first; no target."""

    def shown(value: float | None, unit: str) -> str:
        return "none" if value is None else f"{value:,.4g}{unit}"

    in_time = overload["in_time_share_of_accepted"]
    percent = None if in_time is None else in_time * 100
    return [
        f"- In the same overload, {overload['new_connections']:,} callers had to connect first. "
        f"Their first answer took {shown(overload['new_connections_p50_ms'], ' ms')} (median) and "
        f"{shown(overload['new_connections_p99_ms'], ' ms')} (p99). "
        f"{shown(percent, ' %')} of the accepted requests were in time, and a refusal took "
        f"{shown(overload['refused_p50_ms'], ' ms')} (median)."
    ]


def _attacks_table(attacks: Result) -> list[str]:
    """What becomes of bystanders of a crowd; no target. Older results have none."""
    if not attacks:
        return []
    rows = [
        [
            f"{attack['crowd']['texts']} at once, {name}",
            kind,
            _figure(found["goodput"]),
            _figure(found["p50_ms"]),
            _figure(found["p99_ms"]),
            _figure(found["slowest_ms"]),
            _figure(attack["crowd"]["slowest_wave_ms"]),
        ]
        for name, attack in attacks.items()
        for kind, found in attack["bystanders"].items()
    ]
    head = ("crowd", "bystanders", "in time", "p50 ms", "p99 ms", "slowest ms")
    return ["", *_table((*head, "crowd's slowest ms"), rows)]


def _full_table(result: Result) -> list[str]:
    rows = []
    for kind, by_connections in result["results"].items():
        for connections, servers in by_connections.items():
            for key, cell in servers.items():
                figures = ("cpu_ms", "texts_per_second", "p50_ms", "p99_ms")
                row = [kind, connections, result["servers"][key]["title"]]
                row += [_figure(cell[figure]) for figure in figures]
                rows.append([*row, cell["errors"] or ""])
    head = ("texts", "connections", "server", "CPU ms per text", "texts/s", "p50 ms", "p99 ms")
    return _table((*head, "errors"), rows)


def draw(result: Result, path: Path) -> None:
    """CPU per text and p99 by server, a column for each workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import save_figure

    kinds = list(result["results"])
    servers = [
        key
        for key in result["servers"]
        if any(key in result["results"][kind].get(CONNECTIONS, {}) for kind in kinds)
    ]
    figure, axes = pyplot.subplots(2, len(kinds), figsize=(4.2 * len(kinds), 5.2), squeeze=False)
    for column, kind in enumerate(kinds):
        cells = result["results"][kind].get(CONNECTIONS, {})
        raw = result["raw"][kind]
        tokens = result["workloads"][kind]["mean_tokens"]
        axes[0][column].set_title(
            f"{kind} texts ({tokens:.0f} tokens), {CONNECTIONS} connections", fontsize=10
        )
        for row, (name, label) in enumerate((("cpu_ms", "CPU ms per text"), ("p99_ms", "p99 ms"))):
            # 0 where there is no answer: the places are those of the other columns.
            bars = {
                result["servers"][key]["title"]: cells.get(key, {}).get(name) or 0
                for key in servers
            }
            if name == "cpu_ms":
                bars |= {f"raw loop, {batch} at a time": raw[batch][name] for batch in RAW_LOOPS}
            axis, values = axes[row][column], list(bars.values())
            colours = ["#1f6f8b" if key == OURS else "#b5b9bd" for key in servers]
            colours += ["#dadcde"] * (len(bars) - len(servers))
            shown = axis.barh(list(bars), values, color=colours)
            axis.bar_label(shown, [_figure(value) for value in values], padding=3, fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, max([*values, 1e-9]) * 1.22)
            axis.set_xlabel(label, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
            if column:
                axis.set_yticklabels([])
    figure.tight_layout()
    save_figure(figure, path)
