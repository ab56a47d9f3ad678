"""The table of releases."""

from __future__ import annotations

from pathlib import Path

from training.release.records import Record, Records

# A file or a pipe has no edge to wrap at.
WIDE = 240
COLUMNS = ("release", "when", "overlay", "outcome", "compared", "macro-F1", "image")


def print_history(records: Records, overlay: Path | None) -> None:
    """Every record, the newest last, and why those that failed did."""
    from rich.console import Console
    from rich.table import Table

    found = [one for one in records.all() if overlay is None or one.overlay == str(overlay)]
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    if not found:
        console.print(f"nothing is recorded in {records.folder}")
        return
    table = Table(*COLUMNS)
    for one in found:
        table.add_row(*_cells(one))
    console.print(table)
    for one in found:
        if one.reason:
            console.print(f"{one.id}: {one.reason}")


def _cells(one: Record) -> tuple[str, ...]:
    outcome: str = one.outcome
    if one.outcome == "unfinished":
        outcome = f"unfinished at {one.step}"
    elif one.kind == "rollback" and one.outcome == "released":
        outcome = "rolled back to"
    verdict = (one.verdict or {}).get("outcome", "")
    score = (one.verdict or {}).get("macro_f1", one.metrics.get("macro_f1"))
    return (
        one.id,
        one.started_at.replace("T", " ").removesuffix("+00:00"),
        one.overlay,
        outcome,
        f"{verdict} ({one.champion_version or one.champion})" if verdict else "",
        "" if score is None else f"{score:.3f}",
        one.image or "",
    )
