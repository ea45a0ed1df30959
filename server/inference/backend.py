"""What the engine asks of a forward pass, whatever computes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OutOfMemory(Exception):
    """The forward pass ran out of memory; a smaller micro-batch may succeed."""


class Backend(Protocol):
    """A model's forward pass with pooling (and normalisation, if the card says so).

    Several worker threads may call `forward` at once.
    """

    def forward(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        *,
        alone: bool = False,
    ) -> NDArray[np.float32]:
        """One vector a sequence.

        Args:
            input_ids: (sequences, tokens), padded on the right with any valid id.
            attention_mask: (sequences, tokens), 1 for a token, 0 for padding.
            alone: no other thread computes; the pass may use the whole machine.

        Returns:
            (sequences, embedding_dim), float32.

        Raises:
            OutOfMemory: see there.
        """
        ...
