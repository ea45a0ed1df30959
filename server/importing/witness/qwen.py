"""Qwen2's and Qwen3's forward passes.

Yang et al., Qwen2 (2024), section 2.2: as LLaMA, with grouped queries and biases on queries, keys
and values. Yang et al., Qwen3 (2025), section 2: without those biases, with RMS norms over each head
of queries and keys, and heads of a size of their own. That a window of w tokens holds the token
itself and w - 1 before it is the convention of Mistral 7B (Jiang et al., 2023), which they follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic
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


def forward_qwen2(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """The token vectors of each text, (tokens, hidden_size), float32.

    Raises:
        ImportRefused: a tensor is missing, or a setting is not known here.
    """
    settings.require(config, "attention_bias", True, None)
    settings.require(config, "qkv_bias", True, None)
    told = config.get("head_dim") is not None
    head_dim = settings.count(config, "head_dim") if told else None
    return _forward(config, tensors, texts, biased=frozenset("qkv"), head_dim=head_dim)


def forward_qwen3(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """As `forward_qwen2`."""
    biased = frozenset("qkvo" if settings.flag(config, "attention_bias", default=False) else "")
    head_dim = settings.count(config, "head_dim")
    return _forward(config, tensors, texts, biased=biased, head_dim=head_dim, norms_heads=True)


def _forward(
    config: Mapping[str, Any],
    tensors: Tensors,
    texts: Sequence[NDArray[np.int64]],
    *,
    biased: frozenset[str],
    head_dim: int | None,
    norms_heads: bool = False,
) -> list[Floats]:
    refuse_strangers(config)
    settings.require(config, "mlp_bias", False, None)
    layer_types = read_layer_types(config, lambda number: _older_type(config, number))
    reach = _read_reach(config) if SLIDING in layer_types else None
    causal = _is_causal(config)
    if reach is not None and not causal:
        raise UnknownArithmetic(
            "config.json: a window without causal attention is not known of Qwen"
        )
    sizes = gated_decoder.read_sizes(config, head_dim)
    rotation = read_rotation(config, "rope_theta")
    plan = gated_decoder.Plan(
        width=settings.count(config, "hidden_size"),
        inner=settings.count(config, "intermediate_size"),
        epsilon=settings.number(config, "rms_norm_eps"),
        gate=settings.activation(config, "hidden_act"),
        attention={
            kind: Attention(**sizes, rotation=rotation, causal=causal, reach=kind_reach)
            for kind, kind_reach in ((FULL, None), (SLIDING, reach))
        },
        layer_types=layer_types,
        biased=biased,
        norms_heads=norms_heads,
        scale_offset=0,
        attention_norms=("input_layernorm", None),
        feed_forward_norms=("post_attention_layernorm", None),
    )
    words = "embed_tokens.weight"
    rows = settings.count(config, "vocab_size")
    tensors.find_prefix(words)
    return gated_decoder.run(plan, tensors, tensors.look_up(words, texts, rows, plan.width))


def _is_causal(config: Mapping[str, Any]) -> bool:
    """Fine-tunes for embedding say one of these when each token was to see all others."""
    both_ways = settings.flag(config, "use_bidirectional_attention", default=False)
    return settings.flag(config, "is_causal", default=True) and not both_ways


def _older_type(config: Mapping[str, Any], number: int) -> str:
    if not settings.flag(config, "use_sliding_window", default=False):
        return FULL
    return SLIDING if number >= settings.count(config, "max_window_layers") else FULL


def _read_reach(config: Mapping[str, Any]) -> int:
    if not settings.flag(config, "use_sliding_window", default=False):
        raise UnknownArithmetic(
            "config.json: layer_types says sliding_attention, but use_sliding_window does not"
        )
    return settings.count(config, "sliding_window") - 1
