"""A config.json of each family with rotary positions, as publishers write it, of a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from server.importing.witness.tensors import Tensors

_SIZES = {
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 10,
}
MODERNBERT: dict[str, Any] = {
    **_SIZES,
    "attention_bias": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "mlp_bias": False,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "position_embedding_type": "absolute",  # said by published folders, and not meant
}
NOMIC_BERT: dict[str, Any] = {
    **_SIZES,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-12,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    "type_vocab_size": 2,
}
NOMIC_BERT_PUBLISHED: dict[str, Any] = {
    "activation_function": "swiglu",
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 8,
    "n_head": 2,
    "n_inner": 256,
    "n_layer": 2,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 10,
}
QWEN2: dict[str, Any] = {
    **_SIZES,
    "hidden_act": "silu",
    "max_window_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
}
QWEN3: dict[str, Any] = {
    **QWEN2,
    "attention_bias": False,
    "head_dim": 4,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA3: dict[str, Any] = {
    **_SIZES,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "head_dim": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"],
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 4,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": True,
}
TEXT = np.array([1, 2, 3])


def no_tensors(place: Path) -> Tensors:
    """A file without any tensor: who asks for one has found nothing wrong with the config."""
    save_file({}, place / "model.safetensors")
    return Tensors(place, ["model.safetensors"])
