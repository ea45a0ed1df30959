"""Make graph.onnx from a Hugging Face or sentence-transformers folder, without its weights.

The graph holds operators only. Each weight is an ONNX external-data reference (location, offset,
length) into the folder's own `model.safetensors`: the official file stays the only copy, and its
hash vouches for every number. Pooling and normalisation are inside the graph.

    inputs   input_ids       int64 (batch, tokens)
             attention_mask  int64 (batch, tokens), 1 for a token, 0 for padding
    output   embeddings      float32 (batch, embedding_dim)

The operators are shaped for ONNX Runtime's CPU kernels (some are its own, domain com.microsoft).
Making a graph needs the `[torch]` extra; serving it needs onnxruntime alone.
Knows nothing of cards or of the server.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 it reports to its makers by default

try:
    import numpy as np
    import onnx_ir as ir
    import onnxruntime
    import torch
    from onnx_ir.passes import common as passes
    from onnxscript.optimizer import optimize_ir
    from sentence_transformers import SentenceTransformer
    from transformers import AttentionInterface, AutoModel, PreTrainedModel
    from transformers.masking_utils import (
        AttentionMaskInterface,
        bidirectional_mask_function,
        eager_mask,
    )
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    print(f"error: {error.name} is missing: install the [torch] extra", file=sys.stderr)
    raise SystemExit(2) from None

WEIGHTS = "model.safetensors"
FUSED_ATTENTION = "onnxruntime_fused"  # our name in transformers' attention registry
MAX_INSIDE_BYTES = 256 * 1024  # more than index tables and scalars: weights did not map
MAX_DIFFERENCE = 1e-4
MIN_COSINE = 0.99999

PoolingMode = Literal["mean", "cls", "last_token"]
POOLING_MODES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
POOLING_SWITCHES = {  # the older spelling of 1_Pooling/config.json: one boolean a mode
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
SAFETENSORS_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.INT64: "I64", ir.DataType.INT32: "I32"}


class ExportError(Exception):
    """The folder cannot become a graph; the message is one line for the person who asked."""


@dataclass(frozen=True)
class Head:
    """What turns token vectors into one vector a text."""

    pooling: PoolingMode
    normalize: bool


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in the safetensors file, in bytes from the start of the file."""

    offset: int
    length: int


@dataclass(frozen=True)
class Placement:
    """How many initialisers point into the safetensors file, and how many stay in the graph."""

    outside: int
    outside_bytes: int
    inside: int
    inside_bytes: int


@dataclass(frozen=True)
class Parity:
    """How far the graph is from sentence-transformers."""

    texts: int
    max_difference: float
    min_cosine: float


# --- reading the folder ---------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The parsed file; ExportError names the file that is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ExportError(f"{path}: not JSON: {error}") from None


def read_head(folder: Path) -> Head:
    """Pooling and normalisation as sentence-transformers applies them.

    Without modules.json that is mean pooling and no normalisation.
    """
    if not (folder / "modules.json").exists():
        return Head(pooling="mean", normalize=False)
    modules = read_json(folder / "modules.json")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ExportError(
            f"{folder / 'modules.json'}: {', '.join(kinds)}: "
            "only Transformer, Pooling and, optionally, Normalize can be exported"
        )
    pooling = read_pooling(folder / modules[1]["path"] / "config.json")
    return Head(pooling=pooling, normalize="Normalize" in kinds)


def read_pooling(path: Path) -> PoolingMode:
    """The one mode of a sentence-transformers pooling config, in either of its two spellings."""
    config = read_json(path)
    if config.get("include_prompt") is False:
        raise ExportError(f"{path}: include_prompt = false is not supported")
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for switch, mode in POOLING_SWITCHES.items() if config.get(switch)]
    modes = [found] if isinstance(found, str) else list(found)
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise ExportError(
            f"{path}: pooling is {' and '.join(modes) or 'not set'}, "
            f"but must be one of {', '.join(POOLING_MODES)}"
        )
    return POOLING_MODES[modes[0]]


def digest(dtype: str, shape: Sequence[int], content: bytes | memoryview) -> str:
    """A key that two tensors share only when type, shape and every byte agree."""
    return f"{dtype} {list(shape)} {hashlib.sha256(content).hexdigest()}"


