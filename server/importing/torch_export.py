"""A model folder's transformer as an ONNX graph that holds no weights.

The graph holds operators only. Each weight is an ONNX external-data reference (location, offset,
length) into the folder's own safetensors files: the official files stay the only copy, and their
hashes vouch for every number. Weights stored in half precision are widened when the graph is
loaded. Pooling, dense layers and normalisation are inside the graph.

    inputs   input_ids       int64 (batch, tokens)
             attention_mask  int64 (batch, tokens), 1 for a token, 0 for padding
    output   embeddings      float32 (batch, embedding_dim)

The operators are shaped for ONNX Runtime's CPU kernels (some are its own, domain com.microsoft).
Needs the `[torch]` extra; serving the graph needs onnxruntime alone. Knows nothing of cards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import optimize_ir
from transformers import AttentionInterface, AutoModel, PreTrainedModel
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    eager_mask,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from server.catalog.card import PoolingMode
from server.errors import ImportRefused
from server.importing.folder import DenseLayer, Head, ModelFolder
from server.inference.torch_encoder import read_dense

FUSED_ATTENTION = "onnxruntime_fused"  # our name in transformers' attention registry
MAX_GRAPH_BYTES = 2**31 - 1  # of a protobuf message
# Written into each graph; what made the first ones was called so, and graphs stay the same bytes.
PRODUCER = "export_graph.py"
FLOATS = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
TORCH_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16}
SAFETENSORS_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.INT64: "I64", ir.DataType.INT32: "I32"}
# Fused projections are stored as one matrix of three parts (query, key, value) or two.
PARTS = (3, 2)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file, in bytes from the start of the file."""

    file: str
    offset: int
    length: int
    dtype: str  # as safetensors calls it


@dataclass(frozen=True, slots=True)
class Placement:
    """How many initialisers point into the safetensors files, and how many stay in the graph."""

    outside: int = 0
    outside_bytes: int = 0
    inside: int = 0
    inside_bytes: int = 0


def digest(dtype: str, shape: Sequence[int], content: bytes | memoryview) -> str:
    """A key that two tensors share only when type, shape and every byte agree."""
    return f"{dtype} {list(shape)} {hashlib.sha256(content).hexdigest()}"


def read_stored_tensors(folder: Path, files: Iterable[str]) -> dict[str, StoredTensor]:
    """Where each tensor of these safetensors files lies, by its `digest`.

    Those in half precision are found by what they are in float32, fused ones also by their parts.
    Layout: https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, tensors).
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        try:
            content = memoryview((folder / file).read_bytes())
            start = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(bytes(content[8:start]))
            header.pop("__metadata__", None)
            for entry in header.values():
                begin, end = (start + offset for offset in entry["data_offsets"])
                if end > len(content):
                    raise ValueError("it is cut off")
                tensor = StoredTensor(file, begin, end - begin, entry["dtype"])
                for key, part in _keys(tensor, entry["shape"], content[begin:end]):
                    stored.setdefault(key, part)
        except OSError as error:
            raise ImportRefused(f"{folder / file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImportRefused(f"{folder / file}: not a safetensors file: {error}") from None
    return stored


def _keys(
    tensor: StoredTensor, shape: Sequence[int], content: memoryview
) -> Iterable[tuple[str, StoredTensor]]:
    """The digests of a tensor and of its parts."""
    for parts in (1, *(n for n in PARTS if shape and len(shape) <= 2 and shape[0] % n == 0)):
        length = tensor.length // parts
        part_shape = [shape[0] // parts, *shape[1:]] if parts > 1 else shape
        for number in range(parts):
            begin = number * length
            part = content[begin : begin + length]
            place = StoredTensor(tensor.file, tensor.offset + begin, length, tensor.dtype)
            half = TORCH_FLOATS.get(tensor.dtype)
            if half is None or not length:
                yield digest(tensor.dtype, part_shape, part), place
            else:
                wide = torch.frombuffer(bytearray(part), dtype=half).float().numpy()
                yield digest("F32", part_shape, memoryview(wide).cast("B")), place


class ExportedModule(torch.nn.Module):  # type: ignore[misc]
    """Transformer, pooling, dense layers and normalisation as one module."""

    def __init__(self, transformer: PreTrainedModel, head: Head, folder: Path) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head
        self.dense = torch.nn.Sequential(*(_read_dense(folder, layer) for layer in head.dense))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, embedding_dim) of ids and mask, each (batch, tokens)."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        embeddings = self.dense(pool(output.last_hidden_state, attention_mask, self.head.pooling))
        return torch.nn.functional.normalize(embeddings) if self.head.normalize else embeddings


def _read_dense(folder: Path, layer: DenseLayer) -> torch.nn.Module:
    """See `read_dense`; refuses what is not as the layer's config.json says."""
    try:
        dense = read_dense(folder / layer.weights, layer.activation)
    except (KeyError, IndexError):
        dense = None
    if dense is None or dense[0].weight.shape != (layer.out_features, dense[0].in_features):
        raise ImportRefused(f"{folder / layer.weights}: no linear.weight as its config.json says")
    return dense


