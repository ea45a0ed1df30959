"""Of the last layer only what the pooled token wants is computed, and its vector stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from server.importing.onnx_last_layer import compute_pooled_token_only

HIDDEN = 8
LENGTHS = (5, 1, 7)
SHAPES = {"k": HIDDEN, "q": HIDDEN, "v": HIDDEN, "attended": HIDDEN, "product": HIDDEN}
SHAPES |= {"x": HIDDEN, "residual": HIDDEN, "normed": HIDDEN, "wide": 16, "active": 16}
SHAPES |= {"gate": HIDDEN, "up": HIDDEN, "gated": HIDDEN, "hidden": HIDDEN}


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    own = operator in ("FusedMatMul", "MultiHeadAttention")
    named = [name.removesuffix("-") for name in inputs.split()]
    return helper.make_node(
        operator, named, outputs.split(), domain="com.microsoft" if own else "", **attributes
    )


def one_layer(
    pooling: str,
    *,
    activation: onnx.NodeProto,
    scores: bool,
    padding: bool = True,
    **attention: int,
) -> ir.Model:
    """A transformer's layer and its pooling, as the exporter writes them; scores are causal.

    Args:
        padding: attention is told of it, if not of scores.
        attention: attributes of it.
    """
    told = " - - y_scores" if scores else " - padding" if padding else ""
    last = [
        node("Range", "zero length one", "places"),
        node("Mul", "attention_mask places", "counted"),
        node("ArgMax", "counted", "last", axis=1, keepdims=0),
        node("Unsqueeze", "last two_axes", "index"),
        node("Expand", "index one_vector", "indexes"),
        node("GatherElements", "hidden indexes", "picked", axis=1),
        node("Squeeze", "picked one_axis", "y"),
    ]
    causal = [
        node("Expand", "minus shape", "rows"),
        node("Trilu", "rows one", "y_scores", upper=1),
    ]
    nodes = [
        node("Shape", "attention_mask", "batch", start=0, end=1),
        node("Shape", "attention_mask", "length_axis", start=1),
        node("Squeeze", "length_axis", "length"),
        node("Gather", "table input_ids", "x"),
        *(node("FusedMatMul", f"x w_{one}", one, transB=1) for one in "qkv"),
        node("Cast", "attention_mask", "padding", to=TensorProto.INT32),
        node("Concat", "batch one_axis length_axis length_axis", "shape", axis=0),
        *(causal if scores else []),
        node(
            "MultiHeadAttention",
            f"q k v{told}",
            "attended",
            num_heads=2,
            **attention,
        ),
        node("FusedMatMul", "attended w_out", "product", transB=1),
        node("Add", "x product", "residual"),
        node("LayerNormalization", "residual scale", "normed", axis=-1),
        node("FusedMatMul", "normed w_wide", "wide", transB=1),
        activation,
        node("Split", "active", "gate up", axis=2, num_outputs=2),
        node("Mul", "gate up", "gated"),
        node("Add", "residual gated", "hidden"),
        *(last if pooling == "last_token" else [node("Gather", "hidden zero", "y", axis=1)]),
    ]
    square = {f"w_{one}": (HIDDEN, HIDDEN) for one in ("q", "k", "v", "out")}
    numbers = np.random.default_rng(0)
    drawn = {**square, "w_wide": (16, HIDDEN), "table": (20, HIDDEN), "scale": (HIDDEN,)}
    inside: dict[str, Any] = {
        name: numbers.normal(size=shape).astype(np.float32) for name, shape in drawn.items()
    }
    inside |= {"zero": np.array(0), "one": np.array(1), "one_axis": np.array([1])}
    inside |= {"two_axes": np.array([1, 2]), "one_vector": np.array([1, 1, HIDDEN])}
    inside |= {"minus": np.array([-1e4], np.float32)}
    both = ["batch", "tokens"]
    given: dict[str, list[Any]] = {name: [*both, size] for name, size in SHAPES.items()}
    given |= {"y_scores": ["batch", 1, "tokens", "tokens"], "index": ["batch", 1, 1]}
    graph = helper.make_graph(
        nodes,
        "made_by_hand",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, both)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in inside.items()],
        value_info=[
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "index" else TensorProto.FLOAT, shape
            )
            for name, shape in given.items()
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def outcome(model: ir.Model, *names: str, left: bool = False) -> list[NDArray[np.float32]]:
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names[1:]]
    proto.graph.output.extend(inner)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(0, 20, (len(LENGTHS), max(LENGTHS)))
    mask = np.array([[place < length for place in range(max(LENGTHS))] for length in LENGTHS])
    mask = mask[:, ::-1] if left else mask
    found: list[NDArray[np.float32]] = session.run(
        list(names), {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    )
    return found


def largest_difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Between vectors at length 1."""
    ones = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (left, right)]
    return float(np.abs(ones[0] - ones[1]).max())


