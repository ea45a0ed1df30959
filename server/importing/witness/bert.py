"""BERT. Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers (2018).

A token's vector, its position's and that of segment 0 are added and normalised; then the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.importing.witness import post_norm
from server.importing.witness.formulas import Floats
from server.importing.witness.settings import activation, count, number, require
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

WORDS = "embeddings.word_embeddings.weight"
_LAYER = post_norm.Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
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
    positions = [np.arange(len(text)) for text in texts]
    return encode(config, tensors, texts, positions, epsilon=1e-12)


def encode(
    config: Mapping[str, Any],
    tensors: Tensors,
    texts: Sequence[NDArray[np.int64]],
    positions: Sequence[NDArray[np.int64]],
    epsilon: float | None = None,
) -> list[Floats]:
    """As `forward`, with the positions of each text's tokens, (tokens,).

    Args:
        epsilon: that of the norms in configs which do not say one; None: they have to.
    """
    refuse_strangers(config)
    require(config, "position_embedding_type", "absolute")
    sizes = post_norm.Sizes(
        hidden=count(config, "hidden_size"),
        inner=count(config, "intermediate_size"),
        heads=count(config, "num_attention_heads"),
        epsilon=number(config, "layer_norm_eps", epsilon),
        activation=activation(config, "hidden_act", "gelu"),
    )
    tensors.find_prefix(WORDS)
    tables = [
        (WORDS, count(config, "vocab_size"), texts),
        (
            "embeddings.position_embeddings.weight",
            count(config, "max_position_embeddings"),
            positions,
        ),
        (
            "embeddings.token_type_embeddings.weight",
            count(config, "type_vocab_size"),
            [np.zeros_like(text) for text in texts],
        ),
    ]
    words, places, segments = (
        tensors.look_up(name, chosen, rows, sizes.hidden) for name, rows, chosen in tables
    )
    hidden = [sum(one[1:], one[0]) for one in zip(words, places, segments, strict=True)]
    hidden = post_norm.normalise(tensors, "embeddings.LayerNorm", hidden, sizes)
    for place in range(count(config, "num_hidden_layers")):
        hidden = post_norm.layer(tensors, f"encoder.layer.{place}.", _LAYER, sizes, hidden)
    return hidden
