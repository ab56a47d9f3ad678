"""The package's README.md: a model card in the hub's format, filled from the manifest.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from typing import Any

import yaml

from service.model_package import GOLDEN_FILE, Manifest
from training.digits import measured
from training.evaluate import summary
from training.promises import broken_promises

# Metrics of the manifest under the names that the hub knows.
HUB_METRICS = (("accuracy", "accuracy"), ("f1", "macro_f1"), ("f1", "micro_f1"))


def model_card(manifest: Manifest) -> str:
    """Markdown for people and for the hub; nothing of ours reads it back."""
    base = manifest.provenance.get("base_model", {}).get("name", "unknown")
    rows = manifest.provenance.get("dataset", {})
    metrics = "\n".join(
        f"| {split} | {found['rows']} | {summary(found)} | {_calibration_error(found)} | "
        f"{found.get('rests_on', '')} |"
        for split, found in manifest.metrics.items()
    )
    labels = "\n".join(
        f"- `{label}`" + (f", from {t:g} on" if (t := manifest.thresholds.get(label)) else "")
        for label in manifest.labels
    )
    return f"""---
{_front_matter(manifest, base)}---

# {manifest.name} {manifest.version}

A text classifier, fine-tuned from `{base}` and exported to ONNX ({manifest.precision}) on
{manifest.created_at[:10]}. It reads {_reading(manifest)}.

## Labels

{_answers(manifest)}

{labels}

## Measured on this package

| split | rows | | calibration error | rests on |
|---|---|---|---|---|
{metrics}

{_calibrated(manifest)}{_promised(manifest)}

## What ships, and why

{_selection(manifest)}

## Made from

{rows.get("train_rows")} training and {rows.get("validation_rows")} validation rows, dataset
fingerprint `{str(rows.get("fingerprint"))[:16]}`. `manifest.json` has the whole recipe, versions
and hashes. {_golden(manifest)}
"""


def _front_matter(manifest: Manifest, base: str) -> str:
    """What the hub reads of a card."""
    results = [
        {
            "task": {"type": "text-classification"},
            "dataset": {"name": manifest.name, "type": manifest.name, "split": split},
            "metrics": [
                {"type": kind, "name": name, "value": round(found[name], 4)}
                for kind, name in HUB_METRICS
                if name in found
            ],
        }
        for split, found in manifest.metrics.items()
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
        "`golden.jsonl` holds the texts, with this package's answers, that every copy is tested "
        "by: by default some of the validation split."
    )


def _calibration_error(metrics: dict[str, Any]) -> str:
    return measured(metrics["ece"], metrics["rows"]) if "ece" in metrics else ""


def _calibrated(manifest: Manifest) -> str:
    found = manifest.calibration
    if not found.get("method"):
        reason = found.get("reason")
        return f"Probabilities are not calibrated: {reason}." if reason else ""
    how = {
        "temperature": f"by a temperature of {manifest.temperature:g}",
        "platt": "by Platt scaling of each label",
    }[found["method"]]
    before, after = (
        measured(found[when]["ece"], found.get("rows", 0)) for when in ("before", "after")
    )
    return (
        f"Probabilities are calibrated {how}: on validation rows held out the expected "
        f"calibration error went from {before} to {after}."
    )


def _promised(manifest: Manifest) -> str:
    """What precision new rows may have less of than was wanted."""
    said = broken_promises(manifest)
    if not said:
        return ""
    return "\n\nThe precision that was wanted is not promised of all:\n\n" + "\n".join(
        f"- {sentence}" for sentence in said
    )


def _selection(manifest: Manifest) -> str:
    found = manifest.selection
    if not found:
        return ""
    lines = [
        "| graph | verdict | macro-F1 | agrees with the checkpoint | probability drift | MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["candidates"]:
        cells = ["", "", "", ""]
        if row["verdict"] != "unavailable":
            cells = [
                measured(row["macro_f1"], found["rows"]),
                measured(row["label_agreement"], found["rows"]),
                f"{row['mean_probability_drift']:.4f}",
                f"{row['bytes'] / 1e6:.0f}",
            ]
        lines.append(f"| {row['name']} | {row['verdict']} | {' | '.join(cells)} |")
    reasons = [
        f"- {row['name']}, {row['verdict']}: {reason}"
        for row in found["candidates"]
        for reason in row["reasons"]
    ]
    ships = f"On the {found['rows']} validation rows. Ships: {found['reason']}."
    return "\n".join([*lines, "", ships, *(["", *reasons] if reasons else [])])


def _reading(manifest: Manifest) -> str:
    what = "a pair of texts" if manifest.has_pairs else "a text"
    if manifest.long_text == "truncate":
        return f"the first {manifest.max_length} tokens of {what}"
    return (
        f"all of {what}, in windows of {manifest.max_length} tokens of which neighbours share "
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
