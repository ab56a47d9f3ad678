"""The package's README.md: a model card, filled from the manifest."""

from __future__ import annotations

from service.model_package import Manifest
from training.evaluate import summary


def model_card(manifest: Manifest) -> str:
    """Markdown for people; nothing reads it back."""
    base = manifest.provenance.get("base_model", {}).get("name", "unknown")
    rows = manifest.provenance.get("dataset", {})
    metrics = "\n".join(
        f"| {split} | {found['rows']} | {summary(found)} |"
        for split, found in manifest.metrics.items()
    )
    labels = "\n".join(
        f"- `{label}`" + (f", from {t:g} on" if (t := manifest.thresholds.get(label)) else "")
        for label in manifest.labels
    )
    return f"""# {manifest.name} {manifest.version}

A text classifier, fine-tuned from `{base}` and exported to ONNX ({manifest.precision}) on
{manifest.created_at[:10]}. It reads {_reading(manifest)}.

## Labels

{_answers(manifest)}

{labels}

## Measured on this package

| split | rows | |
|---|---|---|
{metrics}

The checkpoint and the thresholds were chosen by the validation split, so that split's numbers
flatter a little.

## Made from

{rows.get("train_rows")} training and {rows.get("validation_rows")} validation rows, dataset
fingerprint `{str(rows.get("fingerprint"))[:16]}`. `manifest.json` has the whole recipe, versions
and hashes. `golden.jsonl` holds a few of the validation texts with this package's answers.
"""


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