GELU = node("Gelu", "wide", "active")
ACROSS_TOKENS = node("Softmax", "wide", "active", axis=1)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "last_token"])
def test_queries_and_feed_forward_are_computed_for_the_pooled_token_alone(
    pooling: str, scores: bool, left: bool
) -> None:
    model = one_layer(pooling, activation=GELU, scores=scores)
    (expected,) = outcome(model, "y", left=left)
    assert compute_pooled_token_only(model.graph)
    found, queries, wide, keys = outcome(model, "y", "q", "wide", "k", left=left)
    assert largest_difference(found, expected) < 1e-6
    assert (queries.shape, wide.shape) == ((3, 1, HIDDEN), (3, 1, 16))
    assert keys.shape == (3, max(LENGTHS), HIDDEN)


@pytest.mark.parametrize("pooling", ["cls", "last_token"])
def test_what_reads_other_tokens_is_computed_for_all_of_them(pooling: str) -> None:
    model = one_layer(pooling, activation=ACROSS_TOKENS, scores=False)
    (expected,) = outcome(model, "y")
    assert compute_pooled_token_only(model.graph)
    found, wide, gated = outcome(model, "y", "wide", "gated")
    assert largest_difference(found, expected) < 1e-6
    assert (wide.shape, gated.shape) == ((3, max(LENGTHS), 16), (3, 1, HIDDEN))


def test_attention_without_its_optional_inputs_is_narrowed_too() -> None:
    model = one_layer("cls", activation=GELU, scores=False, padding=False)
    (expected,) = outcome(model, "y")
    assert compute_pooled_token_only(model.graph)
    found, queries = outcome(model, "y", "q")
    assert largest_difference(found, expected) < 1e-6
    assert queries.shape == (3, 1, HIDDEN)


def test_attention_that_looks_back_by_itself_has_the_queries_of_all_tokens() -> None:
    model = one_layer("last_token", activation=GELU, scores=False, unidirectional=1)
    (expected,) = outcome(model, "y")
    assert compute_pooled_token_only(model.graph)
    found, queries, wide = outcome(model, "y", "q", "wide")
    assert largest_difference(found, expected) < 1e-6
    assert (queries.shape, wide.shape) == ((3, max(LENGTHS), HIDDEN), (3, 1, 16))


def test_a_mean_over_everything_wants_all_tokens() -> None:
    activation = node("ReduceMean", "wide", "active", keepdims=1)  # without axes: over all of them
    model = one_layer("cls", activation=activation, scores=False)
    assert compute_pooled_token_only(model.graph)
    (wide,) = next(one for one in model.graph if one.op_type == "ReduceMean").inputs
    assert wide is not None
    assert wide.shape == ("batch", "tokens", 16)


@pytest.mark.parametrize("activation", [GELU, ACROSS_TOKENS], ids=["gelu", "softmax"])
def test_a_graph_without_a_pooled_token_is_left_alone(activation: onnx.NodeProto) -> None:
    model = one_layer("cls", activation=activation, scores=False)
    model.graph[-1].attributes.add(ir.AttrInt64("axis", 2))  # picks no token
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not compute_pooled_token_only(model.graph)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
