"""int8 graphs: nearly the same answers, and none that depends on a neighbour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.inference.classifier import Classifier
from training.export.quantize import FULL_RANGE, REDUCED_RANGE, quantize

FEATURES, OUTPUTS, WORDS = 24, 10, 30


def small_graph(folder: Path, opset: int = 18) -> tuple[Path, np.ndarray, np.ndarray]:
    """Words → embeddings → a matrix → another head of Gemm; the table and the matrix."""
    random = np.random.default_rng(0)
    table = random.normal(size=(WORDS, FEATURES)).astype(np.float32)
    # Rows and columns of very different size: a scale for the whole would lose the small ones.
    table *= np.logspace(-2, 2, WORDS, dtype=np.float32)[:, None]
    matrix = random.normal(size=(FEATURES, OUTPUTS)).astype(np.float32)
    matrix *= np.logspace(-2, 2, OUTPUTS, dtype=np.float32)
    head = random.normal(size=(OUTPUTS, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["embedded"]),
            helper.make_node("MatMul", ["embedded", "matrix"], ["product"]),
            helper.make_node("Flatten", ["product"], ["flat"], axis=2),
            helper.make_node("Gemm", ["flat", "head"], ["logits"]),
        ],
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [
            helper.make_tensor_value_info("product", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(head, "head"),
        ],
    )
    path = folder / f"small-{opset}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path, table, matrix


def run(path: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["product"], {"ids": ids})[0])


@pytest.mark.parametrize("opset", [14, 18])
def test_every_row_and_column_keeps_its_own_precision(tmp_path: Path, opset: int) -> None:
    path, table, matrix = small_graph(tmp_path, opset)
    target = tmp_path / "int8.onnx"
    assert quantize(path, target) == 2
    ids = np.arange(WORDS)[None]
    expected, got = table[ids] @ matrix, run(target, ids)
    # Relative to the largest products of that row and column.
    size = np.abs(table[ids]).max(-1, keepdims=True) * np.abs(matrix).max(0) * np.sqrt(FEATURES)
    assert (np.abs(got - expected) / size).max() < 1.5 / REDUCED_RANGE


@pytest.mark.parametrize(("full_range", "largest"), [(False, REDUCED_RANGE), (True, FULL_RANGE)])
def test_weights_use_the_range_that_they_may(
    tmp_path: Path, full_range: bool, largest: int
) -> None:
    """What a processor without VNNI does with the full range is for the gates to see."""
    path, _, _ = small_graph(tmp_path)
    target = tmp_path / "int8.onnx"
    quantize(path, target, full_range=full_range)
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(target).graph.initializer}
    assert np.abs(weights["matrix_columns_int8"].astype(int)).max(axis=0).tolist() == [largest] * 10


def test_a_row_does_not_depend_on_the_other_rows_of_its_batch(tmp_path: Path) -> None:
    path, _, _ = small_graph(tmp_path)
    target = tmp_path / "int8.onnx"
    quantize(path, target)
    ids = np.arange(WORDS).reshape(5, 6)
    together = run(target, ids)
    for row in range(5):
        np.testing.assert_array_equal(run(target, ids[row : row + 1])[0], together[row])


def test_a_row_of_zeros_stays_zeros(tmp_path: Path) -> None:
    path, _, _ = small_graph(tmp_path)
    model = onnx.load(path)
    table = numpy_helper.to_array(model.graph.initializer[0]).copy()
    table[3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    onnx.save(model, path)
    quantize(path, tmp_path / "int8.onnx")
    assert run(tmp_path / "int8.onnx", np.asarray([[3]])).tolist() == [[[0.0] * OUTPUTS]]


def test_a_head_without_a_bias_stays_and_so_does_what_a_caller_may_give(tmp_path: Path) -> None:
    path, _, _ = small_graph(tmp_path)
    model = onnx.load(path)
    model.graph.node[1].name = "/head/dense/MatMul"
    onnx.save(model, path)
    assert quantize(path, tmp_path / "head.onnx") == 1
    model.graph.node[1].name = "/layer/MatMul"
    model.graph.input.append(
        helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [FEATURES, OUTPUTS])
    )
    onnx.save(model, path)
    assert quantize(path, tmp_path / "given.onnx") == 1
    assert run(tmp_path / "given.onnx", np.asarray([[1, 2]])).shape == (1, 2, OUTPUTS)


def test_weights_that_only_an_inner_graph_reads_stay(tmp_path: Path) -> None:
    path, _, _ = small_graph(tmp_path)
    model = onnx.load(path)
    graph = model.graph
    inner = {
        name: helper.make_graph(
            [helper.make_node(kind, ["logits", "inner_weight"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, kind in (("then", "Add"), ("otherwise", "Sub"))
    }
    graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "inner_weight"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(True), "condition"))
    graph.node.append(
        helper.make_node(
            "If",
            ["condition"],
            ["chosen"],
            then_branch=inner["then"],
            else_branch=inner["otherwise"],
        )
    )
    graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None))
    onnx.save(model, path)
    quantize(path, tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"]
    )
    logits, chosen = session.run(["logits", "chosen"], {"ids": np.asarray([[1, 2]])})
    np.testing.assert_allclose(chosen, logits + np.float32([1, 2]))


def test_embeddings_stay_when_told_and_the_head_always_does(tmp_path: Path) -> None:
    path, _, _ = small_graph(tmp_path)
    for embeddings, kept in ((True, {"head"}), (False, {"head", "table"})):
        target = tmp_path / "int8.onnx"
        assert quantize(path, target, embeddings=embeddings) == 1 + embeddings
        found = {w.name for w in onnx.load(target).graph.initializer if len(w.dims) == 2}
        assert found & {"head", "table", "matrix"} == kept


def test_a_package_in_int8_answers_alone_as_in_any_batch(tiny_package: Path, package: Path) -> None:
    from service.package.manifest import read_manifest
    from service.package.package import seal_package

    plain = Classifier.load(tiny_package)
    quantize(tiny_package / "model.onnx", package / "model.onnx")
    seal_package(package, read_manifest(package))
    classifier = Classifier.load(package)
    texts = ["where is it", "thank you " * 9, "x", "I want my money back " * 12, "🙂"]
    alone = np.stack([classifier.classify([text])[0].probs for text in texts])
    windows = [text.windows[0] for text in classifier.encode(texts)]
    together = classifier.predictions(classifier.encode(texts), classifier.logits(windows))
    np.testing.assert_allclose(np.stack([a.probs for a in together]), alone, atol=1e-6)
    before = np.stack([a.probs for a in plain.classify(texts)])
    assert 0 < np.abs(before - alone).max() < 0.1
