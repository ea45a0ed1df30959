"""A model folder's transformer as an ONNX graph that holds no weights.

Pooling, dense layers and normalisation are inside the graph; see `onnx_graph` for what else.

    inputs   input_ids       int64 (batch, tokens)
             attention_mask  int64 (batch, tokens), 1 for a token, 0 for padding
    output   embeddings      float32 (batch, embedding_dim)

Needs the `[torch]` extra; serving the graph needs onnxruntime alone. Knows nothing of cards.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from transformers import AttentionInterface
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    eager_mask,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from server.errors import ImportRefused, first_line
from server.importing.file_account import check_files
from server.importing.folder import CONFIG_FILE, ModelFolder
from server.importing.onnx_graph import StoredShare, move_weights_out, strip, tidy
from server.importing.own_code import misspelt_settings, renamed_settings
from server.importing.stored_tensors import read_stored_tensors
from server.importing.torch_ordered_sets import ordered_sets
from server.inference.safetensors_header import NotSafetensors
from server.inference.tensor_account import UnaccountedTensors
from server.inference.torch_attention import takes_attention_functions
from server.inference.torch_loading import (
    account_for_tensors,
    quiet_transformers,
    read_config,
    read_transformer,
)
from server.inference.torch_modules import DenseLayers, PaddedModule, read_dense

FUSED_ATTENTION = "onnxruntime_fused"  # our name in transformers' attention registry
MAX_GRAPH_BYTES = 2**31 - 1  # of a protobuf message


def export_graph(folder: ModelFolder) -> tuple[bytes, StoredShare]:
    """The serialised graph of a folder; the same bytes every time.

    Raises:
        ImportRefused: the architecture cannot be exported.
    """
    quiet_transformers()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    stored = read_stored_tensors(folder.path, folder.weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = trace(folder)
        tidy(model)
        share = move_weights_out(model.graph, stored)
        strip(model)
        if share.inside_bytes < MAX_GRAPH_BYTES:
            graph: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
            return graph, share
    except ImportRefused:
        raise
    except Exception as error:  # architectures fail in ways of their own
        root = innermost(error)
        raise ImportRefused(
            f"{folder.path}: not exportable: {type(root).__name__}: {first_line(root, unsaid='')}"
        ) from error
    raise ImportRefused(
        f"{folder.path}: {share.inside_bytes:,} bytes of weights are not in the safetensors "
        f"files as the model uses them, and a graph holds at most {MAX_GRAPH_BYTES:,}"
    )


def check_tensors(folder: ModelFolder) -> None:
    """Refuse files that are not what transformers' class for the folder wants; reads no weight.

    Raises:
        ImportRefused: a tensor is missing, or has no place, or another shape; or the architecture
            is none of transformers'.
    """
    check_architecture(folder)
    check_files(folder)
    weights = [folder.path / name for name in folder.transformer_weights]
    try:
        _check_renamed(folder)
        account_for_tensors(folder.transformer_path / CONFIG_FILE, weights).check()
    except ImportRefused:
        raise
    except UnaccountedTensors as error:
        raise ImportRefused(f"{folder.path}: {error}") from None
    except NotSafetensors as error:
        raise ImportRefused(str(error)) from None
    except Exception as error:  # a config can be wrong in any way
        reason = f"{type(error).__name__}: {first_line(error, unsaid='')}"
        raise ImportRefused(
            f"{folder.transformer_path / CONFIG_FILE}: transformers makes no model of it: {reason}"
        ) from error


def check_architecture(folder: ModelFolder) -> None:
    """Refuse a model that transformers has no code for itself.

    Raises:
        ImportRefused: the folder would have to bring its own code (`trust_remote_code`).
    """
    if folder.not_stock:
        raise ImportRefused(f"{folder.path}: {folder.not_stock}")
    if folder.architecture not in CONFIG_MAPPING_NAMES:
        raise ImportRefused(
            f"{folder.path}: architecture {folder.architecture}: transformers does not know it"
        )


def _check_renamed(folder: ModelFolder) -> None:
    """Refuse settings that the class does not read and would take its own defaults for."""
    file = folder.transformer_path / CONFIG_FILE
    found = read_config(file)
    read = found.to_dict()
    names = {*type(found)().to_dict(), *found.attribute_map}
    for theirs, ours, said in (
        *renamed_settings(folder.config),
        *misspelt_settings(folder.config, names),
    ):
        taken: Any = read
        for key in ours.split("."):
            taken = taken.get(key) if isinstance(taken, dict) else None
        if taken != said:
            raise ImportRefused(
                f"{file}: {theirs} = {said}, but transformers' class reads "
                f"{ours}, which is {taken}; write {ours} = {said} beside it"
            )


def trace(folder: ModelFolder) -> ir.Model:
    """The folder's transformer with its head as an ONNX model, weights still inside."""
    AttentionInterface.register(FUSED_ATTENTION, fused_attention)
    AttentionMaskInterface.register(FUSED_ATTENTION, fused_attention_mask)
    weights = (folder.path / name for name in folder.transformer_weights)
    transformer = read_transformer(folder.transformer_path / CONFIG_FILE, weights, torch.float32)
    # Never sdpa: exported, it guards each softmax against NaN, 10 to 13 % of the time.
    fused = takes_attention_functions(transformer)
    transformer.set_attn_implementation(FUSED_ATTENTION if fused else "eager")
    head = folder.head
    layers = [read_dense(folder.path / layer.weights, layer.activation) for layer in head.dense]
    dense = DenseLayers(layers, normalize=head.normalize)
    ids = torch.arange(2, 20).reshape(2, 9)
    axes = {0: "batch", 1: "tokens"}
    with ordered_sets(transformer):
        program = torch.onnx.export(
            PaddedModule(transformer, dense, head.pooling).eval(),
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


def innermost(error: BaseException) -> BaseException:
    """The first failure of a chain; the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else innermost(error.__cause__)
