"""An exported ONNX graph made ready to serve: its weights lie outside, its operators are the fast ones.

Each weight is an ONNX external-data reference (location, offset, length) into the folder's own
safetensors files: the official files stay the only copy, and their hashes vouch for every number.
Weights stored in half precision are widened when the graph is loaded. The operators are shaped for
ONNX Runtime's CPU kernels (some are its own, domain com.microsoft). Needs the `[torch]` extra, for
its ONNX tools; knows nothing of torch or of cards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import optimize_ir

from server.errors import ImportRefused
from server.importing.onnx_last_layer import compute_pooled_token_only
from server.importing.stored_tensors import StoredTensor, digest

# Written into each graph; what made the first ones was called so, and graphs stay the same bytes.
PRODUCER = "export_graph.py"
FLOATS = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
SAFETENSORS_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.INT64: "I64", ir.DataType.INT32: "I32"}


@dataclass(frozen=True, slots=True)
class StoredShare:
    """How many initialisers point into the safetensors files, and how many stay in the graph."""

    outside: int = 0
    outside_bytes: int = 0
    inside: int = 0
    inside_bytes: int = 0


def tidy(model: ir.Model) -> None:
    """Fold what is constant, except weights, and leave the operators that run fastest."""
    optimize_ir(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    multiply_stored_weights(model.graph)
    drop_empty_reshapes(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    if compute_pooled_token_only(model.graph):
        passes.RemoveUnusedNodesPass()(model)
    model.opset_imports["com.microsoft"] = 1


def multiply_stored_weights(graph: ir.Graph) -> None:
    """Linear layers take the weight as stored, (out, in): no transposed copy is made at load."""
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        transpose = weight.producer() if weight is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        stored = transpose.inputs[0]
        if stored is not None and stored.is_initializer() and len(stored.shape or ()) == 2:
            node.replace_input_with(1, stored)
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
            node.attributes.add(ir.AttrInt64("transB", 1))


def drop_empty_reshapes(graph: ir.Graph) -> None:
    """Heads split and merged again leave Reshapes that end in the shape they began with."""
    for node in graph:
        if node.op_type != "Reshape":
            continue
        source, result = node.inputs[0], node.outputs[0]
        while source is not None and (before := source.producer()) and before.op_type == "Reshape":
            source = before.inputs[0]
        if source is not None and source.shape is not None and source.shape == result.shape:
            ir.convenience.replace_all_uses_with(result, source)


def move_weights_out(graph: ir.Graph, stored: dict[str, StoredTensor]) -> StoredShare:
    """Replace each initialiser that equals a stored tensor, byte for byte, by a reference to it."""
    share = StoredShare()
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            raise ImportRefused(f"initialiser {name} has no value")
        shape, dtype = tensor.shape.numpy(), tensor.dtype
        key = digest(SAFETENSORS_DTYPES.get(dtype, dtype.name), shape, tensor.tobytes())
        place = stored.get(key)
        if place is None:
            share = replace(
                share,
                inside=share.inside + 1,
                inside_bytes=share.inside_bytes + tensor.nbytes,
            )
            continue
        stored_dtype = FLOATS.get(place.dtype, dtype)
        outside = ir.ExternalTensor(
            place.file, place.offset, place.length, stored_dtype, shape=ir.Shape(shape), name=name
        )
        if stored_dtype == dtype:
            value.const_value = outside
        else:
            _widen(graph, value, outside)
        share = replace(
            share,
            outside=share.outside + 1,
            outside_bytes=share.outside_bytes + place.length,
        )
    return share


def _widen(graph: ir.Graph, value: ir.Value, stored: ir.ExternalTensor) -> None:
    """Let a weight stored in half precision become float32; ONNX Runtime does it once, at load."""
    name = value.name
    cast = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", int(ir.DataType.FLOAT))])
    (wide,) = cast.outputs
    wide.name = f"{name}.float32"
    ir.convenience.replace_all_uses_with(value, wide)
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)
    value.const_value = stored
    value.dtype = stored.dtype


def strip(model: ir.Model) -> None:
    """Drop what running does not need: stack traces, inner shapes, names of nodes and exporter.

    Without the inner shapes ONNX Runtime also leaves residual additions apart from the layer
    normalisations after them. The SkipLayerNormalization it would fuse them into is the slower
    form on CPU (1.32, MiniLM, one batch of 512 tokens: 12 ms against 4 ms of about 135 ms).
    """
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for node in graph:
        node.name = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.name = "text_encoder"
    model.metadata_props.clear()
    model.producer_name, model.producer_version = PRODUCER, None
