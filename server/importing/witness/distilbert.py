"""DistilBERT. Sanh et al., DistilBERT, a distilled version of BERT (2019).

BERT without segments and with names of its own; its LayerNorms have BERT's epsilon, 1e-12, which no
config says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.importing.witness import post_norm
from server.importing.witness.formulas import Floats
from server.importing.witness.settings import activation, count
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

WORDS = "embeddings.word_embeddings.weight"
_EPSILON = 1e-12
_LAYER = post_norm.Names(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """Token vectors (tokens, dim) of each text's token ids.

    Raises:
        ImportRefused: a tensor is missing, or the config says what these formulas do not know.
    """
    refuse_strangers(config)
    sizes = post_norm.Sizes(
        hidden=count(config, "dim"),
        inner=count(config, "hidden_dim"),
        heads=count(config, "n_heads"),
        epsilon=_EPSILON,
        activation=activation(config, "activation", "gelu"),
    )
    tensors.find_prefix(WORDS)
    words = tensors.look_up(WORDS, texts, count(config, "vocab_size"), sizes.hidden)
    places = tensors.look_up(
        "embeddings.position_embeddings.weight",
        [np.arange(len(text)) for text in texts],
        count(config, "max_position_embeddings"),
        sizes.hidden,
    )
    hidden = [word + place for word, place in zip(words, places, strict=True)]
    hidden = post_norm.normalise(tensors, "embeddings.LayerNorm", hidden, sizes)
    for place in range(count(config, "n_layers")):
        hidden = post_norm.layer(tensors, f"transformer.layer.{place}.", _LAYER, sizes, hidden)
    return hidden
