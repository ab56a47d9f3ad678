"""The graphs that may ship, each made from the fp32 graph as it was exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from service.package.manifest import Precision
from training.common.errors import ExportError
from training.export.onnx import optimize
from training.export.quantize import quantize

# The values of a recipe's `precision`; a family has a first variant, and may have fallbacks.
Family = Literal["fp32", "optimized", "int8", "fp16"]


@dataclass(frozen=True)
class GraphVariant:
    """A way to make a graph: `make` reads the fp32 graph at its first argument, writes its second.

    `make` raises ExportError where this model has no such graph.
    """

    name: str
    family: Family
    precision: Precision
    make: Callable[[Path, Path], object]


def make_fp16(source: Path, target: Path) -> None:
    """Write weights and activations in half precision; inputs and logits stay as they were.

    Raises:
        ExportError: the conversion does not know an operator.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"the graph cannot be converted to fp16: {error}") from None


def make_int8(source: Path, target: Path, **options: bool) -> None:
    """Write the graph that `training.export.quantize` makes.

    Raises:
        ExportError: the graph has no matrix to quantize.
    """
    if not quantize(source, target, **options):
        raise ExportError("the graph has no matrix that can be quantized")


# The first variant of each family.
VARIANTS: dict[Family, GraphVariant] = {
    "fp32": GraphVariant("fp32", "fp32", "fp32", shutil.copyfile),
    "optimized": GraphVariant("optimized", "optimized", "fp32", optimize),
    "int8": GraphVariant("int8", "int8", "int8", make_int8),
    "fp16": GraphVariant("fp16", "fp16", "fp16", make_fp16),
}
# Tried one after another where the gates refuse the first variant, or it cannot be made.
FALLBACKS: dict[Family, tuple[GraphVariant, ...]] = {
    "int8": (
        GraphVariant(
            "int8, embeddings in fp32", "int8", "int8", partial(make_int8, embeddings=False)
        ),
        GraphVariant(
            "int8, full range",
            "int8",
            "int8",
            partial(make_int8, embeddings=False, full_range=True),
        ),
    ),
}
