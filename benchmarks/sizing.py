"""How many texts a second a core manages, by model and length: what to size a deployment by.

    make bench-sizing

Encoders of common shapes with random weights (how fast a model is does not hang on what it has
learned), exported, quantised and run as packages are: one thread, one text at a time. Batching
gains a little for short texts and nothing for long ones, so this is what to count on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.inference.classifier import Classifier
from service.package.manifest import MODEL_FILE, TOKENIZER_FILE, read_manifest
from service.package.package import seal_package
from training.evaluation.latency import cpu_milliseconds
from training.export.onnx import export_graph
from training.export.quantize import quantize

# Layers, hidden size, heads, inner size.
SHAPES = {
    "MiniLM-L6 (22.7 M parameters)": (6, 384, 12, 1536),
    "DistilBERT (66 M)": (6, 768, 12, 3072),
    "BERT-base (110 M)": (12, 768, 12, 3072),
}


def graph_of(shape: tuple[int, int, int, int], vocabulary: int, labels: int, folder: Path) -> Path:
    """An exported encoder of that shape, in fp32."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    layers, hidden, heads, inner = shape
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "checkpoint")
    return export_graph(folder / "checkpoint", folder / "exported", {"local_files_only": True})


def packages_of(
    shape: tuple[int, int, int, int], package: Path, folder: Path
) -> dict[str, Classifier]:
    """Packages with that encoder in fp32 and in int8; the tokenizer is that of `package`."""
    manifest = read_manifest(package)
    tokenizer = json.loads((package / TOKENIZER_FILE).read_text(encoding="utf-8"))
    vocabulary = len(tokenizer["model"]["vocab"])
    graph = graph_of(shape, vocabulary, len(manifest.labels), folder)
    found = {}
    for precision in ("fp32", "int8"):
        made = folder / precision
        made.mkdir()
        shutil.copyfile(package / TOKENIZER_FILE, made / TOKENIZER_FILE)
        if precision == "fp32":
            shutil.copyfile(graph, made / MODEL_FILE)
        else:
            quantize(graph, made / MODEL_FILE)
        seal_package(made, manifest.model_copy(update={"precision": precision}))
        found[precision] = Classifier.load(made, threads=1)
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The table for the README."""
    lengths = list(result["sizes"][0]["texts_per_second_per_core"])
    head = ["texts a second and core", "", "MB", *(f"{length} tokens" for length in lengths)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for one in result["sizes"]:
        rates = [f"{rate:,.3g}" for rate in one["texts_per_second_per_core"].values()]
        cells = [one["model"], one["precision"], f"{one['megabytes']:,}", *rates]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sizing.json")
    arguments = parser.parse_args()
    sizes: list[dict[str, Any]] = []
    for name, shape in tqdm(SHAPES.items(), desc="sizing", unit="model"):
        with tempfile.TemporaryDirectory(prefix="whetstone-") as temporary:
            classifiers = packages_of(shape, arguments.package, Path(temporary))
            costs = cpu_milliseconds(classifiers)
            for precision, by_length in costs.items():
                size = classifiers[precision].manifest.files[MODEL_FILE].size
                sizes.append(
                    {
                        "model": name,
                        "precision": precision,
                        "megabytes": round(size / 1e6),
                        "cpu_ms_per_text": by_length,
                        "texts_per_second_per_core": {
                            length: round(1000 / cost, 1) for length, cost in by_length.items()
                        },
                    }
                )
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "sizes": sizes,
    }
    print(markdown(result))
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
