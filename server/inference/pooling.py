"""Token vectors to one vector a text, for graphs that leave it to others, and vectors compared.

Graphs that this software makes pool themselves. But for `cosines`, a text's bits do not depend on
the texts beside it. Pure functions; any thread may call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import PoolingMode


def pool(
    hidden: NDArray[np.float32], attention_mask: NDArray[np.int64], mode: PoolingMode
) -> NDArray[np.float32]:
    """The formulas of sentence-transformers' Pooling module.

    Args:
        hidden: (texts, tokens, hidden_dim), float32.
        attention_mask: (texts, tokens), 1 for a token, 0 for padding on the right.

    Returns:
        (texts, hidden_dim), float32, not normalised.
    """
    lengths = np.maximum(attention_mask.sum(axis=1), 1)
    pooled: NDArray[np.float32]
    if mode == "cls":
        pooled = hidden[:, 0]
    elif mode == "last_token":
        pooled = hidden[np.arange(len(hidden)), lengths - 1]
    else:
        # A product for each text, whose order of summing does not know of the others.
        sums = (attention_mask.astype(np.float32)[:, None, :] @ hidden)[:, 0]
        pooled = sums / lengths.astype(np.float32)[:, None]
    return pooled


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each vector at length 1; (texts, dimensions), float32, C-contiguous. Zeros stay zeros."""
    vectors = np.ascontiguousarray(vectors)  # else sums along a row are taken in another order
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    return np.asarray(vectors / np.maximum(lengths, tiny), dtype=np.float32)


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart, computed in float64; (texts,)."""
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(wide_left, axis=1) * np.linalg.norm(wide_right, axis=1)
    found: NDArray[np.float64] = np.einsum("nd,nd->n", wide_left, wide_right) / lengths
    return found