def pool(hidden: torch.Tensor, mask: torch.Tensor, mode: PoolingMode) -> torch.Tensor:
    """Token vectors (batch, tokens, embedding_dim) to (batch, embedding_dim); mask (batch, tokens).

    The formulas of sentence-transformers' Pooling module.
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last_token":
        # The last position that is no padding, whichever side the padding is on.
        last = (mask * torch.arange(mask.shape[1])).argmax(dim=1)  # (batch,)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (batch, tokens, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def fused_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """A layer's attention as one ONNX Runtime operator, under transformers' attention signature.

    query, key and value (batch, heads, tokens, head_dim) to (batch, tokens, heads, head_dim).
    A mask of two axes tells which keys are padding; one of four is added to the scores.
    """
    batch, heads, tokens, head_dim = query.shape

    def merge_heads(part: torch.Tensor) -> torch.Tensor:
        if part.shape[1] != heads:  # several query heads share one key head
            part = part.repeat_interleave(heads // part.shape[1], dim=1)
        return part.transpose(1, 2).flatten(2)  # (batch, tokens, heads * head_dim)

    axes = 0 if attention_mask is None else attention_mask.ndim
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [
            *(merge_heads(part) for part in (query, key, value)),
            None,  # bias
            attention_mask if axes == 2 else None,  # key_padding_mask
            attention_mask if axes == 4 else None,  # attention_bias
        ],
        {"num_heads": heads, "scale": float(scaling or head_dim**-0.5)},
        dtype=query.dtype,
        shape=(batch, tokens, heads * head_dim),
        version=1,
    )
    return attended.unflatten(2, (heads, head_dim)), None


def fused_attention_mask(
    *, attention_mask: torch.Tensor | None, mask_function: Any, **context: Any
) -> torch.Tensor | None:
    """The padding mask itself, or scores to add where more is masked (causal, sliding window)."""
    if attention_mask is not None and mask_function is bidirectional_mask_function:
        return attention_mask.to(torch.int32)
    return eager_mask(attention_mask=attention_mask, mask_function=mask_function, **context)


def trace(folder: Path, head: Head) -> ir.Model:
    """The folder's transformer with its head as an ONNX model, weights still inside."""
    AttentionInterface.register(FUSED_ATTENTION, fused_attention)
    AttentionMaskInterface.register(FUSED_ATTENTION, fused_attention_mask)
    transformer = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="eager",  # the config could name a kernel to be fetched from a hub
    )
    # Never sdpa: exported, it guards each softmax against NaN, 10 to 13 % of the time.
    fusable = transformer._supports_attention_backend  # noqa: SLF001 (no public name for it)
    transformer.set_attn_implementation(FUSED_ATTENTION if fusable else "eager")
    ids = torch.arange(2, 20).reshape(2, 9)
    axes = {0: "batch", 1: "tokens"}
    program = torch.onnx.export(
        ExportedModule(transformer, head, folder).eval(),
        (ids, torch.ones_like(ids)),
        dynamo=True,
        optimize=False,  # would store each weight transposed; `tidy` does it better
        opset_version=20,
        input_names=["input_ids", "attention_mask"],
        output_names=["embeddings"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        verbose=False,
    )
    model: ir.Model = program.model
    return model


def tidy(model: ir.Model) -> None:
    """Fold what is constant, except weights, and leave the operators that run fastest."""
    optimize_ir(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    multiply_stored_weights(model.graph)
    drop_empty_reshapes(model.graph)
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


def move_weights_out(graph: ir.Graph, stored: dict[str, StoredTensor]) -> Placement:
    """Replace each initialiser that equals a stored tensor, byte for byte, by a reference to it."""
    placement = Placement()
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            raise ImportRefused(f"initialiser {name} has no value")
        shape, dtype = tensor.shape.numpy(), tensor.dtype
        key = digest(SAFETENSORS_DTYPES.get(dtype, dtype.name), shape, tensor.tobytes())
        place = stored.get(key)
        if place is None:
            placement = replace(
                placement,
                inside=placement.inside + 1,
                inside_bytes=placement.inside_bytes + tensor.nbytes,
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
        placement = replace(
            placement,
            outside=placement.outside + 1,
            outside_bytes=placement.outside_bytes + place.length,
        )
    return placement


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


def innermost(error: BaseException) -> BaseException:
    """The first failure of a chain; the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else innermost(error.__cause__)


def check_architecture(folder: ModelFolder) -> None:
    """Refuse a model that transformers has no code for itself.

    Raises:
        ImportRefused: the folder would have to bring its own code (`trust_remote_code`).
    """
    if folder.architecture in CONFIG_MAPPING_NAMES:
        return
    own = folder.config.get("auto_map")
    reason = (
        f"its own code ({', '.join(sorted(map(str, own.values())))}) would have to be run, which "
        "is never done"
        if isinstance(own, dict) and own
        else "transformers does not know it"
    )
    raise ImportRefused(f"{folder.path}: architecture {folder.architecture}: {reason}")


def export_graph(folder: ModelFolder) -> tuple[bytes, Placement]:
    """The serialised graph of a folder; the same bytes every time.

    Raises:
        ImportRefused: the architecture cannot be exported.
    """
    check_architecture(folder)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    stored = read_stored_tensors(folder.path, folder.weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = trace(folder.path, folder.head)
        tidy(model)
        placement = move_weights_out(model.graph, stored)
        strip(model)
        if placement.inside_bytes < MAX_GRAPH_BYTES:
            graph: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
            return graph, placement
    except ImportRefused:
        raise
    except Exception as error:  # architectures fail in ways of their own
        root = innermost(error)
        reason = (str(root).strip().splitlines() or [""])[0]
        raise ImportRefused(
            f"{folder.path}: not exportable: {type(root).__name__}: {reason}"
        ) from error
    raise ImportRefused(
        f"{folder.path}: {placement.inside_bytes:,} bytes of weights are not in the safetensors "
        f"files as the model uses them, and a graph holds at most {MAX_GRAPH_BYTES:,}"
    )
