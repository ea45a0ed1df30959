"""Graphs whose weights lie outside compute what they did, by the operators that run fastest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from server.importing.onnx_graph import (
    StoredShare,
    drop_empty_reshapes,
    move_weights_out,
    strip,
    tidy,
)
from server.importing.stored_tensors import read_stored_tensors

WEIGHT = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)  # (out, in)
BIAS = np.arange(5, dtype=np.float32)
INPUT = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


def linear_layer() -> ir.Model:
    """y = x @ weight.T + bias, as the exporter writes it, and a Reshape there and back."""
    inside = {"weight": WEIGHT.astype(np.float32), "bias": BIAS, "two": np.array([3, 1, 5])}
    inside |= {"back": np.array([3, 5])}
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Reshape", ["sum", "two"], ["split"]),
            helper.make_node("Reshape", ["split", "back"], ["merged"]),
            helper.make_node("Relu", ["merged"], ["y"]),
        ],
        "made_by_hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5])],
        [numpy_helper.from_array(value, name) for name, value in inside.items()],
        value_info=[
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [3, 5]),
            helper.make_tensor_value_info("merged", TensorProto.FLOAT, [3, 5]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(model)


def outcome(model: ir.Model, folder: Path) -> NDArray[np.float32]:
    place = folder / "graph.onnx"
    place.write_bytes(ir.to_proto(model).SerializeToString())
    session = ort.InferenceSession(place, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": INPUT})[0]
    return found


def test_weights_move_out_and_the_result_stays(tmp_path: Path) -> None:
    expected = np.maximum(INPUT @ WEIGHT.astype(np.float32).T + BIAS, 0)
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "model.safetensors")
    model = linear_layer()
    np.testing.assert_allclose(outcome(model, tmp_path), expected, atol=1e-5)
    tidy(model)
    share = move_weights_out(model.graph, read_stored_tensors(tmp_path, ["model.safetensors"]))
    strip(model)
    assert (share.outside, share.outside_bytes) == (2, WEIGHT.nbytes + BIAS.nbytes)
    np.testing.assert_allclose(outcome(model, tmp_path), expected, atol=1e-5)
    operators = [node.op_type for node in model.graph]
    assert sorted(operators) == ["Add", "Cast", "FusedMatMul", "Relu"]
    written = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    assert {one.name: one.data_type for one in written.graph.initializer}["weight"] == (
        TensorProto.FLOAT16
    )
    assert written.graph.name == "text_encoder"
    assert not any(node.name for node in written.graph.node)
    assert {value.name for value in written.graph.value_info} == {"weight", "bias"}


def test_a_reshape_there_and_back_is_passed_over() -> None:
    model = linear_layer()
    drop_empty_reshapes(model.graph)
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    source = relu.inputs[0]
    assert source is not None
    assert source.name == "sum"


def test_what_no_file_holds_stays_inside(tmp_path: Path) -> None:
    save_file({"layer.bias": BIAS}, tmp_path / "model.safetensors")
    model = linear_layer()
    share = move_weights_out(model.graph, read_stored_tensors(tmp_path, ["model.safetensors"]))
    inside = 2 * WEIGHT.nbytes + 5 * 8
    assert share == StoredShare(outside=1, outside_bytes=BIAS.nbytes, inside=3, inside_bytes=inside)
