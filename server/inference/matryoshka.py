"""Cutting vectors to fewer dimensions.

Matryoshka representation learning (Kusupati et al., 2022, arXiv:2205.13147) makes prefixes of a
vector useful by themselves. A model that was not trained for it gets there by an orthogonal
rotation, which leaves full-size cosines as they are. A row's bits do not depend on the rows beside it.
Pure functions; any thread may call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.inference.pooling import normalize


def shorten(
    vectors: NDArray[np.float32],
    dimensions: int,
    rotation: NDArray[np.float32] | None,
    *,
    layer_norm: bool = False,
) -> NDArray[np.float32]:
    """The first `dimensions` of each vector, after the rotation if there is one, at length 1.

    Args:
        vectors: (texts, embedding_dim), float32.
        rotation: (embedding_dim, embedding_dim), orthogonal, float32.
        layer_norm: cut the layer-normalised vector, as nomic-embed-text-v1.5's model card does.
            Of that only the centring matters: its scale is the same for all components and the
            cut vector gets length 1.

    Returns:
        (texts, dimensions), float32, C-contiguous. At native size without a rotation the vectors
        are returned as they came. Each size is computed for itself: a smaller one is the prefix of
        a larger one at length 1 only up to rounding.
    """
    vectors = np.ascontiguousarray(vectors)  # else sums along a row are taken in another order
    if rotation is not None:
        # A product for each row: BLAS rounds a row of a matrix by how many rows there are, and by
        # its place among them (OpenBLAS 0.3.31).
        cut = (vectors[:, None, :] @ rotation[:, :dimensions])[:, 0]
    elif dimensions < vectors.shape[1]:
        if layer_norm:
            vectors = vectors - vectors.mean(axis=1, keepdims=True)
        cut = vectors[:, :dimensions]
    else:
        return vectors
    return normalize(cut)  # a prefix of zeros stays zeros
