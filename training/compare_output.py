"""A comparison for people and for programs: the table on screen, `compare.json`, `flips.csv`."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from service.classifier import Prediction
from service.model_package import write_text
from training.compare import NO_CHAMPION, Comparison, LabelChange, Side
from training.digits import FEWEST, decimals, decimals_of, difference_decimals, measured
from training.gates import SIGNIFICANCE
from training.layout import COMPARE_FILE, FLIPS_FILE
from training.significance import Difference, Metric

# What joins the labels of a row in the CSV.
SEPARATOR = "|"
COMPARISONS = "comparisons"
VERSIONED_PACKAGES = ("whetstone", "onnxruntime", "tokenizers", "numpy", "scipy")
# Labels on screen beside those that changed significantly.
SCREEN_LABELS = 5


@dataclass(frozen=True)
class Measure:
    """A number of both sides; `form` is how it is written, `difference` is of the same rows."""

    name: str
    before: float | None
    after: float | None
    form: str
    difference: Difference | None = None


def measures(found: Comparison) -> list[Measure]:
    """What every table of a comparison shows, in its order."""
    old, new = found.champion, found.challenger
    several = new.manifest.task == "multi_label"
    paired: list[tuple[str, Metric]] = [
        ("micro-F1", "micro_f1") if several else ("accuracy", "accuracy"),
        ("macro-F1", "macro_f1"),
    ]
    alone = [("all right", "accuracy"), ("avg. precision", "average_precision")]
    paths = [(name, (key,)) for name, key in (alone if several else [])] + [
        ("ECE", ("calibration", "ece")),
        ("Brier score", ("calibration", "brier")),
        ("answered", ("abstention", "coverage")),
        ("right of those", ("abstention", "precision")),
    ]
    rows, size = [], len(found.split)
    for name, key in paired:
        if found.paired is None:
            rows.append(_alone(name, None, new.metrics[key], size))
        else:
            one = found.paired.differences[key]
            form = f".{decimals(one.half_width)}f"
            rows.append(Measure(name, one.before, one.after, form, one))
    rows += [_alone(name, _value(old, path), _value(new, path), size) for name, path in paths]
    rows.append(
        Measure(
            "model, MB",
            None if old is None else old.model_bytes / 1e6,
            new.model_bytes / 1e6,
            ".1f",
        )
    )
    rows += [
        Measure(f"ms, {length} tokens", None if old is None else old.cpu_ms[length], cost, ".2f")
        for length, cost in new.cpu_ms.items()
    ]
    return [one for one in rows if one.before is not None or one.after is not None]


def _alone(name: str, before: float | None, after: float | None, rows: int) -> Measure:
    """A share of so many rows, with the decimals that the less certain of both carries."""
    known = [value for value in (before, after) if value is not None]
    digits = min((decimals_of(value, rows) for value in known), default=FEWEST)
    return Measure(name, before, after, f".{digits}f")


def _value(side: Side | None, path: tuple[str, ...]) -> float | None:
    value: Any = None if side is None else side.metrics
    for key in path:
        value = None if value is None else value.get(key)
    return None if value is None else float(value)


def print_comparison(found: Comparison) -> None:
    """Both sides' numbers, the labels that changed most, the warnings and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    # A sentence stays one line where the output is no terminal.
    say = partial(console.print, highlight=False, soft_wrap=True)
    table = Table(title=f"{found.where}, {len(found.split)} rows", title_justify="left")
    table.add_column("")
    for name, side in (("champion", found.champion), ("challenger", found.challenger)):
        version = side.manifest.version if side else "none"
        table.add_column(f"{name}\n{version}", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for one in measures(found):
        cells = [
            "-" if value is None else f"{value:{one.form}}" for value in (one.before, one.after)
        ]
        points = interval = ""
        if one.before is not None and one.after is not None:
            points = signed(one.after - one.before, one.form)
        if one.difference is not None and one.before is not None and one.after is not None:
            form = f".{difference_decimals(one.difference.half_width)}f"
            points = signed(one.after - one.before, form)
            interval = " to ".join(signed(end, form) for end in one.difference.ends)
        table.add_row(one.name, *cells, points, interval)
    console.print(table)
    if found.paired is not None:
        paired = found.paired
        say(
            f"answered differently: {len(paired.flips)} rows; only the champion is right in "
            f"{paired.lost}, only the challenger in {paired.gained} (exact McNemar p = "
            f"{paired.p_value:.2g})"
        )
        for change in changed_most(paired.per_label):
            say(_label_line(change))
    if found.left_out:
        say(f"not compared, with labels that only one of the two knows: {found.left_out} rows")
    if found.dropped:
        say(f"left out, since they cannot be used: {found.dropped} rows")
    for warning in found.warnings:
        say(f"warning: {warning}")
    say(found.sentence)


def signed(value: float, form: str = ".4f") -> str:
    """A difference; one that is written as zero has no sign."""
    written = f"{value:+{form}}"
    return written if float(written) else written[1:]


def changed_most(changes: list[LabelChange]) -> list[LabelChange]:
    """The labels that changed significantly, and of the others those that lost most F1."""
    significant = [one for one in changes if min(one.worse, one.better) < SIGNIFICANCE]
    others = [one for one in changes if one not in significant and _gain(one) < 0]
    return significant + others[: max(0, SCREEN_LABELS - len(significant))]


def _gain(change: LabelChange) -> float:
    return (change.after or 0) - (change.before or 0)


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


def default_folder(found: Comparison) -> Path:
    """Where a comparison is written when nothing else is said: by pair and by data."""
    champion = found.champion.manifest.version if found.champion else NO_CHAMPION
    name = f"{champion}-{found.challenger.manifest.version}-{found.sha256[:8]}"
    return Path(COMPARISONS) / name


def write_comparison(found: Comparison, folder: Path) -> list[Path]:
    """Write `compare.json`, last, and against a champion `flips.csv`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / COMPARE_FILE]
    # Those of another comparison would be taken for this one's.
    (folder / FLIPS_FILE).unlink(missing_ok=True)
    if found.paired is not None:
        written.append(folder / FLIPS_FILE)
        write_text(folder / FLIPS_FILE, _flips_csv(found))
    content = json.dumps(as_json(found), indent=2, ensure_ascii=False)
    write_text(folder / COMPARE_FILE, content + "\n")
    return written


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison in numbers, without a text."""
    paired, same = found.paired, found.champion
    content: dict[str, Any] = {
        "compared_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": found.outcome,
        "sentence": found.sentence,
        "reasons": dict(found.reasons),
        "warnings": found.warnings,
        "bounds": asdict(found.bounds),
        "floors_measured_on": found.floors_measured_on,
        "allow_label_change": found.allow_label_change,
        "data": {
            "file": found.where,
            "sha256": found.sha256,
            "rows": len(found.split),
            "dropped_rows": found.dropped,
            "rows_with_labels_of_one_side": found.left_out,
        },
        "labels_gone": found.gone,
        "labels_come": found.come,
        "champion": None if same is None else _side_json(same),
        "challenger": _side_json(found.challenger),
        "packages": {name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES},
    }
    if paired is not None:
        content |= {
            "differences": {
                name: asdict(one)
                | dict(zip(("low", "high"), one.ends, strict=True))
                | {"point": one.point, "half_width": one.half_width}
                for name, one in paired.differences.items()
            },
            "rows_needed": paired.differences["macro_f1"].rows_needed(found.bounds.max_half_width),
            "mcnemar": {
                "only_champion_right": paired.lost,
                "only_challenger_right": paired.gained,
                "p": paired.p_value,
            },
            "flips": len(paired.flips),
            "per_label": {one.label: _without_label(one) for one in paired.per_label},
        }
    return content


def _without_label(change: LabelChange) -> dict[str, Any]:
    content = asdict(change)
    del content["label"]
    return content


def _side_json(side: Side) -> dict[str, Any]:
    manifest = side.manifest
    return {
        "named": side.named,
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "format_version": manifest.format_version,
        "precision": manifest.precision,
        "labels": len(manifest.labels),
        "metrics": {
            key: value
            for key, value in side.metrics.items()
            if key in ("accuracy", "micro_f1", "macro_f1", "samples_f1", "abstention")
        }
        | {key: side.metrics["calibration"][key] for key in ("ece", "brier", "log_loss")},
        "model_bytes": side.model_bytes,
        "cpu_ms_per_text": side.cpu_ms,
        "rows_it_was_made_with": None
        if side.overlap is None
        else {"found": len(side.overlap.rows), "looked_up": side.overlap.looked_at},
    }


def _flips_csv(found: Comparison) -> str:
    """Every flip as a line; rows are counted from 1, without the heading."""
    assert found.paired is not None  # noqa: S101 - the caller asked
    assert found.champion is not None  # noqa: S101
    pairs = found.challenger.manifest.has_pairs
    texts = ["text", "text_pair"] if pairs else ["text"]
    lines = io.StringIO(newline="")
    # Quoted, since a lone carriage return within a text would end the line for some readers.
    writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    columns = ["row", "change", "label", "champion", "champion_score"]
    columns += ["challenger", "challenger_score", *texts]
    writer.writerow(columns)
    for flip in found.paired.flips:
        old, new = found.champion.answers[flip.row], found.challenger.answers[flip.row]
        text = found.split.texts[flip.row]
        writer.writerow(
            [
                int(found.rows[flip.row]) + 1,
                flip.kind,
                SEPARATOR.join(found.split.labels[flip.row]),
                joined(old),
                f"{old.score:.4f}",
                joined(new),
                f"{new.score:.4f}",
                *([text] if isinstance(text, str) else text),
            ]
        )
    return lines.getvalue()


def joined(answer: Prediction) -> str:
    """The label of an answer, or its labels."""
    return answer.label if answer.labels is None else SEPARATOR.join(answer.labels)
