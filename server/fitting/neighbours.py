"""How much a shorter vector keeps: neighbours found again, and agreement with people's scores.

Pure functions on numpy arrays, bounded in memory; any thread may call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

NEIGHBOURS = 10
MAX_QUERIES = 4096  # texts whose neighbours are looked for, among all of them
BLOCK_BYTES = 64 * 1024 * 1024


def nearest(vectors: Matrix, queries: int, *, block_bytes: int = BLOCK_BYTES) -> NDArray[np.intp]:
    """The places of the nearest others of the first `queries` texts: (queries, NEIGHBOURS).

    Args:
        vectors: (texts, size), float32, unit length; more than NEIGHBOURS texts.
        block_bytes: most bytes of cosines at a time; one text's are held at least.
    """
    places = np.empty((queries, NEIGHBOURS), dtype=np.intp)
    rows = max(1, block_bytes // (4 * len(vectors)))
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        distances = vectors[start:stop] @ -vectors.T
        distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
        found = np.argpartition(distances, NEIGHBOURS - 1, axis=1)
        places[start:stop] = found[:, :NEIGHBOURS]
    return places


def overlap(full: NDArray[np.intp], short: NDArray[np.intp]) -> NDArray[np.float32]:
    """Share (0 to 1) of each text's neighbours in `full` that are in `short`: (queries,)."""
    found = (full[:, :, None] == short[:, None, :]).any(axis=2)
    shares: NDArray[np.float32] = found.mean(axis=1, dtype=np.float32)
    return shares


def spearman(left: Matrix, right: Matrix, scores: Sequence[float]) -> float:
    """Spearman's correlation, times 100, of the pairs' cosines with their scores.

    Args:
        left, right: (pairs, size), float32, unit length.
    """
    cosines = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    ranks = average_ranks(cosines), average_ranks(np.asarray(scores, dtype=np.float64))
    return 100 * float(np.corrcoef(*ranks)[0, 1])


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value from 1 on; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks
