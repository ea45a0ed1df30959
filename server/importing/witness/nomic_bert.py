"""NomicBERT's forward pass.

Nussbaum et al., Nomic Embed (2024): BERT without biases in its matrices, with rotary
positions in place of learned ones and SwiGLU (Shazeer, GLU Variants (2020)); the norms stand behind
the sums, as in BERT. Two spellings of its settings are read: that of the published folders (GPT-2's
names and `rotary_emb_base`), and that of transformers 5; and two of its tensors. Which of the two
matrices gates (`fc12`), that `Wqkv` holds queries, keys and values in this order, and what absent
settings mean in the published spelling are conventions of nomic-ai/contrastors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic
from server.importing.witness import formulas, settings
from server.importing.witness.formulas import Floats
from server.importing.witness.rotary import (
    Attention,
    Norm,
    read_rotation,
)
from server.importing.witness.settings import Activation
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

_WORDS, _SEGMENTS = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type"))

# What the published spelling has to say: its code takes other values where it says nothing.
_PUBLISHED = {
    "rotary_emb_fraction": 1,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
}
# What it may say.
_NEUTRAL = {
    "prenorm": False,
    "causal": False,
    "use_rms_norm": False,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_head_dim": False,
    "norm_mlp": False,
    "num_heads_kv": None,
    "scale_attn_weights": True,
    "parallel_block_tied_norm": False,
}
_COUNTS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
_NUMBERS = {"layer_norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rope_theta"}
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}
_INNER_MULTIPLE = 256  # the published code rounds n_inner up to it

# The tensors' names in published folders and in transformers' own module.
_OLDER_NAMES = {
    "norm": "emb_ln",
    "layer": "encoder.layers",
    "out": "attn.out_proj",
    "up": "mlp.fc11",
    "gate": "mlp.fc12",
    "down": "mlp.fc2",
    "attention_norm": "norm1",
    "output_norm": "norm2",
}
_NAMES = {
    "norm": "embeddings.LayerNorm",
    "layer": "layers",
    "out": "self_attn.o_proj",
    "up": "mlp.up_proj",
    "gate": "mlp.gate_proj",
    "down": "mlp.down_proj",
    "attention_norm": "post_attention_layernorm",
    "output_norm": "post_mlp_layernorm",
}


@dataclass(frozen=True, slots=True)
class _Settings:
    width: int
    inner: int
    layers: int
    words: int
    segments: int
    epsilon: float
    gate: Activation
    attention: Attention


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """The token vectors of each text, (tokens, hidden size), float32; all are of segment 0.

    Raises:
        ImportRefused: a tensor is missing, or a setting is not known here.
    """
    refuse_strangers(config)
    settings.require(config, "is_causal", False, None)
    model = _read(_translated(config, max(map(len, texts))))
    tensors.find_prefix(_WORDS)
    found = tensors.look_up(_WORDS, texts, model.words, model.width)
    if model.segments:
        segment = tensors.take(_SEGMENTS, model.segments, model.width)[0]
        found = [text + segment for text in found]
    older = tensors.has("emb_ln.weight") or tensors.has("encoder.layers.0.attn.Wqkv.weight")
    names = _OLDER_NAMES if older else _NAMES
    norm = _norm(model, tensors, names["norm"])
    found = [norm(text) for text in found]
    for number in range(model.layers):
        step = _layer(model, tensors, names, f"{names['layer']}.{number}")
        found = [step(text) for text in found]
    return found


def _layer(
    model: _Settings, tensors: Tensors, names: Mapping[str, str], layer: str
) -> Callable[[Floats], Floats]:
    width, inner = model.width, model.inner
    wide = model.attention.heads * model.attention.head_dim
    if names is _OLDER_NAMES:
        parts = np.split(tensors.take(f"{layer}.attn.Wqkv.weight", 3 * wide, width), 3)
    else:
        parts = [
            tensors.take(f"{layer}.self_attn.{letter}_proj.weight", wide, width) for letter in "qkv"
        ]
    out = tensors.take(f"{layer}.{names['out']}.weight", width, wide)
    up = tensors.take(f"{layer}.{names['up']}.weight", inner, width)
    gate = tensors.take(f"{layer}.{names['gate']}.weight", inner, width)
    down = tensors.take(f"{layer}.{names['down']}.weight", width, inner)
    attention_norm = _norm(model, tensors, f"{layer}.{names['attention_norm']}")
    output_norm = _norm(model, tensors, f"{layer}.{names['output_norm']}")

    def step(text: Floats) -> Floats:
        queries, keys, values = (formulas.linear(text, part) for part in parts)
        mixed = model.attention(queries, keys, values)
        text = attention_norm(text + formulas.linear(mixed, out))
        gated = formulas.linear(text, up) * model.gate(formulas.linear(text, gate))
        return output_norm(text + formulas.linear(gated, down))

    return step


def _norm(model: _Settings, tensors: Tensors, name: str) -> Norm:
    scale, shift = (tensors.take(f"{name}.{part}", model.width) for part in ("weight", "bias"))
    return lambda inputs: formulas.layer_norm(inputs, scale, shift, model.epsilon)


def _read(config: Mapping[str, Any]) -> _Settings:
    """The spelling of transformers 5."""
    width = settings.count(config, "hidden_size")
    heads = settings.count(config, "num_attention_heads")
    head_dim = width // heads
    if config.get("head_dim") is not None:
        head_dim = settings.count(config, "head_dim")
    return _Settings(
        width=width,
        inner=settings.count(config, "intermediate_size"),
        layers=settings.count(config, "num_hidden_layers"),
        words=settings.count(config, "vocab_size"),
        segments=settings.count(config, "type_vocab_size", least=0),
        epsilon=settings.number(config, "layer_norm_eps"),
        gate=settings.activation(config, "hidden_act"),
        attention=Attention(heads, heads, head_dim, read_rotation(config, "rope_theta")),
    )


def _translated(config: Mapping[str, Any], longest: int) -> Mapping[str, Any]:
    """The published spelling in that of transformers 5, which saves both when it saves such a config.

    Args:
        longest: tokens of the longest text; beyond `max_trained_positions` a
            `rotary_scaling_factor` would change its rotation.

    Raises:
        ImportRefused: the two spellings differ, or the published one says what is not known here.
    """
    if "n_embd" not in config:
        return config
    for key, known in _PUBLISHED.items():
        if config.get(key) != known:
            raise UnknownArithmetic(
                f"config.json: {key} is {config.get(key)!r}; the witness knows only {known!r}"
            )
    for key, neutral in _NEUTRAL.items():
        settings.require(config, key, neutral, None)
    factor = config.get("rotary_scaling_factor")
    if factor and longest > settings.count(config, "max_trained_positions"):
        raise UnknownArithmetic(
            f"config.json: the witness knows no rotary_scaling_factor {factor} for {longest} tokens"
        )
    found: dict[str, object] = {
        **{new: settings.count(config, old) for old, new in _COUNTS.items()},
        **{new: settings.number(config, old) for old, new in _NUMBERS.items()},
    }
    found["intermediate_size"] = _rounded_up(settings.count(config, "n_inner"), _INNER_MULTIPLE)
    settings.require({"activation_function": None, **config}, "activation_function", *_ACTIVATIONS)
    found["hidden_act"] = _ACTIVATIONS[config["activation_function"]]
    for new, value in found.items():
        if config.get(new, value) != value:
            raise UnknownArithmetic(
                f"config.json: {new} is {config[new]!r}, but {value!r} as published"
            )
    words = settings.count(config, "vocab_size")
    multiple = settings.count({"pad_vocab_size_multiple": 1, **config}, "pad_vocab_size_multiple")
    return {**config, **found, "vocab_size": _rounded_up(words, multiple)}


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
