"""MPNet. Song et al., MPNet: Masked and Permuted Pre-training for Language Understanding (2020).

BERT without segments, with learned positions that begin behind the padding's id, which is 1, and
with one table of relative position biases that all layers share (section 3.1; the buckets are T5's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.importing.witness import post_norm, relative_bias, roberta
from server.importing.witness.formulas import Floats
from server.importing.witness.settings import activation, count, number, require
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

WORDS = "embeddings.word_embeddings.weight"
PADDING = 1
_FARTHEST = 128
_LAYER = post_norm.Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """Token vectors (tokens, hidden_size) of each text's token ids.

    Raises:
        ImportRefused: a tensor is missing, or the config says what these formulas do not know.
    """
    refuse_strangers(config)
    require(config, "pad_token_id", PADDING)
    sizes = post_norm.Sizes(
        hidden=count(config, "hidden_size"),
        inner=count(config, "intermediate_size"),
        heads=count(config, "num_attention_heads"),
        epsilon=number(config, "layer_norm_eps"),
        activation=activation(config, "hidden_act", "gelu"),
    )
    tensors.find_prefix(WORDS)
    words = tensors.look_up(WORDS, texts, count(config, "vocab_size"), sizes.hidden)
    places = tensors.look_up(
        "embeddings.position_embeddings.weight",
        [roberta.positions(text, PADDING) for text in texts],
        count(config, "max_position_embeddings"),
        sizes.hidden,
    )
    hidden = [word + place for word, place in zip(words, places, strict=True)]
    hidden = post_norm.normalise(tensors, "embeddings.LayerNorm", hidden, sizes)
    buckets = count(config, "relative_attention_num_buckets")
    table = tensors.take("encoder.relative_attention_bias.weight", buckets, sizes.heads)
    biases = [relative_bias.bias_of(table, len(text), _FARTHEST) for text in texts]
    for place in range(count(config, "num_hidden_layers")):
        hidden = post_norm.layer(tensors, f"encoder.layer.{place}.", _LAYER, sizes, hidden, biases)
    return hidden
