"""The package's README.md: a model card in the hub's format, filled from the manifest.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from service.package.manifest import GOLDEN_FILE, Manifest
from training.common.digits import measured
from training.evaluation.evaluate import summary
from training.export.promises import broken_promises

# Metrics of the manifest under the names that the hub knows.
HUB_METRICS = (("accuracy", "accuracy"), ("f1", "macro_f1"), ("f1", "micro_f1"))


def model_card(manifest: Manifest) -> str:
    """Markdown for people and for the hub; no code of ours reads it back."""
    base = manifest.provenance.get("base_model", {}).get("name", "unknown")
    rows = manifest.provenance.get("dataset", {})
    return f"""---
{_front_matter(manifest, base)}---

# {manifest.name} {manifest.version}

A text classifier, fine-tuned from `{base}` and exported to ONNX ({manifest.precision}) on
{manifest.created_at[:10]}. It reads {_input(manifest)}.

## Labels

{_answers(manifest)}

{_labels(manifest)}

## Measured on this package

{_metrics_table(manifest)}

{_calibration(manifest)}{_broken_promises(manifest)}

## What ships, and why

{_selection(manifest)}

## Made from

{rows.get("train_rows")} training and {rows.get("validation_rows")} validation rows, dataset
fingerprint `{str(rows.get("fingerprint"))[:16]}`. `manifest.json` has the whole recipe, versions
and hashes. {_on_all_rows(rows)}{_golden(manifest)}
"""


def _on_all_rows(rows: Mapping[str, Any]) -> str:
    """A sentence where the validation rows were trained on in the end; `rows` of the provenance."""
    if not rows.get("trained_on_all_rows"):
        return ""
    return (
        "The model was trained on all of these rows; a first one, without the validation rows, "
        "calibrated it and gave the measurements on them. "
    )


def _labels(manifest: Manifest) -> str:
    """A line for each label, with its threshold."""
    lines = []
    for label in manifest.labels:
        threshold = manifest.thresholds.get(label)
        lines.append(f"- `{label}`" + (f", from {threshold:g} on" if threshold else ""))
    return "\n".join(lines)


def _metrics_table(manifest: Manifest) -> str:
    """A line for each split that the package was measured on."""
    head = "| split | rows | | calibration error | rests on |\n|---|---|---|---|---|"
    lines = [
        f"| {split} | {metrics['rows']} | {summary(metrics)} | {_calibration_error(metrics)} | "
        f"{metrics.get('rests_on', '')} |"
        for split, metrics in manifest.metrics.items()
    ]
    return "\n".join([head, *lines])


def _front_matter(manifest: Manifest, base: str) -> str:
    """The part of a card that the hub reads."""
    results = [
        {
            "task": {"type": "text-classification"},
            "dataset": {"name": manifest.name, "type": manifest.name, "split": split},
            "metrics": [
                {"type": kind, "name": name, "value": round(metrics[name], 4)}
                for kind, name in HUB_METRICS
                if name in metrics
            ],
        }
        for split, metrics in manifest.metrics.items()
    ]
    content: dict[str, Any] = {
        "pipeline_tag": "text-classification",
        "library_name": "onnx",
        "tags": ["text-classification", "onnx", "whetstone"],
        "base_model": base,
        "model-index": [{"name": manifest.name, "results": results}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _golden(manifest: Manifest) -> str:
    if not manifest.files[GOLDEN_FILE].size:
        return "It has no golden texts."
    return (
        "`golden.jsonl` holds texts with this package's answers, by which every copy is tested: by "
        "default texts of the validation split."
    )


def _calibration_error(metrics: dict[str, Any]) -> str:
    return measured(metrics["ece"], metrics["rows"]) if "ece" in metrics else ""


def _calibration(manifest: Manifest) -> str:
    evidence = manifest.calibration
    if not evidence.get("method"):
        reason = evidence.get("reason")
        return f"Probabilities are not calibrated: {reason}." if reason else ""
    how = {
        "temperature": f"by a temperature of {manifest.temperature:g}",
        "platt": "by Platt scaling of each label",
    }[evidence["method"]]
    before, after = (
        measured(evidence[when]["ece"], evidence.get("rows", 0)) for when in ("before", "after")
    )
    return (
        f"Probabilities are calibrated {how}: on validation rows held out the expected "
        f"calibration error went from {before} to {after}."
    )


def _broken_promises(manifest: Manifest) -> str:
    """Where new rows may be answered with less precision than was wanted."""
    sentences = broken_promises(manifest)
    if not sentences:
        return ""
    return "\n\nThe wanted precision is not promised everywhere:\n\n" + "\n".join(
        f"- {sentence}" for sentence in sentences
    )


def _selection(manifest: Manifest) -> str:
    selection = manifest.selection
    if not selection:
        return ""
    lines = [
        "| graph | verdict | macro-F1 | agrees with the checkpoint | probability drift | MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in selection["candidates"]:
        cells = ["", "", "", ""]
        if row["verdict"] != "unavailable":
            cells = [
                _share(row.get("macro_f1"), selection["rows"]),
                measured(row["label_agreement"], selection["rows"]),
                f"{row['mean_probability_drift']:.4f}",
                f"{row['bytes'] / 1e6:.0f}",
            ]
        lines.append(f"| {row['name']} | {row['verdict']} | {' | '.join(cells)} |")
    reasons = [
        f"- {row['name']}, {row['verdict']}: {reason}"
        for row in selection["candidates"]
        for reason in row["reasons"]
    ]
    ships = f"On the {selection['rows']} validation rows. Ships: {selection['reason']}."
    return "\n".join([*lines, "", ships, *(["", *reasons] if reasons else [])])


def _share(value: float | None, rows: int) -> str:
    """A score, or nothing where no rows measure it."""
    return "" if value is None else measured(value, rows)


def _input(manifest: Manifest) -> str:
    text = "a pair of texts" if manifest.has_pairs else "a text"
    if manifest.long_text == "truncate":
        return f"the first {manifest.max_length} tokens of {text}"
    return (
        f"all of {text}, in windows of {manifest.max_length} tokens of which neighbors share "
        f"{manifest.window_stride}; the {manifest.window_aggregation} over the windows counts"
    )


def _answers(manifest: Manifest) -> str:
    if manifest.task == "multi_label":
        text = "Any number of these, each when its probability reaches its threshold:"
    elif manifest.positive_label is not None:
        text = f"One of two; `{manifest.positive_label}` when it reaches its threshold:"
    else:
        text = "One of these:"
    if manifest.abstain_threshold is not None:
        text += (
            f"\n\nAn answer with a score below {manifest.abstain_threshold:g} is marked as "
            "abstained."
        )
    return text
