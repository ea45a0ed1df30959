"""Gemma 3's forward pass over text.

Gemma Team, Gemma 3 Technical Report (2025), section 2: grouped queries, RMS norms before and behind
attention and feed-forward, norms over each head of queries and keys, windows in five of six layers
with another base of the rotation, positions of the other layers divided by a factor. From Gemma
(2024) and Gemma 2 (2024): GeGLU with the approximate GELU, embeddings times the root of their size,
norms whose stored scale counts from 1. EmbeddingGemma (2025): each token sees all others.

The embeddings' factor is taken in float32. Where weights are computed in bfloat16 it is rounded
with them (the root of 1152 is 34 instead of 33.94); the server computes in float32 whatever the
weights are stored in. What a window means was settled with transformers' code: of w tokens causal
attention sees itself and w - 1 before it, attention both ways w // 2 to each side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.importing.witness import gated_decoder, settings
from server.importing.witness.formulas import Floats
from server.importing.witness.rotary import (
    FULL,
    SLIDING,
    Attention,
    read_layer_types,
    read_rotation,
)
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """The token vectors of each text, (tokens, hidden_size), float32.

    Raises:
        ImportRefused: a tensor is missing, or a setting is not known here.
    """
    refuse_strangers(config)
    layer_types = read_layer_types(config, lambda number: _older_type(config, number))
    biased = settings.flag(config, "attention_bias", default=False)
    plan = gated_decoder.Plan(
        width=settings.count(config, "hidden_size"),
        inner=settings.count(config, "intermediate_size"),
        epsilon=settings.number(config, "rms_norm_eps"),
        gate=settings.activation(config, "hidden_activation"),
        attention={kind: _read_attention(config, kind) for kind in set(layer_types)},
        layer_types=layer_types,
        biased=frozenset("qkvo" if biased else ""),
        norms_heads=True,
        scale_offset=1,
        attention_norms=("input_layernorm", "post_attention_layernorm"),
        feed_forward_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )
    words = "embed_tokens.weight"
    rows = settings.count(config, "vocab_size")
    tensors.find_prefix(words)
    found = tensors.look_up(words, texts, rows, plan.width)
    root = np.float32(math.sqrt(plan.width))
    return gated_decoder.run(plan, tensors, [text * root for text in found])


def _older_type(config: Mapping[str, Any], number: int) -> str:
    return SLIDING if (number + 1) % settings.count(config, "sliding_window_pattern") else FULL


def _read_attention(config: Mapping[str, Any], kind: str) -> Attention:
    both_ways = settings.flag(config, "use_bidirectional_attention", default=False)
    settings.require(config, "is_causal", not both_ways, None)
    reach = None
    if kind == SLIDING:
        window = settings.count(config, "sliding_window")
        reach = window // 2 if both_ways else window - 1
    base = "rope_local_base_freq" if kind == SLIDING else "rope_theta"
    return Attention(
        **gated_decoder.read_sizes(config, settings.count(config, "head_dim")),
        # The factor of `rope_scaling` is for the layers without a window.
        rotation=read_rotation(config, base, layer_type=kind, scaled=kind == FULL),
        causal=not both_ways,
        reach=reach,
        scale=settings.number(config, "query_pre_attn_scalar") ** -0.5,
    )
