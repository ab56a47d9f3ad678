"""A comparison for people and for programs: the table on screen, `compare.json`, `flips.csv`."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.inference.classifier import Prediction
from service.package.files import write_text
from training.common.digits import difference_decimals, measured
from training.common.layout import COMPARE_FILE, FLIPS_FILE
from training.comparison.contenders import NO_CHAMPION
from training.comparison.measures import Measure, measures_of
from training.comparison.paired import LabelChange, Paired
from training.comparison.result import Comparison, Side
from training.evaluation.reasons import SIGNIFICANCE

if TYPE_CHECKING:
    from rich.table import Table

# Between the labels of a row in the CSV.
SEPARATOR = "|"
COMPARISONS = "comparisons"
VERSIONED_PACKAGES = ("whetstone", "onnxruntime", "tokenizers", "numpy", "scipy")
# Labels on screen; those that changed significantly are all shown.
SCREEN_LABELS = 5


def print_comparison(comparison: Comparison) -> None:
    """Print both sides' numbers, the labels that changed most, the warnings and the verdict."""
    from rich.console import Console

    # A label's brackets and colons are its own.
    console = Console(markup=False, emoji=False)
    console.print(_table(comparison))
    # A sentence stays one line where the output is no terminal.
    print_line = partial(console.print, highlight=False, soft_wrap=True)
    if comparison.paired is not None:
        for line in _change_lines(comparison.paired):
            print_line(line)
    rows = comparison.rows
    if rows.left_out:
        print_line(
            f"not compared, with labels that only one of the two knows: {rows.left_out} rows"
        )
    if rows.dropped:
        print_line(f"left out, since they cannot be used: {rows.dropped} rows")
    for warning in comparison.warnings:
        print_line(f"warning: {warning}")
    print_line(comparison.sentence)