def read_stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file lies, by its `digest`.

    Layout: https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, tensors).
    """
    if path.resolve().parent != path.parent.resolve():
        # The hub's cache is built of such links.
        raise ExportError(
            f"{path}: a link out of its folder, which ONNX Runtime will not follow: copy the file"
        )
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}: weights must be in this one file") from None
    stored: dict[str, StoredTensor] = {}
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(bytes(content[8:start]))
        header.pop("__metadata__", None)
        for entry in header.values():
            begin, end = (start + offset for offset in entry["data_offsets"])
            key = digest(entry["dtype"], entry["shape"], content[begin:end])
            stored.setdefault(key, StoredTensor(begin, end - begin))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: not a safetensors file: {error}") from None
    return stored


# --- tracing the model ----------------------------------------------------------------------------


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """Transformer, pooling and normalisation as one module."""

    def __init__(self, transformer: PreTrainedModel, head: Head) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, embedding_dim) of ids and mask, each (batch, tokens)."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        embeddings = pool(output.last_hidden_state, attention_mask, self.head.pooling)
        return torch.nn.functional.normalize(embeddings) if self.head.normalize else embeddings


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
    transformer = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    # Never sdpa: exported, it guards each softmax against NaN, 10 to 13 % of the time.
    fusable = transformer._supports_attention_backend  # noqa: SLF001 (no public name for it)
    transformer.set_attn_implementation(FUSED_ATTENTION if fusable else "eager")
    ids = torch.arange(2, 20).reshape(2, 9)
    axes = {0: "batch", 1: "tokens"}
    program = torch.onnx.export(
        TextEncoder(transformer, head).eval(),
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


# --- shaping the graph ----------------------------------------------------------------------------


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
    inside: list[ir.TensorProtocol] = []
    outside: list[ir.ExternalTensor] = []
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise ExportError(f"initialiser {name} has no value")
        shape, dtype = tensor.shape.numpy(), tensor.dtype
        key = digest(SAFETENSORS_DTYPES.get(dtype, dtype.name), shape, tensor.tobytes())
        if key not in stored:
            inside.append(tensor)
            continue
        place = stored[key]
        value.const_value = ir.ExternalTensor(
            WEIGHTS, place.offset, place.length, dtype, shape=ir.Shape(shape), name=name
        )
        outside.append(value.const_value)
    placement = Placement(
        outside=len(outside),
        outside_bytes=sum(tensor.length or 0 for tensor in outside),
        inside=len(inside),
        inside_bytes=sum(tensor.nbytes for tensor in inside),
    )
    if placement.inside_bytes > MAX_INSIDE_BYTES:
        largest = max(inside, key=lambda tensor: tensor.nbytes)
        raise ExportError(
            f"{placement.inside_bytes:,} bytes of weights are not in {WEIGHTS} as the model uses "
            f"them (largest: {largest.name}, {largest.dtype} {largest.shape}); "
            "they must be stored as float32"
        )
    return placement


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
    model.producer_name, model.producer_version = "export_graph.py", None


# --- proving it -----------------------------------------------------------------------------------


def open_session(graph: bytes, folder: Path) -> onnxruntime.InferenceSession:
    """A CPU session for a serialised graph whose weights lie in `folder`."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def check_parity(graph: bytes, folder: Path) -> Parity:
    """Random texts of many lengths: padded together through the graph, alone through the model."""
    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
    )
    config = model[0].auto_model.config
    positions = getattr(config, "max_position_embeddings", 512)
    longest = min(512, positions, int(model.tokenizer.model_max_length))
    pad_id = config.pad_token_id or 0
    session = open_session(graph, folder)
    random = np.random.default_rng(0)
    differences: list[float] = []
    cosines: list[float] = []
    for batch in ([1], [longest], [2, 3, 12, 33], [longest // 2, 128, 64, 7], [16] * 4):
        lengths = np.minimum(batch, longest)  # (texts,)
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)  # (texts, tokens)
        ids = np.where(mask, random.integers(pad_id + 1, config.vocab_size, mask.shape), pad_id)
        found = session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})[0]
        for row, length in enumerate(lengths):
            alone = torch.from_numpy(ids[row : row + 1, :length])
            with torch.inference_mode():
                output = model({"input_ids": alone, "attention_mask": torch.ones_like(alone)})
            expected = output["sentence_embedding"][0].numpy()
            differences.append(float(np.abs(found[row] - expected).max()))
            cosines.append(cosine(found[row], expected))
    # A NaN must not hide behind max and min.
    return Parity(len(cosines), float(np.max(differences)), float(np.min(cosines)))


def cosine(left: Any, right: Any) -> float:
    """Cosine of two vectors (embedding_dim,), computed in float64."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def innermost(error: BaseException) -> BaseException:
    """The first failure of a chain; the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else innermost(error.__cause__)


def export_graph(folder: Path) -> tuple[bytes, Head, Placement, Parity]:
    """The serialised graph of `folder`, checked; the same bytes every time. Raises ExportError."""
    head = read_head(folder)
    stored = read_stored_tensors(folder / WEIGHTS)
    try:
        model = trace(folder, head)
        tidy(model)
        placement = move_weights_out(model.graph, stored)
        strip(model)
        graph = ir.to_proto(model).SerializeToString(deterministic=True)
        parity = check_parity(graph, folder)
    except ExportError:
        raise
    except Exception as error:  # architectures fail in ways of their own
        root = innermost(error)
        reason = (str(root).strip().splitlines() or [""])[0]
        raise ExportError(f"{folder}: not exportable: {type(root).__name__}: {reason}") from error
    if not (parity.max_difference <= MAX_DIFFERENCE and parity.min_cosine >= MIN_COSINE):
        raise ExportError(
            f"{folder}: the graph disagrees with the model: largest difference "
            f"{parity.max_difference:.1e} (allowed {MAX_DIFFERENCE:.0e}), "
            f"smallest cosine {parity.min_cosine:.7f} (needed {MIN_COSINE})"
        )
    return graph, head, placement, parity


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description="Make graph.onnx from a model folder.")
    parser.add_argument("folder", type=Path, help=f"holds config.json and {WEIGHTS}")
    parser.add_argument("-o", "--output", type=Path, help="default: graph.onnx in the folder")
    options = parser.parse_args(arguments)
    output: Path = options.output or options.folder / "graph.onnx"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        graph, head, placement, parity = export_graph(options.folder)
        output.write_bytes(graph)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {output}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{output}: {len(graph):,} bytes")
    print(f"pooling {head.pooling}, {'' if head.normalize else 'not '}normalised")
    print(f"{placement.outside} initialisers, {placement.outside_bytes:,} bytes, in {WEIGHTS}")
    print(f"{placement.inside} initialisers, {placement.inside_bytes:,} bytes, in the graph")
    print(
        f"{parity.texts} texts against sentence-transformers: largest difference "
        f"{parity.max_difference:.1e}, smallest cosine {parity.min_cosine:.7f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
