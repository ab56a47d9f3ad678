"""The table and the plot of `loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ARMS = ("random", "collect")
TITLES = {"random": "picked at random", "collect": "picked by `collect`"}
COLOURS = {"random": "#6b7075", "collect": "#1f6f8b"}
WANTED = 0.6


def curves(entries: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, list[Any]]]:
    """The rounds in order, by set and seed and then by arm; of both arms as many."""
    found: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for entry in sorted(entries.values(), key=lambda entry: entry["round"]):
        arms = found.setdefault((entry["set"], entry["seed"]), {arm: [] for arm in ARMS})
        arms[entry["arm"]].append(entry)
    for arms in found.values():
        fewest = min(map(len, arms.values()))
        for arm in ARMS:
            arms[arm] = arms[arm][:fewest]
    return found


def rows_to_reach(rounds: Sequence[Mapping[str, Any]], wanted: float) -> float | None:
    """Rows at which a curve first has this macro-F1, on the line between two rounds."""
    for before, after in pairwise(rounds):
        if after["macro_f1"] >= wanted > before["macro_f1"]:
            part = (wanted - before["macro_f1"]) / (after["macro_f1"] - before["macro_f1"])
            return float(before["rows"] + part * (after["rows"] - before["rows"]))
    return None


def verdict(name: str, arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A sentence: the rows that `collect` needs for what random rows reach at the end."""
    last, start = arms["random"][-1], arms["random"][0]
    rows = rows_to_reach(arms["collect"], last["macro_f1"])
    reached = f"`{name}`: {last['rows']:,} random rows reach a macro-F1 of {last['macro_f1']:.3f}"
    if rows is None:
        return f"{reached}. `collect` does not reach it with as many rows (missed)."
    share = rows / last["rows"]
    labeled = (rows - start["rows"]) / (last["rows"] - start["rows"])
    judged = "met" if share <= WANTED else "missed"
    return (
        f"{reached}. With `collect` it takes {rows:,.0f} rows: {share:.0%} of them, and "
        f"{labeled:.0%} of the rows that are labeled after the start. At most {WANTED:.0%} of all "
        f"rows were wanted: {judged}."
    )


def sentences(entries: Mapping[str, Any]) -> str:
    """The verdicts of all sets."""
    return " ".join(verdict(name, arms) for (name, _), arms in sorted(curves(entries).items()))


def summary(entries: Mapping[str, Any]) -> str:
    """A table with a line for each set and round, and a sentence about each set."""
    lines = [
        "| set | round | rows | macro-F1, random | macro-F1, `collect` |",
        "|---|---|---|---|---|",
    ]
    for (name, _), arms in sorted(curves(entries).items()):
        for random, collect in zip(arms["random"], arms["collect"], strict=True):
            cells = [f"`{name}`", str(random["round"]), f"{random['rows']:,}"]
            cells += [f"{entry['macro_f1']:.3f}" for entry in (random, collect)]
            lines.append(f"| {' | '.join(cells)} |")
    tests = {entry["set"]: entry["test_rows"] for entry in entries.values()}
    measured = ", ".join(f"{rows:,} of `{name}`" for name, rows in sorted(tests.items()))
    about = f"Macro-F1 on all test rows ({measured}), one training a figure."
    return "\n".join([*lines, "", f"{sentences(entries)} {about}"])


def draw(entries: Mapping[str, Any], path: Path) -> None:
    """Macro-F1 by labeled rows, a plot for each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import plain, save_figure

    found = sorted(curves(entries).items())
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(3.6 * len(found) + 0.6, 3.2), layout="constrained", squeeze=False
    )
    for axis, ((name, _), arms) in zip(axes[0], found, strict=True):
        for arm in ARMS:
            axis.plot(
                [entry["rows"] for entry in arms[arm]],
                [entry["macro_f1"] for entry in arms[arm]],
                color=COLOURS[arm],
                marker="o",
                markersize=4,
                label=plain(TITLES[arm].replace("`", "")),
            )
        axis.set_title(plain(name), fontsize=9)
        axis.set_xlabel("labeled rows", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e3e5e7")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("macro-F1 on test rows", fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)
