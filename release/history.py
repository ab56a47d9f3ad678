"""The table of releases."""

from __future__ import annotations

from pathlib import Path

from release.image_name import ImageName
from release.records import Record, Records

# A file or a pipe has no edge to wrap at.
WIDE = 240
COLUMNS = ("release", "when", "overlay", "outcome", "compared", "macro-F1", "image")


def print_history(records: Records, overlay: Path | None) -> None:
    """Print every record, the newest last, and the reason of each that failed."""
    from rich.console import Console
    from rich.table import Table

    shown = records.all() if overlay is None else records.of(str(overlay))
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    if not shown:
        console.print(f"nothing is recorded in {records.folder}")
        return
    table = Table(*COLUMNS)
    for record in shown:
        table.add_row(*_cells(record))
    console.print(table)
    for record in shown:
        if record.reason:
            console.print(f"{record.id}: {record.reason}")


def _cells(record: Record) -> tuple[str, ...]:
    compared, score = "", record.metrics.get("macro_f1")
    if record.verdict is not None:
        champion = record.champion_version or record.champion
        compared = f"{record.verdict.outcome} ({champion})"
        score = record.verdict.macro_f1
    return (
        record.id,
        record.started_at.replace("T", " ").removesuffix("+00:00"),
        record.overlay,
        describe_outcome(record),
        compared,
        "" if score is None else f"{score:.3f}",
        ImageName.parse(record.image).shown if record.image else "",
    )


def describe_outcome(record: Record) -> str:
    """The outcome of a release, as the table shows it."""
    if record.outcome == "unfinished":
        return f"unfinished at {record.step}"
    if record.kind == "rollback" and record.outcome == "released":
        return "rolled back"
    return record.outcome
