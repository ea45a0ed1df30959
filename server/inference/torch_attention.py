"""Attention over sequences that lie one behind the other in one row, without padding.

An attention function in transformers' registry, so that the models stay as transformers wrote
them. On CUDA it is the kernel that torch ships (`torch.nn.attention.varlen`, FlashAttention 2); on
CPU a reference for the same operator, so that the same call can be tested everywhere. Stateless.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface, PreTrainedModel

# Absent from transformers' registry of masks, so that no mask is made.
PACKED_ATTENTION = "packed_varlen"

# Torch 2.11 shares key heads among query heads unasked; from 2.12 on it must be told.
_TELLS_GQA = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """A layer's attention, under transformers' attention signature.

    query (1, heads, tokens, head_dim), key and value (1, key_heads, tokens, head_dim) to
    (1, tokens, heads, head_dim). Sequence i is `cu_seq_lens_q[i]:cu_seq_lens_q[i + 1]` (int32);
    what lies behind the last one is left undefined. A window of w tokens counts the own one.
    """
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if getattr(module, "is_causal", False) else reach)
    tokens_first = [part[0].transpose(0, 1) for part in (query, key, value)]
    extra = {"enable_gqa": query.shape[1] != key.shape[1]} if _TELLS_GQA else {}
    attended = varlen.varlen_attn(
        *tokens_first,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=window,
        **extra,
    )
    return attended.unsqueeze(0), None


def reference_varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *_: Any,
    **__: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator on CPU, one sequence after the other; computed in the inputs' dtype.

    query (tokens, heads, head_dim), key and value (tokens, key_heads, head_dim) to the like of
    query; the two other results are not computed.
    """
    before, after = window_size or (-1, -1)
    attended = torch.full_like(query, torch.nan)  # undefined, as on a GPU, behind the last sequence
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        if begin == end:
            continue
        distance = torch.arange(end - begin) - torch.arange(end - begin)[:, None]  # (query, key)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if before >= 0:
            seen &= distance >= -before
        if after >= 0:
            seen &= distance <= after
        heads_first = [part[begin:end].transpose(0, 1) for part in (query, key, value)]
        attended[begin:end] = torch.nn.functional.scaled_dot_product_attention(
            *heads_first, attn_mask=seen, scale=scale, enable_gqa=True
        ).transpose(0, 1)
    nothing = query.new_empty(0)
    return attended, nothing, nothing.clone()


def takes_attention_functions(transformer: PreTrainedModel) -> bool:
    """Whether its class says that it asks transformers' registry for its attention."""
    says: bool = transformer._supports_attention_backend  # noqa: SLF001 (no public name for it)
    return says


def set_attention(transformer: PreTrainedModel, name: str) -> None:
    """Choose the attention of all layers.

    Raises:
        ValueError: the class does not take it.
    """
    transformer.set_attn_implementation(name)
    if transformer.config._attn_implementation != name:  # noqa: SLF001
        raise ValueError(f"{type(transformer).__name__} does not take the attention {name}")


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
varlen._varlen_attn.register_kernel("cpu")(reference_varlen_attention)  # noqa: SLF001 (torch has none)
