"""What is added to attention scores for the distance of two tokens, as T5 learns it.

Raffel et al., Exploring the Limits of Transfer Learning (2019), section 2.1: distances share a
number of buckets, the near ones one each, farther ones on a logarithmic scale. Pure functions; any
thread may call.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from server.importing.witness.formulas import Floats


def bias_of(table: Floats, tokens: int, farthest: int) -> Floats:
    """The bias of each pair of tokens, (heads, tokens, tokens): a row looks at a column.

    Args:
        table: (buckets, heads).
        farthest: distances from here on share the last bucket.
    """
    places = np.arange(tokens)
    found: Floats = table[buckets(places[None, :] - places[:, None], len(table), farthest)]
    return found.transpose(2, 0, 1)


def buckets(distance: NDArray[np.int64], number: int, farthest: int) -> NDArray[np.int64]:
    """The bucket of each distance, from the token that looks to the one it looks at.

    The upper half of them is for tokens behind the one that looks. Of each half, the first half has
    one distance a bucket.
    """
    half = number // 2
    single = half // 2
    far = np.abs(distance)
    # In float32, as these models were trained: it decides at the edge of a bucket.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
    step = ratio / np.float32(math.log(farthest / single)) * np.float32(half - single)
    logarithmic = np.minimum(single + step.astype(np.int64), half - 1)
    found: NDArray[np.int64] = np.where(far < single, far, logarithmic) + half * (distance > 0)
    return found
