"""T5's encoder. Raffel et al., Exploring the Limits of Transfer Learning (2019), section 2.1.

Each step's input is normalised by its root mean square, nothing has a bias, attention is not
scaled, and positions are known by the bias of the first layer alone, which all layers share. T5 1.1
gates its feed-forward step: Shazeer, GLU Variants Improve Transformer (2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused
from server.importing.witness import formulas, relative_bias
from server.importing.witness.formulas import Floats, attention, linear, rms_norm
from server.importing.witness.settings import count, number, require
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

_FIRST = "encoder.block.0.layer.0.SelfAttention."
_WORDS = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one table
_FARTHEST = "relative_attention_max_distance"  # 128 in configs older than it
_PLAIN = {"relu": formulas.relu}
_GATED = {"gated-gelu": formulas.gelu_tanh, "gated-silu": formulas.silu}

# How newer configs say the same once more.
_SPELLED = {"relu": "relu", "gated-gelu": "gelu_new", "gated-silu": "silu"}


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """Token vectors (tokens, d_model) of each text's token ids.

    Raises:
        ImportRefused: a tensor is missing, or the config says what these formulas do not know.
    """
    refuse_strangers(config)
    require(config, "feed_forward_proj", *_PLAIN, *_GATED)
    kind = str(config.get("feed_forward_proj", "relu"))
    require(config, "is_gated_act", kind in _GATED)
    require(config, "dense_act_fn", _SPELLED[kind])
    size, heads = count(config, "d_model"), count(config, "num_heads")
    inner = heads * count(config, "d_kv")
    epsilon = number(config, "layer_norm_epsilon", 1e-6)
    tensors.find_prefix(f"{_FIRST}q.weight")
    hidden = _words(config, tensors, texts)
    buckets = count(config, "relative_attention_num_buckets")
    table = tensors.take(f"{_FIRST}relative_attention_bias.weight", buckets, heads)
    farthest = count({_FARTHEST: 128, **config}, _FARTHEST)
    biases = [relative_bias.bias_of(table, len(text), farthest) for text in texts]
    for place in range(count(config, "num_layers")):
        block = f"encoder.block.{place}.layer."
        scale = tensors.take(f"{block}0.layer_norm.weight", size)
        inputs = [rms_norm(text, scale, epsilon) for text in hidden]
        query, key, value = (
            _project(tensors, f"{block}0.SelfAttention.{name}.weight", inputs, inner)
            for name in "qkv"
        )
        mixed = [
            attention(q, k, v, heads=heads, scale=1, bias=bias)
            for q, k, v, bias in zip(query, key, value, biases, strict=True)
        ]
        found = _project(tensors, f"{block}0.SelfAttention.o.weight", mixed, size)
        hidden = [old + new for old, new in zip(hidden, found, strict=True)]
        scale = tensors.take(f"{block}1.layer_norm.weight", size)
        inputs = [rms_norm(text, scale, epsilon) for text in hidden]
        found = _feed_forward(config, tensors, f"{block}1.DenseReluDense.", inputs)
        hidden = [old + new for old, new in zip(hidden, found, strict=True)]
    scale = tensors.take("encoder.final_layer_norm.weight", size)
    return [rms_norm(text, scale, epsilon) for text in hidden]


def _words(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    shape = count(config, "vocab_size"), count(config, "d_model")
    named = [name for name in _WORDS if tensors.has(name)] or _WORDS[:1]
    found = [tensors.look_up(name, texts, *shape) for name in named]
    if any(not np.array_equal(a, b) for a, b in zip(found[0], found[-1], strict=True)):
        raise ImportRefused(
            f"{tensors.folder}: {' and '.join(named)} are two names of one table, but differ"
        )
    return found[0]


def _feed_forward(
    config: Mapping[str, Any], tensors: Tensors, prefix: str, inputs: Sequence[Floats]
) -> list[Floats]:
    kind = str(config.get("feed_forward_proj", "relu"))
    inner = count(config, "d_ff")
    if kind in _PLAIN:
        wide = _project(tensors, f"{prefix}wi.weight", inputs, inner)
        passed = [_PLAIN[kind](text) for text in wide]
    else:
        gate = _project(tensors, f"{prefix}wi_0.weight", inputs, inner)
        wide = _project(tensors, f"{prefix}wi_1.weight", inputs, inner)
        passed = [_GATED[kind](a) * b for a, b in zip(gate, wide, strict=True)]
    return _project(tensors, f"{prefix}wo.weight", passed, count(config, "d_model"))


def _project(tensors: Tensors, name: str, inputs: Sequence[Floats], size: int) -> list[Floats]:
    weight = tensors.take(name, size, inputs[0].shape[1])
    return [linear(text, weight) for text in inputs]
