"""The families with rotary positions compute what transformers computes, and use every tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

from server.importing.witness import gemma3, modernbert, nomic_bert, qwen
from tests.importing.witness.torch_tiny import (
    SIZES,
    Forward,
    computed_by_torch,
    each_tensor_counts,
    pooled,
    randomise,
    read_config,
    save,
    spelled,
    witness,
)

MOST = 1e-5  # difference of a number in a vector of length 1
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
BERT_TOKENS = {
    "pad_token_id": 0,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPS = {"num_key_value_heads": 2}
WIDE_HEADS = {**GROUPS, "head_dim": 16}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
}
GEMMA = {
    **WIDE_HEADS,
    "query_pre_attn_scalar": 10,
    "sliding_window": 8,
    "layer_types": MIXED,
    "rope_parameters": BY_TYPE,
}


@dataclass(frozen=True)
class Case:
    """A model, and how its config.json is spelled other than transformers 5 spells it."""

    forward: Forward
    make: Callable[..., Any]
    options: dict[str, Any]
    respelled: dict[str, Any] = field(default_factory=dict)


def _modernbert(**options: Any) -> Any:
    return tf.ModernBertModel(tf.ModernBertConfig(**SIZES | BERT_TOKENS | options))


def _nomic(**options: Any) -> Any:
    config = tf.NomicBertConfig(**SIZES | options)
    return tf.NomicBertModel(config, add_pooling_layer=False)


def _qwen2(**options: Any) -> Any:
    return tf.Qwen2Model(tf.Qwen2Config(**SIZES | GROUPS | options))


def _qwen3(**options: Any) -> Any:
    return tf.Qwen3Model(tf.Qwen3Config(**SIZES | WIDE_HEADS | options))


def _gemma3(**options: Any) -> Any:
    return tf.Gemma3TextModel(tf.Gemma3TextConfig(**SIZES | GEMMA | options))


WINDOW = {"use_sliding_window": True, "sliding_window": 7}
CASES = {
    "modernbert": Case(modernbert.forward, _modernbert, {"local_attention": 8}),
    "modernbert-biased": Case(
        modernbert.forward,
        _modernbert,
        {
            "local_attention": 6,
            "layer_types": MIXED,
            "rope_parameters": BY_TYPE,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "norm_eps": 0.01,
        },
    ),
    "modernbert-as-transformers-4": Case(
        modernbert.forward,
        _modernbert,
        {"local_attention": 8},
        {
            "layer_types": None,
            "rope_parameters": None,
            "global_attn_every_n_layers": 2,
            "global_rope_theta": 900.0,
            "local_rope_theta": 30.0,
        },
    ),
    "nomic_bert": Case(nomic_bert.forward, _nomic, {"rope_parameters": {"rope_theta": 500.0}}),
    "nomic_bert-heads": Case(
        nomic_bert.forward, _nomic, {"head_dim": 16, "hidden_act": "gelu", "layer_norm_eps": 0.01}
    ),
    "qwen2": Case(qwen.forward_qwen2, _qwen2, {}),
    "qwen2-window": Case(qwen.forward_qwen2, _qwen2, {**WINDOW, "max_window_layers": 1}),
    "qwen2-both-ways": Case(qwen.forward_qwen2, _qwen2, {"is_causal": False}),
    "qwen2-as-transformers-4": Case(
        qwen.forward_qwen2,
        _qwen2,
        {**WINDOW, "max_window_layers": 2},
        {
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 5000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            **WINDOW,
        },
    ),
    "qwen3": Case(qwen.forward_qwen3, _qwen3, {}),
    "qwen3-biased": Case(
        qwen.forward_qwen3,
        _qwen3,
        {
            **WINDOW,
            "layer_types": MIXED,
            "attention_bias": True,
            "rope_parameters": LINEAR,
            "rms_norm_eps": 0.01,
        },
    ),
    "gemma3": Case(gemma3.forward, _gemma3, {"attention_bias": True}),
    "gemma3-both-ways": Case(
        gemma3.forward, _gemma3, {"use_bidirectional_attention": True, "rms_norm_eps": 0.01}
    ),
    "gemma3-as-transformers-4": Case(
        gemma3.forward,
        _gemma3,
        {},
        {
            "layer_types": None,
            "rope_parameters": None,
            "sliding_window_pattern": 2,
            "rope_theta": 1e6,
            "rope_local_base_freq": 70.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


def _folder(case: Case, place: Path) -> Path:
    save(randomise(case.make(**case.options)), place)
    config = spelled(read_config(place), **case.respelled)
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_witness_computes_what_transformers_computes(case: Case, tmp_path: Path) -> None:
    folder = _folder(case, tmp_path / "model")
    model = tf.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    hidden, unused = witness(case.forward, folder)
    assert unused == ()
    assert np.abs(pooled(hidden) - computed_by_torch(model)).max() <= MOST


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("modernbert-biased", 39),
        ("nomic_bert", 31),
        ("qwen2", 38),
        ("qwen3-biased", 47),
        ("gemma3", 53),
    ],
)
def test_no_tensor_can_be_missing_or_another_one(name: str, tensors: int, tmp_path: Path) -> None:
    folder = _folder(CASES[name], tmp_path / "model")
    assert each_tensor_counts(CASES[name].forward, folder, tmp_path / "changed") == tensors


@pytest.mark.parametrize(("hidden_act", "published"), [("silu", "swiglu"), ("gelu", "geglu")])
def test_nomics_own_config_is_read(tmp_path: Path, hidden_act: str, published: str) -> None:
    """transformers reads none of these names: its model is made by its own."""
    model = randomise(
        _nomic(intermediate_size=256, rope_parameters={"rope_theta": 50.0}, hidden_act=hidden_act)
    )
    folder = save(model, tmp_path / "model")
    config = {
        "activation_function": published,
        "causal": False,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 41,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": 48,
        "n_head": 4,
        "n_inner": 250,
        "n_layer": 3,
        "n_positions": 64,
        "pad_vocab_size_multiple": 8,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 50,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": 2,
        "scale_attn_by_inverse_layer_idx": False,
        "type_vocab_size": 2,
        "use_rms_norm": False,
        "vocab_size": 115,
    }
    hidden, unused = witness(nomic_bert.forward, folder, config)
    assert unused == ()
    assert np.abs(pooled(hidden) - computed_by_torch(model)).max() <= MOST
    # transformers 5 saves both spellings when it saves such a config anew.
    both = {**config, **read_config(folder), "vocab_size": config["vocab_size"]}
    again, _ = witness(nomic_bert.forward, folder, both)
    assert np.array_equal(pooled(again), pooled(hidden))


def test_tensors_named_as_transformers_names_nomics_modules_are_read(tmp_path: Path) -> None:
    model = randomise(_nomic())
    folder = save(model, tmp_path / "model")
    save_file(model.state_dict(), folder / "model.safetensors")
    hidden, unused = witness(nomic_bert.forward, folder)
    assert unused == ()
    assert np.abs(pooled(hidden) - computed_by_torch(model)).max() <= MOST
    assert (
        each_tensor_counts(nomic_bert.forward, folder, tmp_path / "changed") == 37
    )  # three tensors a layer for one that is fused


def test_a_prefix_and_a_language_models_head_are_no_matter(tmp_path: Path) -> None:
    model = randomise(_qwen2())
    folder = save(model, tmp_path / "model")
    right = pooled(witness(qwen.forward_qwen2, folder)[0])
    torch.manual_seed(0)
    head = tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES | GROUPS))
    head.model = model
    whole = save(head, tmp_path / "whole")
    hidden, unused = witness(qwen.forward_qwen2, whole)
    assert unused == ("lm_head.weight",)
    assert np.array_equal(pooled(hidden), right)
