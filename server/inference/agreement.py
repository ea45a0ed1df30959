"""How far two computations of the same texts are from each other.

One measure for imports, whose graph is compared with other implementations and number types, and
for `space compare`. Pure, bounded in memory beside its arguments; any thread may call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.inference.pooling import cosines

# Cosines are computed in float64, which of all rows would take thrice the memory.
_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the vectors of two sides are from each other, text by text.

    A vector that is not finite, or zero, makes NaN of the cosines: nothing hides behind a minimum.
    """

    texts: int
    min_cosine: float
    mean_cosine: float
    worst: int  # the row whose cosine is least, or the first that has none
    max_difference: float  # between two components
    bit_equal: bool  # also where -0.0 and 0.0 are told apart


def agreement_of(left: NDArray[np.float32], right: NDArray[np.float32]) -> Agreement:
    """Compare each row with its counterpart.

    Args:
        left, right: (texts, dimensions), float32, of the same shape and not empty.

    Raises:
        ValueError: their shapes differ, or there is no row.
    """
    if left.shape != right.shape or not len(left):
        raise ValueError(f"vectors of shapes {left.shape} and {right.shape} cannot be compared")
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, len(left), _BLOCK_ROWS)]
    with np.errstate(invalid="ignore"):  # of zeros, and of infinity less infinity
        similar = np.concatenate([cosines(left[rows], right[rows]) for rows in blocks])
        differences = [np.max(np.abs(left[rows] - right[rows])) for rows in blocks]
    return Agreement(
        texts=len(left),
        min_cosine=float(np.min(similar)),
        mean_cosine=float(np.mean(similar)),
        worst=int(np.argmin(similar)),
        max_difference=float(np.max(differences)),
        bit_equal=all(left[rows].tobytes() == right[rows].tobytes() for rows in blocks),
    )
