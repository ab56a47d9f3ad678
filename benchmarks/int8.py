"""int8 by token beside ONNX Runtime's int8 by batch: cost, drift, and what neighbours change.

    make bench-int8

The same checkpoint, exported once, quantised in both ways; every text of the example's test file is
asked alone and in mixed batches. CPU-milliseconds are one text alone, interleaved.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import ROOT, machine, write_result
from service.inference.classifier import Classifier
from service.package.manifest import MODEL_FILE, TOKENIZER_FILE, read_manifest
from service.package.package import seal_package
from training.evaluation.latency import batch_sensitivity, cpu_milliseconds
from training.export.gates import probability_drift
from training.export.onnx import export_graph, optimize
from training.export.quantize import quantize


def quantize_by_batch(source: Path, target: Path) -> None:
    """The usual way: fused operators, then `quantize_dynamic`, per channel, reduced range."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fused = source.parent / "fused.onnx"
    optimize(source, fused)
    quantize_dynamic(
        fused,
        target,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Attention", "Gemm", "Gather"],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


def candidate(graph: Path, package: Path, folder: Path) -> Classifier:
    """A graph with the tokenizer and the manifest of `package`."""
    folder.mkdir()
    shutil.copyfile(graph, folder / MODEL_FILE)
    shutil.copyfile(package / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    seal_package(folder, read_manifest(package))
    return Classifier.load(folder)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs/bench")
    parser.add_argument("--file", type=Path, default=ROOT / "examples/support_tickets/test.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/int8.json")
    arguments = parser.parse_args()
    with arguments.file.open(newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        fp32 = export_graph(
            arguments.run / "checkpoint", scratch / "exported", {"local_files_only": True}
        )
        graphs = {
            "fp32": fp32,
            "int8 by token": scratch / "token.onnx",
            "int8 by batch": scratch / "batch.onnx",
        }
        quantize(fp32, graphs["int8 by token"])
        quantize_by_batch(fp32, graphs["int8 by batch"])
        package = arguments.run / "package"
        classifiers = {
            name: candidate(graph, package, scratch / name) for name, graph in graphs.items()
        }
        found = compared(classifiers, texts)
        for name, graph in graphs.items():
            found[name]["bytes"] = graph.stat().st_size
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "texts": len(texts),
        "graphs": found,
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


def compared(classifiers: dict[str, Classifier], texts: list[str]) -> dict[str, dict[str, Any]]:
    """What each graph answers, beside fp32's answers to single texts, and what it costs."""
    found: dict[str, dict[str, Any]] = {}
    costs = cpu_milliseconds(classifiers)
    expected = classifiers["fp32"].classify(texts, batch_size=1)
    for name, classifier in classifiers.items():
        alone = classifier.classify(texts, batch_size=1)
        change, flips = batch_sensitivity(classifier, classifier.manifest, texts)
        drift = probability_drift(
            np.stack([answer.probs for answer in expected]),
            np.stack([answer.probs for answer in alone]),
            classifier.manifest.task,
        )
        agree = [one.label == other.label for one, other in zip(expected, alone, strict=True)]
        found[name] = {
            "cpu_ms_per_text": costs[name],
            "label_agreement_with_fp32": round(float(np.mean(agree)), 4),
            "mean_probability_drift": round(float(drift.mean()), 5),
            "largest_change_by_neighbours": round(change, 6),
            "answers_changed_by_neighbours": flips,
        }
    return found


if __name__ == "__main__":
    main()
