"""A preflight's findings for the screen, as JSON, and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.package.files import write_text
from training.common.figures import plain, save_figure
from training.data.preflight import Preflight

if TYPE_CHECKING:
    from rich.console import Console

QUANTILES = (0.5, 0.9, 0.99, 1.0)
SHOWN_ROWS = 5
DRAWN_LABELS = 30
LENGTH_BINS = 60


def print_findings(preflight: Preflight, console: Console | None = None) -> None:
    """One line a finding, then how many rows there are and how long."""
    from rich.console import Console
    from rich.table import Table

    # A message's brackets and colons are its own.
    console = console or Console(markup=False, emoji=False)
    if preflight.findings:
        table = Table(title="what the data check found", title_justify="left")
        table.add_column("severity", style=None)
        table.add_column("code", no_wrap=True)
        table.add_column("split")
        table.add_column("rows", justify="right")
        table.add_column("what, and in which rows first", overflow="fold")
        for finding in preflight.findings:
            rows = ", ".join(map(str, finding.rows[:SHOWN_ROWS]))
            places = f" (row {rows}{' …' if finding.count > SHOWN_ROWS else ''})" if rows else ""
            table.add_row(
                finding.severity,
                finding.code,
                finding.split,
                str(finding.count),
                finding.message + places,
            )
        console.print(table)
    else:
        console.print("the data check found nothing")
    for name, lengths in preflight.token_lengths.items():
        if len(lengths):
            values = np.quantile(lengths, QUANTILES, method="higher")
            shown = ", ".join(
                f"{'longest' if q == 1 else f'{q:.0%}'} {value}"
                for q, value in zip(QUANTILES, values, strict=True)
            )
            console.print(f"{name}: {preflight.rows[name]} rows, tokens: {shown}", highlight=False)


def print_dropped(rows: int) -> None:
    """How many rows `drop_invalid` leaves out."""
    print(f"rows that cannot be used and will be dropped: {rows}")


def write_findings(preflight: Preflight, path: Path) -> None:
    """The findings as JSON; `rows` are examples, counted from 1 without the header."""
    keys = ("code", "severity", "split", "count", "rows", "message", "place")
    content = {
        "findings": [{key: getattr(finding, key) for key in keys} for finding in preflight.findings]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def draw_data(preflight: Preflight, path: Path, max_length: int) -> None:
    """Histograms of the texts' lengths and of the labels, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = preflight.label_counts["train"].most_common()
    shown, others = counts[:DRAWN_LABELS], counts[DRAWN_LABELS:]
    if others:
        shown.append((f"{len(others)} others", sum(count for _, count in others)))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, max(4.0, 1.5 + 0.28 * len(shown))), layout="constrained"
    )
    longest = max([max_length, *(int(x.max()) for x in preflight.token_lengths.values() if len(x))])
    edges = np.linspace(0, longest, LENGTH_BINS)
    for name, lengths in preflight.token_lengths.items():
        left.hist(lengths, bins=edges, histtype="step", linewidth=1.5, density=True, label=name)
    left.axvline(max_length, color="black", linestyle="--", label=f"max_length {max_length}")
    left.set_xlabel("tokens of a text")
    left.set_ylabel("share of the split's texts")
    left.set_yticks([])
    left.legend()
    places = np.arange(len(shown))
    right.barh(places, [count for _, count in shown])
    right.set_yticks(places, [plain(label) for label, _ in shown])
    right.invert_yaxis()
    right.set_xlabel("training rows")
    save_figure(figure, path)
