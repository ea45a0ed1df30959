"""Token vectors to one vector a text: pooling, dense layers and normalisation, in plain numpy.

Reimers and Gurevych, Sentence-BERT (2019), section 3, has the poolings; a dense layer is a linear
step and its activation. Nothing is padded, so that there is no mask. Not thread-safe, as `Tensors`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from server.catalog.card import Activation, PoolingMode
from server.importing.witness import formulas
from server.importing.witness.formulas import Floats
from server.importing.witness.tensors import Tensors

# By torch's names, which sentence-transformers' files use.
_ACTIVATIONS: dict[Activation, Callable[[Floats], Floats]] = {
    "Identity": lambda inputs: inputs,
    "Tanh": formulas.tanh,
    "ReLU": formulas.relu,
    "GELU": formulas.gelu,
    "SiLU": formulas.silu,
    "Sigmoid": formulas.sigmoid,
}


def pool(hidden: Floats, mode: PoolingMode) -> Floats:
    """One text's token vectors (tokens, hidden_dim) to (hidden_dim,)."""
    if mode == "cls":
        pooled: Floats = hidden[0]
    elif mode == "last_token":
        pooled = hidden[-1]
    else:
        pooled = hidden.mean(axis=0)
    return pooled


def dense(inputs: Floats, tensors: Tensors, activation: Activation) -> Floats:
    """A dense layer's file over (texts, in), to (texts, out).

    Raises:
        ImportRefused: the file lacks `linear.weight`, or it has another shape.
    """
    out_features, _ = tensors.shape("linear.weight")
    weight = tensors.take("linear.weight", out_features, inputs.shape[1])
    bias = tensors.take("linear.bias", out_features) if tensors.has("linear.bias") else None
    return _ACTIVATIONS[activation](formulas.linear(inputs, weight, bias))


def unit(vectors: Floats) -> Floats:
    """Each vector (texts, dimensions) over its Euclidean length."""
    found: Floats = vectors / np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return found