def _table(comparison: Comparison) -> Table:
    from rich.table import Table

    rows = comparison.rows
    table = Table(title=f"{rows.file}, {len(rows.split)} rows", title_justify="left")
    table.add_column("")
    sides = (("champion", comparison.champion), ("challenger", comparison.challenger))
    for name, side in sides:
        version = side.manifest.version if side else NO_CHAMPION
        table.add_column(f"{name}\n{version}", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for measure in measures_of(comparison):
        table.add_row(*_table_cells(measure))
    return table


def _table_cells(measure: Measure) -> list[str]:
    """A line of the table: name, before, after, change, interval."""
    cells = [
        "-" if value is None else f"{value:{measure.format}}"
        for value in (measure.before, measure.after)
    ]
    change = interval = ""
    if measure.change is not None:
        change = signed(measure.change, measure.format)
        if measure.difference is not None:
            format_ = f".{difference_decimals(measure.difference.half_width)}f"
            change = signed(measure.change, format_)
            interval = " to ".join(signed(end, format_) for end in measure.difference.ends)
    return [measure.name, *cells, change, interval]


def _change_lines(paired: Paired) -> list[str]:
    """How many rows changed, and a line for each of the labels that changed most."""
    rows = (
        f"answered differently: {len(paired.flips)} rows; only the champion is right in "
        f"{paired.lost}, only the challenger in {paired.gained} (exact McNemar p = "
        f"{paired.p_value:.2g})"
    )
    return [rows, *map(_label_line, changed_most(paired.per_label))]


def signed(value: float, format_: str = ".4f") -> str:
    """A difference with its sign; a difference that is written as zero has none."""
    text = f"{value:+{format_}}"
    return text if float(text) else text[1:]


def changed_most(changes: list[LabelChange]) -> list[LabelChange]:
    """The labels that changed significantly, then those that lost most F1."""
    significant = [x for x in changes if min(x.worse, x.better) < SIGNIFICANCE]
    others = [x for x in changes if x not in significant and x.gain < 0]
    return significant + others[: max(0, SCREEN_LABELS - len(significant))]


def _label_line(change: LabelChange) -> str:
    before, after = (
        "-" if f1 is None else measured(f1, change.rows) for f1 in (change.before, change.after)
    )
    verdict = ""
    if change.worse < SIGNIFICANCE:
        verdict = f", significantly worse (p = {change.worse:.2g})"
    elif change.better < SIGNIFICANCE:
        verdict = f", significantly better (p = {change.better:.2g})"
    return (
        f"  {change.label}: F1 {before} to {after} on {change.rows} rows, "
        f"{change.lost} lost, {change.gained} gained{verdict}"
    )


def default_folder(comparison: Comparison) -> Path:
    """The folder of a comparison without `--output_dir`: named by both packages and the data."""
    champion = comparison.champion.manifest.version if comparison.champion else NO_CHAMPION
    challenger = comparison.challenger.manifest.version
    return Path(COMPARISONS) / f"{champion}-{challenger}-{comparison.rows.sha256[:8]}"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `flips.csv` where there is a champion, then `compare.json`.

    Returns:
        The paths of both files, `compare.json` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / COMPARE_FILE]
    # The flips of an earlier comparison would be taken for those of this one.
    (folder / FLIPS_FILE).unlink(missing_ok=True)
    if comparison.paired is not None:
        paths.append(folder / FLIPS_FILE)
        write_text(folder / FLIPS_FILE, _flips_csv(comparison))
    content = json.dumps(as_json(comparison), indent=2, ensure_ascii=False)
    write_text(folder / COMPARE_FILE, content + "\n")
    return paths


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison in numbers, without any text of the data."""
    rows, champion = comparison.rows, comparison.champion
    removed, added = comparison.removed_labels, comparison.added_labels
    content: dict[str, Any] = {
        "compared_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": comparison.outcome,
        "sentence": comparison.sentence,
        "reasons": dict(comparison.reasons),
        "warnings": comparison.warnings,
        "bounds": asdict(comparison.bounds),
        "floors_measured_on": asdict(comparison.measurement.floors),
        "allow_label_change": comparison.allow_label_change,
        "data": {
            "file": rows.file,
            "sha256": rows.sha256,
            "rows": len(rows.split),
            "dropped_rows": rows.dropped,
            "rows_with_labels_of_one_side": rows.left_out,
        },
        "removed_labels": removed,
        "added_labels": added,
        # Their old names, kept for a version.
        "labels_gone": removed,
        "labels_come": added,
        "champion": None if champion is None else _side_json(champion),
        "challenger": _side_json(comparison.challenger),
        "packages": {name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES},
    }
    if comparison.paired is not None:
        content |= _paired_json(comparison.paired, comparison.bounds.max_half_width)
    return content


def _paired_json(paired: Paired, half_width: float) -> dict[str, Any]:
    return {
        "differences": {
            name: asdict(difference)
            | dict(zip(("low", "high"), difference.ends, strict=True))
            | {"point": difference.point, "half_width": difference.half_width}
            for name, difference in paired.differences.items()
        },
        "rows_needed": paired.differences["macro_f1"].rows_needed(half_width),
        "mcnemar": {
            "only_champion_right": paired.lost,
            "only_challenger_right": paired.gained,
            "p": paired.p_value,
        },
        "flips": len(paired.flips),
        "per_label": {change.label: _without_label(change) for change in paired.per_label},
    }


def _without_label(change: LabelChange) -> dict[str, Any]:
    content = asdict(change)
    del content["label"]
    return content


def _side_json(side: Side) -> dict[str, Any]:
    manifest, leakage = side.manifest, side.leakage
    metrics = {
        key: value
        for key, value in side.metrics.items()
        if key in ("accuracy", "micro_f1", "macro_f1", "samples_f1", "abstention")
    }
    metrics |= {key: side.metrics["calibration"][key] for key in ("ece", "brier", "log_loss")}
    looked_up = None
    if leakage is not None:
        looked_up = {"found": len(leakage.rows), "looked_up": leakage.looked_at}
    return {
        "named": side.name,
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "format_version": manifest.format_version,
        "precision": manifest.precision,
        "labels": len(manifest.labels),
        "metrics": metrics,
        "model_bytes": side.model_bytes,
        "cpu_ms_per_text": side.cpu_ms,
        "rows_it_was_made_with": looked_up,
    }


def _flips_csv(comparison: Comparison) -> str:
    """A line for every flip; rows are counted from 1, without the heading."""
    assert comparison.paired is not None  # noqa: S101 - the caller checked
    assert comparison.champion is not None  # noqa: S101
    has_pairs = comparison.challenger.manifest.has_pairs
    lines = io.StringIO(newline="")
    # Quoted, since a lone carriage return within a text would end the line for some readers.
    writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    columns = ["row", "change", "label", "champion", "champion_score"]
    columns += ["challenger", "challenger_score", "text"]
    writer.writerow([*columns, "text_pair"] if has_pairs else columns)
    rows = comparison.rows
    for flip in comparison.paired.flips:
        text = rows.split.texts[flip.row]
        cells = [int(rows.places[flip.row]) + 1, flip.kind]
        cells.append(SEPARATOR.join(rows.split.labels[flip.row]))
        for side in (comparison.champion, comparison.challenger):
            answer = side.answers[flip.row]
            cells += [joined(answer), f"{answer.score:.4f}"]
        writer.writerow([*cells, *([text] if isinstance(text, str) else text)])
    return lines.getvalue()


def joined(answer: Prediction) -> str:
    """The label of an answer; several labels are joined."""
    return answer.label if answer.labels is None else SEPARATOR.join(answer.labels)
