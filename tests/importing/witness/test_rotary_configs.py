"""What a config says and a family's formulas do not know is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ImportRefused, UnknownArithmetic
from server.importing.witness import gemma3, modernbert, nomic_bert, qwen
from tests.importing.witness import configs

FAMILIES: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "modernbert": (modernbert.forward, configs.MODERNBERT),
    "nomic_bert": (nomic_bert.forward, configs.NOMIC_BERT),
    "nomic": (nomic_bert.forward, configs.NOMIC_BERT_PUBLISHED),
    "qwen2": (qwen.forward_qwen2, configs.QWEN2),
    "qwen3": (qwen.forward_qwen3, configs.QWEN3),
    "gemma3": (gemma3.forward, configs.GEMMA3),
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
KNOWN: list[tuple[str, dict[str, Any]]] = [
    ("modernbert", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("nomic", {"rotary_scaling_factor": 2, "type_vocab_size": 0}),
    ("nomic", {"activation_function": "geglu", "pad_vocab_size_multiple": 1}),
    ("qwen2", {"is_causal": False, "head_dim": 4, "rope_scaling": {"type": "linear", "factor": 2}}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "rope_parameters": {}}),
    ("qwen3", {"use_bidirectional_attention": True, "num_experts": 0, "pruned_heads": {}}),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}),
    ("gemma3", {"is_causal": False}),
    ("gemma3", {"use_bidirectional_attention": None, "final_logit_softcapping": 30.0}),
]
UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    # the rotation
    ("qwen3", {"rope_scaling": YARN}, "rope_type is 'yarn'"),
    ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    ("qwen3", {"rope_scaling": {**LINEAR, "type": "dynamic"}}, "rope_type is 'linear'"),
    ("qwen3", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
    ("qwen3", {"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
    ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ("qwen3", {"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta is 1000000.0"),
    ("qwen3", {"rope_parameters": {"factor": 2.0}}, "the factor 2.0"),
    ("qwen3", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not an object"),
    ("qwen3", {"rope_theta": 0}, "rope_theta is 0"),
    ("qwen3", {"rope_theta": True}, "rope_theta is True"),
    ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "factor is -1.0"),
    ("gemma3", {"rope_parameters": {"full_attention": LINEAR}}, "nothing of sliding_attention"),
    ("gemma3", {"rope_parameters": LINEAR}, "nothing of"),
    ("modernbert", {"local_rope_theta": None}, "local_rope_theta is None"),
    # the layers
    ("gemma3", {"layer_types": ["chunked_attention", "full_attention"]}, "'chunked_attention'"),
    ("gemma3", {"layer_types": ["full_attention"]}, "layer_types does not name 2 layers"),
    ("modernbert", {"layer_types": "all"}, "layer_types does not name 2 layers"),
    ("gemma3", {"layer_types": None}, "sliding_window_pattern"),
    ("qwen3", {"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
    ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": True, "is_causal": False}, "window without causal"),
    ("gemma3", {"sliding_window": None}, "sliding_window is None"),
    # numbers and names
    ("qwen2", {"hidden_act": "relu6"}, "hidden_act is 'relu6'"),
    ("modernbert", {"hidden_activation": "mish"}, "hidden_activation is 'mish'"),
    ("nomic", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
    ("qwen2", {"attention_bias": False}, "attention_bias"),
    ("qwen2", {"mlp_bias": True}, "mlp_bias"),
    ("qwen3", {"attention_bias": "yes"}, "attention_bias"),
    ("gemma3", {"use_bidirectional_attention": "vision"}, "use_bidirectional_attention"),
    ("qwen3", {"head_dim": 3}, "heads of 3 numbers"),
    ("modernbert", {"num_attention_heads": 3}, "3 heads do not fit hidden_size 8"),
    ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ("nomic_bert", {"type_vocab_size": float("inf")}, "type_vocab_size is inf"),
    # two spellings
    ("nomic", {"hidden_size": 16}, "hidden_size is 16, but 8"),
    ("nomic", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but 'silu'"),
    ("nomic", {"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta is 1000.0, but 10000.0"),
    # nomic's own settings
    *(
        ("nomic", {key: True}, key)
        for key in (
            "prenorm",
            "causal",
            "use_rms_norm",
            "norm_mlp",
            "rotary_emb_interleaved",
            "parallel_block",
            "qkv_proj_bias",
            "mlp_fc1_bias",
            "mlp_fc2_bias",
            "scale_attn_by_inverse_layer_idx",
        )
    ),
    ("nomic", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
    ("nomic", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base"),
    ("nomic", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("nomic", {"rotary_scaling_factor": 2, "max_trained_positions": 2}, "rotary_scaling_factor"),
    ("nomic", {"num_experts": 8, "moe_every_n_layers": 2}, "moe_every_n_layers"),
    # other models'
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("qwen3", {"num_experts": 128}, "num_experts"),
    ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("modernbert", {"is_decoder": True}, "is_decoder"),
    ("modernbert", {"is_causal": True}, "is_causal"),
    ("nomic_bert", {"is_causal": True}, "is_causal"),
    ("gemma3", {"is_causal": True}, "is_causal"),
    ("gemma3", {"is_causal": False, "use_bidirectional_attention": False}, "is_causal"),
    ("nomic_bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("modernbert", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
]
# What the arithmetic hangs on is not assumed, whatever a library takes where it is not said.
NEEDED = {
    "modernbert": "global_rope_theta local_rope_theta local_attention norm_eps hidden_activation "
    "global_attn_every_n_layers hidden_size intermediate_size num_attention_heads vocab_size",
    "nomic_bert": "rope_parameters layer_norm_eps hidden_act type_vocab_size num_hidden_layers",
    "nomic": "rotary_emb_base rotary_emb_fraction activation_function layer_norm_epsilon n_inner "
    "qkv_proj_bias mlp_fc1_bias mlp_fc2_bias type_vocab_size n_head",
    "qwen2": "rope_theta rms_norm_eps hidden_act num_key_value_heads",
    "qwen3": "rope_theta rms_norm_eps hidden_act num_key_value_heads head_dim",
    "gemma3": "rope_theta rope_local_base_freq rms_norm_eps hidden_activation num_key_value_heads "
    "head_dim query_pre_attn_scalar sliding_window",
}

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
OLDER_AND_NEWER = [
    "rope_parameters",
    "rope_scaling",
    "layer_types",
    "is_causal",
    "num_hidden_layers",
]


def _compute(family: str, config: dict[str, Any], place: Path) -> None:
    forward, _ = FAMILIES[family]
    forward(config, configs.no_tensors(place), [configs.TEXT])


@pytest.mark.parametrize("family", FAMILIES)
def test_published_settings_are_known(family: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="the weights hold no"):
        _compute(family, FAMILIES[family][1], tmp_path)


@pytest.mark.parametrize(("family", "changes"), KNOWN)
def test_settings_that_are_known_pass(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="the weights hold no"):
        _compute(family, {**FAMILIES[family][1], **changes}, tmp_path)


@pytest.mark.parametrize(("family", "changes", "named"), UNKNOWN)
def test_a_setting_that_is_not_known_is_named(
    family: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownArithmetic, match=f"^config.json: .*{re.escape(named)}"):
        _compute(family, {**FAMILIES[family][1], **changes}, tmp_path)


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family, keys in NEEDED.items() for key in keys.split()]
)
def test_a_setting_that_decides_and_is_not_said_is_named(
    family: str, key: str, tmp_path: Path
) -> None:
    config = {k: v for k, v in FAMILIES[family][1].items() if k != key}
    told = {"rope_parameters": "rope_theta"}.get(key, key)
    with pytest.raises(UnknownArithmetic, match=f"^config.json: .*{told}"):
        _compute(family, config, tmp_path)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_whatever_a_config_says_it_is_refused_in_one_way(family: str, data: st.DataObject) -> None:
    config = FAMILIES[family][1]
    key = data.draw(st.sampled_from([*config, *OLDER_AND_NEWER]))
    kinds = st.fixed_dictionaries({"rope_type": ODD, "rope_theta": ODD, "factor": ODD})
    changed = {**config, key: data.draw(ODD | kinds | st.lists(ODD, min_size=2, max_size=2))}
    with TemporaryDirectory() as place, pytest.raises(ImportRefused):
        _compute(family, changed, Path(place))
