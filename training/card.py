"""The package's README.md: a model card, filled from the manifest."""

from __future__ import annotations

from service.model_package import Manifest


def model_card(manifest: Manifest) -> str:
    """Markdown for people; nothing reads it back."""
    base = manifest.provenance.get("base_model", {}).get("name", "unknown")
    rows = manifest.provenance.get("dataset", {})
    metrics = "\n".join(
        f"| {split} | {found['rows']} | {found['accuracy']:.4f} | {found['macro_f1']:.4f} |"
        for split, found in manifest.metrics.items()
    )
    labels = "\n".join(f"- `{label}`" for label in manifest.labels)
    return f"""# {manifest.name} {manifest.version}

A text classifier, fine-tuned from `{base}` and exported to ONNX ({manifest.precision}) on
{manifest.created_at[:10]}. It reads the first {manifest.max_length} tokens of a text.

## Labels

{labels}

## Measured on this package

| split | rows | accuracy | macro-F1 |
|---|---|---|---|
{metrics}

The checkpoint was chosen by the validation split, so that split's numbers flatter a little.

## Made from

{rows.get("train_rows")} training and {rows.get("validation_rows")} validation rows, dataset
fingerprint `{str(rows.get("fingerprint"))[:16]}`. `manifest.json` has the whole recipe, versions
and hashes. `golden.jsonl` holds a few of the validation texts with this package's answers.
"""
