"""What the engine asks of a forward pass, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]  # (num_tokens,)


class OutOfMemory(Exception):
    """The forward pass ran out of memory; a smaller micro-batch may succeed."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What loading measured of a model's devices; where they differ, the least of them."""

    batch_tokens: int  # of one forward pass: what was wished for, or as much as the memory holds
    tokens_per_second: float  # of one device, in passes of that size
    concurrent_passes: int  # that one device works on at once
    recorded_bytes: int = 0  # of all devices' memory that recorded passes keep
    refused_shapes: int = 0  # recorded, and not used since they differ


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What is wished for when a model's backends are loaded; each heeds what concerns it."""

    wide_threads: int = 1  # cores that a pass alone on the machine may be spread over
    max_batch_tokens: int | None = None  # that a GPU's memory must hold; None: what suits it
    worker_threads: int = 1  # that call a CPU's backend at once


class Backend(Protocol):
    """A model's forward pass with pooling (and normalisation, if the card says so).

    Several worker threads may call `forward` at once.
    """

    @property
    def packs(self) -> bool:
        """Whether sequences of unlike length are computed together without padding."""
        ...

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        """One vector a sequence.

        Args:
            sequences: token ids, none of them empty.
            alone: no other thread computes; the pass may use the whole machine.

        Returns:
            (sequences, embedding_dim), float32.

        Raises:
            OutOfMemory: see there.
        """
        ...

    def count_embeddings(self, vocabulary_size: int) -> int:
        """How many of the ids below `vocabulary_size`, from 0 on, the weights hold a vector for."""
        ...


def pad(sequences: Sequence[TokenIds]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, both (sequences, longest), padded on the right by zeros.

    The mask has 1 for a token and 0 for padding.
    """
    input_ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, token_ids in enumerate(sequences):
        input_ids[row, : len(token_ids)] = token_ids
        attention_mask[row, : len(token_ids)] = 1
    return input_ids, attention_mask
