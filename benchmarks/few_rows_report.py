"""The table and the plot of `few_rows`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TITLES = {
    "whetstone": "Whetstone's defaults",
    "regression": "regression over the frozen encoder",
    "tfidf": "TF-IDF with a regression",
    "setfit": "SetFit",
}
COLOURS = {
    "whetstone": "#1f6f8b",
    "regression": "#c97b12",
    "tfidf": "#6b7075",
    "setfit": "#7a4fa3",
}


def grouped(entries: Mapping[str, Any]) -> dict[tuple[str, int, str], list[Any]]:
    """Entries of all seeds by set, rows and method."""
    found: dict[tuple[str, int, str], list[Any]] = {}
    for entry in entries.values():
        found.setdefault((entry["set"], entry["rows"], entry["method"]), []).append(entry)
    return found


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(scores: Sequence[float]) -> str:
    """The mean of seeds and, of more than one, their standard deviation."""
    deviation = f" ± {spread(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{deviation}"


def summary(entries: Mapping[str, Any]) -> str:
    """A table: a line for each set and number of rows, a column for each method."""
    found = grouped(entries)
    methods = [method for method in TITLES if any(key[2] == method for key in found)]
    lines = [
        f"| set | rows a label | {' | '.join(TITLES[method] for method in methods)} |",
        f"|---|---{'|---' * len(methods)}|",
    ]
    for name, rows in sorted({key[:2] for key in found}):
        cells = []
        for method in methods:
            cells.append(_cell(found.get((name, rows, method), [])))
        lines.append(f"| `{name}` | {rows} | {' | '.join(cells)} |")
    tests = sorted({entry["test_rows"] for entry in entries.values()})
    lines += [
        "",
        "A cell is the mean accuracy with its standard deviation over seeds. The number of seeds "
        "and the CPU-seconds of training and answering are in parentheses. A set is measured on "
        f"the same {' or '.join(map(str, tests))} rows of its test file. A seed also draws the "
        "training rows.",
    ]
    return "\n".join(lines)


def _cell(entries: Sequence[Mapping[str, Any]]) -> str:
    """Mean and spread of a method's seeds, or how long it was waited for."""
    scores = [entry["accuracy"] for entry in entries if entry["accuracy"] is not None]
    if scores:
        cost = statistics.mean(entry["cpu_seconds"] for entry in entries)
        return f"{mean_and_spread(scores)} ({len(scores)}; {cost:,.0f} s)"
    return f"stopped after {entries[0]['seconds']:,.0f} s" if entries else "-"


def draw(entries: Mapping[str, Any], path: Path) -> None:
    """Accuracy by rows a label, a plot for each set, the seeds' spread as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import plain, save_figure

    found = grouped(entries)
    sets = sorted({key[0] for key in found})
    figure, axes = pyplot.subplots(
        1, len(sets), figsize=(3 * len(sets) + 0.6, 3.2), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], sets, strict=True):
        counts = sorted({key[1] for key in found if key[0] == name})
        for method, title in TITLES.items():
            seeds = [(rows, found.get((name, rows, method), [])) for rows in counts]
            points = [
                (rows, [entry["accuracy"] for entry in own])
                for rows, own in seeds
                if own and own[0]["accuracy"] is not None
            ]
            if points:
                axis.errorbar(
                    [rows for rows, _ in points],
                    [statistics.mean(scores) for _, scores in points],
                    [spread(scores) for _, scores in points],
                    color=COLOURS[method],
                    marker="o",
                    markersize=4,
                    capsize=3,
                    label=title,
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_title(plain(name), fontsize=9)
        axis.set_xlabel("rows a label", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e3e5e7")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("accuracy on test rows", fontsize=9)
    # Not every method was run on the first set.
    marks = {
        title: mark
        for axis in axes[0]
        for mark, title in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    shown = [title for title in TITLES.values() if title in marks]
    figure.legend(
        [marks[title] for title in shown],
        shown,
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="outside upper center",
    )
    save_figure(figure, path)
