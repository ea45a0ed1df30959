"""Spellings and settings that published BERTs, RoBERTas, MPNets and T5s have, and ours do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf
from safetensors.numpy import load_file, save_file

from server.errors import ImportRefused
from server.importing.witness import bert, mpnet, roberta, t5
from tests.importing.witness.torch_tiny import (
    SIZES,
    WEIGHTS,
    WORDS,
    Forward,
    computed_by_torch,
    pooled,
    randomise,
    read_config,
    save,
    spelled,
    witness,
)

MOST = 1e-5
LONG = {**SIZES, "max_position_embeddings": 66}
T5 = {"vocab_size": WORDS, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 4}
BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}


def _bert(**options: Any) -> Any:
    return tf.BertModel(tf.BertConfig(**SIZES | options), add_pooling_layer=False)


def _roberta(**options: Any) -> Any:
    return tf.RobertaModel(tf.RobertaConfig(**LONG | options), add_pooling_layer=False)


def _mpnet(**options: Any) -> Any:
    return tf.MPNetModel(tf.MPNetConfig(**LONG | options), add_pooling_layer=False)


def _t5(**options: Any) -> Any:
    return tf.T5EncoderModel(tf.T5Config(**T5 | options))


@pytest.mark.parametrize(
    ("forward", "make", "options"),
    [
        (bert.forward, _bert, {"type_vocab_size": 1, "hidden_act": "gelu_fast"}),
        (bert.forward, _bert, {"layer_norm_eps": 0.1, "hidden_act": "silu", "pad_token_id": 7}),
        (bert.forward, _bert, {"num_attention_heads": 3, "hidden_act": "gelu_python"}),
        (roberta.forward, _roberta, {"pad_token_id": 0}),
        (roberta.forward, _roberta, {"pad_token_id": 7, "type_vocab_size": 1}),
        (mpnet.forward, _mpnet, {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
        (t5.forward, _t5, {**BUCKETS, "layer_norm_epsilon": 0.1}),
        (t5.forward, _t5, {**BUCKETS, "feed_forward_proj": "gated-gelu", "num_heads": 3}),
    ],
)
def test_the_witness_computes_what_transformers_computes(
    forward: Forward, make: Callable[..., Any], options: dict[str, Any], tmp_path: Path
) -> None:
    model = randomise(make(**options))
    hidden, unused = witness(forward, save(model, tmp_path / "model"))
    assert unused == ()
    assert np.abs(pooled(hidden) - computed_by_torch(model)).max() <= MOST


def test_norms_named_as_in_tensorflow_are_read_and_missed(tmp_path: Path) -> None:
    folder = save(randomise(_bert()), tmp_path / "model")
    right, _ = witness(bert.forward, folder)
    stored = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(stored, folder / WEIGHTS)
    found, unused = witness(bert.forward, folder)
    assert unused == ()
    assert np.array_equal(pooled(found), pooled(right))
    for name in stored:
        if "LayerNorm" in name:
            save_file({k: v for k, v in stored.items() if k != name}, folder / WEIGHTS)
            with pytest.raises(ImportRefused, match=name):
                witness(bert.forward, folder)


@pytest.mark.parametrize(
    ("forward", "make", "changes", "named"),
    [
        # RoBERTa and MPNet were trained with 1e-5, and libraries take 1e-12 where nothing is said.
        (roberta.forward, _roberta, {"layer_norm_eps": None}, "layer_norm_eps is None"),
        (roberta.forward, _roberta, {"pad_token_id": None}, "pad_token_id is None"),
        (mpnet.forward, _mpnet, {"layer_norm_eps": None}, "layer_norm_eps is None"),
        (t5.forward, _t5, {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'"),
        (t5.forward, _t5, {"is_gated_act": True}, "is_gated_act is True"),
        (t5.forward, _t5, {"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu'"),
    ],
)
def test_what_is_not_said_or_said_twice_is_refused(
    forward: Forward,
    make: Callable[..., Any],
    changes: dict[str, Any],
    named: str,
    tmp_path: Path,
) -> None:
    folder = save(randomise(make()), tmp_path / "model")
    with pytest.raises(ImportRefused, match=named):
        witness(forward, folder, spelled(read_config(folder), **changes))


def test_an_old_berts_config_need_not_say_its_epsilon(tmp_path: Path) -> None:
    """The first ones do not: their code had 1e-12 in it."""
    folder = save(randomise(_bert(layer_norm_eps=1e-12)), tmp_path / "model")
    config = read_config(folder)
    right, _ = witness(bert.forward, folder, config)
    found, _ = witness(bert.forward, folder, spelled(config, layer_norm_eps=None))
    assert np.array_equal(pooled(found), pooled(right))
