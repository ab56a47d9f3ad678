"""The report's sections about what else was tried and tested: candidates and behavior tests."""

from __future__ import annotations

from typing import Any

from service.package.manifest import Manifest
from training.common.digits import difference_decimals
from training.evaluation.report.formats import NOTHING, score, signed
from training.evaluation.report.render import Section

# A candidate's numbers: key, name and what it is.
MEASURES = (
    ("accuracy", "Accuracy", "rows with exactly the right answer"),
    ("macro_f1", "Macro-F1", "every label counts alike"),
    ("label_agreement", "Agreement", "rows answered as by the checkpoint"),
    ("mean_probability_drift", "Mean drift", "of a probability"),
    ("largest_probability_drift", "Largest drift", "of a probability"),
    ("largest_change_by_neighbours", "Batch", "change with the other texts of a batch"),
)
# Measures that are rough with few rows; drifts are hardly noisy.
SHARES = ("accuracy", "macro_f1", "label_agreement")
VERDICT_STYLES = {"passed": "good", "refused": "bad"}


def candidates(manifest: Manifest) -> Section | None:
    """Which graphs were tried, which one ships and why the others do not."""
    selection = manifest.selection
    tried: list[dict[str, Any]] = selection.get("candidates", [])
    if not tried:
        return None
    chosen, rows = selection.get("chosen"), selection.get("rows")
    data = {
        "rows": rows,
        "reason": selection.get("reason", chosen),
        "forced": selection.get("forced"),
        "candidates": tried,
        "lines": [
            _verdict_line(tried, chosen),
            *_measure_lines(tried, rows),
            *_size_and_latency_lines(tried),
        ],
        "reasons": [
            {"name": x["name"], "verdict": x["verdict"], "reasons": "; ".join(x["reasons"])}
            for x in tried
            if x.get("reasons")
        ],
    }
    return Section("candidates", "Candidates", "candidates.html", data)


def _verdict_line(tried: list[dict[str, Any]], chosen: str | None) -> dict[str, Any]:
    cells = [
        {
            "name": x["verdict"],
            "style": VERDICT_STYLES.get(x["verdict"], "open"),
            "ships": x["name"] == chosen,
        }
        for x in tried
    ]
    return {"kind": "verdict", "cells": cells}


def _measure_lines(tried: list[dict[str, Any]], rows: int | None) -> list[dict[str, Any]]:
    """A line for each measure that a candidate has, a cell for each candidate."""
    lines = []
    for key, name, about in MEASURES:
        if any(x.get(key) is not None for x in tried):
            size = rows if key in SHARES else None
            cells = [{"text": score(x.get(key), size), "value": x.get(key)} for x in tried]
            lines.append({"kind": "measure", "name": name, "about": about, "cells": cells})
        if key == "macro_f1":
            lines.append(_difference_line(tried))
    return lines


def _difference_line(tried: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "difference",
        "name": "Difference of macro-F1",
        "about": "to the checkpoint, with its 95 % interval over the same rows",
        "cells": [_difference(x.get("macro_f1_difference") or {}) for x in tried],
    }


def _difference(difference: dict[str, float]) -> dict[str, Any]:
    point = difference.get("point")
    if "low" not in difference or "high" not in difference:
        return {"text": signed(point), "value": point, "interval": None}
    low, high = difference["low"], difference["high"]
    digits = difference_decimals((high - low) / 2)
    interval = f"{signed(low, digits)} to {signed(high, digits)}"
    return {"text": signed(point, digits), "value": point, "interval": interval}


def _size_and_latency_lines(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sizes = [x.get("bytes") for x in tried]
    cells = [{"text": "" if x is None else f"{x / 1e6:.1f}", "value": x} for x in sizes]
    lines = [{"kind": "measure", "name": "Size", "about": "MB", "cells": cells}]
    latencies = [x.get("cpu_ms_per_text") or {} for x in tried]
    for length in sorted({length for x in latencies for length in x}, key=int):
        cells = [{"text": f"{x.get(length, 0):.2f}", "value": x.get(length)} for x in latencies]
        name = f"CPU time of {length} tokens"
        lines.append({"kind": "measure", "name": name, "about": "ms a text", "cells": cells})
    return lines


def behavior_tests(results: dict[str, Any] | None) -> Section | None:
    """How many behavior tests passed, by kind, and the failures."""
    if results is None:
        return None
    kinds = [
        {
            "name": kind,
            **counts,
            "share": counts["passed"] / max(counts["passed"] + counts["failed"], 1),
        }
        for kind, counts in results.get("kinds", {}).items()
    ]
    data = {
        "passed": int(results.get("passed", 0)),
        "failed": int(results.get("failed", 0)),
        "kinds": kinds,
        "failures": [_failure(failure) for failure in results.get("failures", [])],
    }
    return Section("behavior", "Behavior", "behavior.html", data)


def _failure(failure: dict[str, Any]) -> dict[str, Any]:
    text = failure.get("text", "")
    return {
        "kind": failure.get("kind", ""),
        "name": failure.get("name", ""),
        "expected": failure.get("expected", NOTHING),
        "got": failure.get("got", NOTHING),
        "texts": [text] if isinstance(text, str) else text,
    }
