"""The candidates of an export on screen."""

from __future__ import annotations

from typing import Any

from training.common.digits import measured


def print_selection(selection: dict[str, Any]) -> None:
    """Print the candidates as a table, and why the one that ships does.

    Args:
        selection: the manifest's `selection`.
    """
    from rich.console import Console
    from rich.table import Table

    candidates = selection["candidates"]
    lengths = next(x["cpu_ms_per_text"] for x in candidates if "cpu_ms_per_text" in x)
    table = Table(title=f"what may ship, on {selection['rows']} validation rows")
    table.title_justify = "left"
    table.add_column("graph", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for name in ("macro-F1", "agrees", "drift", "MB", "CPU ms a text"):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in candidates:
        mark = "→ " if candidate["name"] == selection["chosen"] else "  "
        cells = _cells(candidate, selection["rows"])
        table.add_row(mark + candidate["name"], candidate["verdict"], *cells)
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"CPU ms: one text alone of {'/'.join(lengths)} tokens", highlight=False)
    for candidate in candidates:
        for reason in candidate["reasons"]:
            line = f"{candidate['name']}, {candidate['verdict']}: {reason}"
            console.print(line, highlight=False)
    console.print(f"ships: {selection['reason']}", highlight=False)


def _cells(candidate: dict[str, Any], rows: int) -> list[str]:
    """The numbers of a candidate; dashes where it could not be measured."""
    if candidate["verdict"] == "unavailable":
        return ["-"] * 5
    return [
        measured(candidate["macro_f1"], rows) if "macro_f1" in candidate else "-",
        measured(candidate["label_agreement"], rows),
        f"{candidate['mean_probability_drift']:.4f}",
        f"{candidate['bytes'] / 1e6:.0f}",
        "/".join(f"{cost:.1f}" for cost in candidate["cpu_ms_per_text"].values()),
    ]
