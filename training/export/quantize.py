"""fp32 ONNX graph → int8: weights by output channel, activations by token at run time.

Every MatMul with constant weights, on the tokens of the encoder, becomes

    scale  = max |x| over the token's features             (one number a token)
    q      = round(x / scale * 127) + 128                   (uint8)
    result = (q - 128) · W_int8 · weight_scale / 127 · scale

and every embedding table is kept as int8 with a scale for each of its rows. Activations by row and
weights by column are the vector-wise quantization of Dettmers et al. 2022, "LLM.int8()", section
3.1, and the token-wise one of Yao et al. 2022, "ZeroQuant", section 4.1.

ONNX Runtime's own `quantize_dynamic` takes one activation scale from the whole batch, padding
included, so that a text's answer depends on its neighbors: probabilities of a fine-tuned MiniLM
changed by up to 0.33. Here no number of one text enters another's. The classification head stays in
fp32: it holds few weights and decides the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# On x86-64 without VNNI, two products of 8 bits are added up in 16 with saturation: 255 * 63 * 2
# fits, 255 * 127 * 2 does not (ONNX Runtime's documentation, "Quantize ONNX models").
REDUCED_RANGE = 63
FULL_RANGE = 127
ACTIVATION_RANGE = 127
ACTIVATION_ZERO = 128
# Names of the constants that all quantized nodes share.
PREFIX = "whetstone_"
STEP, ZERO, ONE, LEAST, LAST_AXIS = (
    PREFIX + name for name in ("step", "zero", "one", "least", "last_axis")
)
# ReduceMax takes its axes as an input from here on.
AXES_AS_INPUT = 18
# A node with such a part in its name belongs to the classification head. Most heads are a Gemm with
# one row a text, which is not quantized anyway; a head without a bias is a MatMul.
HEAD_NAMES = frozenset({"classifier", "head", "pooler", "score"})


def quantize(
    source: Path, target: Path, *, embeddings: bool = True, full_range: bool = False
) -> int:
    """Write the graph `source` to `target` in int8.

    Args:
        embeddings: quantize embedding tables, too.
        full_range: use all 8 bits of a weight, which processors without VNNI may saturate.

    Returns:
        How many weights were quantized.
    """
    import onnx

    model = onnx.load(source)
    rewriter = _Rewriter(model, FULL_RANGE if full_range else REDUCED_RANGE)
    for node in list(model.graph.node):
        in_head = HEAD_NAMES & set(node.name.split("/"))
        if node.op_type == "MatMul" and rewriter.is_matrix(node.input[1]) and not in_head:
            rewriter.matmul(node)
        elif embeddings and node.op_type == "Gather" and rewriter.is_matrix(node.input[0]):
            rewriter.gather(node)
        else:
            rewriter.keep(node)
    rewriter.finish()
    onnx.save(model, target)
    return rewriter.quantized


class _Rewriter:
    """Rewrites the nodes of a graph, one by one in their order."""

    def __init__(self, model: ModelProto, weight_range: int) -> None:
        self.quantized = 0
        self._model = model
        self._graph: GraphProto = model.graph
        self._weights: dict[str, TensorProto] = {
            weight.name: weight for weight in self._graph.initializer
        }
        # A weight that a caller may give instead is no constant.
        self._inputs = {value.name for value in self._graph.input}
        self._range = weight_range
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._nodes: list[NodeProto] = []
        self._rows: dict[str, tuple[str, str]] = {}
        self._constant(STEP, np.float32(1 / ACTIVATION_RANGE))
        self._constant(ZERO, np.uint8(ACTIVATION_ZERO))
        self._constant(ONE, np.float32(1))
        # The divisor of a token of zeros.
        self._constant(LEAST, np.float32(1e-12))
        self._constant(LAST_AXIS, np.asarray([-1], dtype=np.int64))

    def is_matrix(self, name: str) -> bool:
        """Whether `name` is a constant matrix of fp32."""
        from onnx import TensorProto

        weight = self._weights.get(name)
        return (
            weight is not None
            and name not in self._inputs
            and weight.data_type == TensorProto.FLOAT
            and len(weight.dims) == 2
            and min(weight.dims) > 1
        )

    def keep(self, node: NodeProto) -> None:
        """Keep a node as it is."""
        self._nodes.append(node)

    def matmul(self, node: NodeProto) -> None:
        """Replace a MatMul by the integer one, its input quantized by row."""
        rows, row_scale = self._quantized_rows(node.input[0])
        weight = self._array(node.input[1])
        scale = _scale(np.abs(weight).max(axis=0), self._range)
        name, product = node.input[1], PREFIX + node.output[0]
        # `rows` counts steps of 1/127 of the row's largest value.
        integers_name, scale_name = self._integers(
            name + "_columns", weight, scale, self._range, scale / ACTIVATION_RANGE
        )
        self._add(
            "MatMulIntegerToFloat",
            [rows, integers_name, ONE, scale_name, ZERO],
            product,
            domain="com.microsoft",
        )
        self._add("Mul", [product, row_scale], node.output[0])

    def gather(self, node: NodeProto) -> None:
        """Keep an embedding table as int8, each row with its own scale."""
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis != 0:
            return self.keep(node)
        name, output = node.input[0], node.output[0]
        table = self._array(name)
        scale = _scale(np.abs(table).max(axis=1, keepdims=True), ACTIVATION_RANGE)
        integers_name, scale_name = self._integers(
            name + "_rows", table, scale, ACTIVATION_RANGE, scale
        )
        integers, scales, floats = (
            PREFIX + part + output for part in ("found_", "scales_", "floats_")
        )
        self._add("Gather", [integers_name, node.input[1]], integers, axis=0)
        self._add("Gather", [scale_name, node.input[1]], scales, axis=0)
        self._add("Cast", [integers], floats, to=1)  # TensorProto.FLOAT
        self._add("Mul", [floats, scales], output)
        return None

    def finish(self) -> None:
        """Put the new nodes in place, and drop the weights that no node reads any more."""
        from onnx import helper

        graph = self._graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        read = set(_read_names(graph)) | {output.name for output in graph.output}
        kept = [weight for weight in self._weights.values() if weight.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        # Shapes of removed tensors would only confuse.
        del graph.value_info[:]
        if not any(opset.domain == "com.microsoft" for opset in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def _integers(
        self, name: str, weight: np.ndarray, scale: np.ndarray, steps: int, step_values: np.ndarray
    ) -> tuple[str, str]:
        """Constants with the int8 form of `weight` and the values of its steps; made once."""
        names = (name + "_int8", name + "_scale")
        if names[0] not in self._weights:
            integers = np.clip(np.round(weight / scale), -steps, steps)
            self._constant(names[0], integers.astype(np.int8))
            self._constant(names[1], step_values.astype(np.float32))
            self.quantized += 1
        return names

    def _quantized_rows(self, name: str) -> tuple[str, str]:
        """The tensor `name` as uint8 and the scale of each of its rows; made once a tensor."""
        if name not in self._rows:
            size, largest, scale, share, rows = (
                PREFIX + part + name for part in ("abs_", "max_", "scale_", "share_", "rows_")
            )
            self._add("Abs", [name], size)
            if self._opset >= AXES_AS_INPUT:
                self._add("ReduceMax", [size, LAST_AXIS], largest, keepdims=1)
            else:
                self._add("ReduceMax", [size], largest, keepdims=1, axes=[-1])
            self._add("Max", [largest, LEAST], scale)
            self._add("Div", [name, scale], share)
            self._add("QuantizeLinear", [share, STEP, ZERO], rows)
            self._rows[name] = (rows, scale)
        return self._rows[name]

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(
            helper.make_node(kind, inputs, [output], name=PREFIX + kind + output, **attributes)
        )

    def _array(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._weights[name]), dtype=np.float32)

    def _constant(self, name: str, value: np.ndarray | np.generic) -> None:
        from onnx import numpy_helper

        self._weights[name] = numpy_helper.from_array(np.asarray(value), name)


def _read_names(graph: GraphProto) -> Iterator[str]:
    """The names that nodes read, also those of the graphs inside `If` and `Loop`."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read_names(attribute.g)


def _scale(largest: np.ndarray, steps: int) -> np.ndarray:
    """The value of one step; for a channel of zeros any value will do."""
    return np.asarray(np.where(largest > 0, largest, 1) / steps)
