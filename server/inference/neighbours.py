"""How much other vectors of the same texts keep: neighbours found again, and agreement with people's scores.

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
TIE = 1e-6  # between cosines of float32 vectors; up to 4,096 dimensions rounding stays below 6e-7


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


def shared_neighbours(
    left: Matrix, right: Matrix, queries: NDArray[np.intp], *, block_bytes: int = BLOCK_BYTES
) -> NDArray[np.float32]:
    """Share (0 to 1) of some texts' nearest others that are nearest on both sides: (queries,).

    Exact: every text is compared with all others. Others whose cosines are within TIE of the last
    nearest one's are tied with it, and whichever of them makes the share largest is taken: equal
    vectors, and rounding, must not look like another ranking.

    Args:
        left, right: (texts, size), float32, unit length; the same texts, more than NEIGHBOURS. The
            two sizes may differ.
        queries: places of the texts whose neighbours are looked for.
        block_bytes: most bytes of a side's cosines at a time; one text's are held at least.
    """
    shares = np.empty(len(queries), dtype=np.float32)
    rows = max(1, block_bytes // (4 * len(left)))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        shared = _most_shared(_nearest_and_tied(left, block), _nearest_and_tied(right, block))
        shares[start : start + rows] = shared / NEIGHBOURS
    return shares


def _nearest_and_tied(
    vectors: Matrix, queries: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which others are nearer than all that are tied for the last place, and which those are."""
    cosines = vectors[queries] @ vectors.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    last = np.partition(cosines, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]
    nearer = cosines > last + TIE
    return nearer, (cosines >= last - TIE) & ~nearer


def _most_shared(
    left: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> NDArray[np.intp]:
    """How many of its neighbours a text can have on both sides, of all ways to break the ties."""

    def count(which: NDArray[np.bool_]) -> NDArray[np.intp]:
        counts: NDArray[np.intp] = np.count_nonzero(which, axis=1)
        return counts

    (nearer_left, tied_left), (nearer_right, tied_right) = left, right
    free_left, free_right = NEIGHBOURS - count(nearer_left), NEIGHBOURS - count(nearer_right)
    # A place that is free on one side alone is best given to what has its place on the other.
    by_left = np.minimum(free_left, count(tied_left & nearer_right))
    by_right = np.minimum(free_right, count(nearer_left & tied_right))
    by_both = np.minimum(free_left - by_left, free_right - by_right)
    by_both = np.minimum(by_both, count(tied_left & tied_right))
    shared: NDArray[np.intp] = count(nearer_left & nearer_right) + by_left + by_right + by_both
    return shared


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
