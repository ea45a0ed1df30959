"""What the engine asks of a forward pass, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]  # (num_tokens,)
# Input ids and attention mask, both (sequences, num_tokens), to vectors (sequences, embedding_dim).
PaddedPass = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class LengthSteps:
    """Padded lengths that depend on a text alone: its vector has the same bits in any company.

    A number of tokens is rounded up to some significant bits, and to a multiple of the least step.
    """

    significant_bits: int
    least_step: int  # a power of two

    def round_up(self, num_tokens: int) -> int:
        """With how many tokens a text is computed, padding counted."""
        excess_bits = max(0, (num_tokens - 1).bit_length() - self.significant_bits)
        step = max(self.least_step, 1 << excess_bits)
        return -(-num_tokens // step) * step


class Layout(Enum):
    """How sequences of unlike length lie in a forward pass."""

    PACKED = "packed"  # one behind the other, without padding
    PADDED = "padded"  # each padded to the longest
    # Each padded to a length of its own; one pass for each of these. Which lengths cost least is a
    # matter of the library that computes.
    #
    # From 33 tokens on at most a 33rd is padding, and one token is never alone: another kernel
    # computes a product of one row. On ONNX Runtime in float32 a pass costs its tokens, padding
    # counted, and as much as 15 tokens more, whatever their length: multiples of 4 and of 8 pad more
    # than they save passes, and without any rounding short queries seldom go together.
    BY_LENGTH = LengthSteps(significant_bits=6, least_step=2)
    # Multiples of 8, from 257 tokens on of 16, from 513 on of 32 and so on. See openvino_backend.
    BY_COARSE_LENGTH = LengthSteps(significant_bits=5, least_step=8)

    @property
    def is_by_length(self) -> bool:
        """Whether a text is padded by its own length alone."""
        return isinstance(self.value, LengthSteps)

    def padded_length(self, num_tokens: int) -> int:
        """Tokens of a text with the padding that is its own.

        A backend goes no further than what the model reads.
        """
        steps = self.value
        return steps.round_up(num_tokens) if isinstance(steps, LengthSteps) else num_tokens


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
    def layout(self) -> Layout:
        """What becomes of sequences of unlike length that are computed together."""
        ...

    @property
    def concurrent_passes(self) -> int | None:
        """How many passes it computes at once; further ones would wait inside it, out of turn.

        None: as many as threads call, or as its `Capacity` says.
        """
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


def forward_by_length(
    compute: PaddedPass, sequences: Sequence[TokenIds], layout: Layout, max_input_tokens: int
) -> NDArray[np.float32]:
    """The vectors of sequences, computed in one pass for each padded length.

    Args:
        compute: a pass over sequences of one padded length.
        layout: one by length.
        max_input_tokens: the most that the model reads; its table of positions may end there, so
            padding goes no further.

    Returns:
        (sequences, embedding_dim), float32, in the order given.
    """
    rows: dict[int, list[int]] = {}
    for row, token_ids in enumerate(sequences):
        rows.setdefault(layout.padded_length(len(token_ids)), []).append(row)
    found = [
        compute(*pad([sequences[row] for row in of_length], min(length, max_input_tokens)))
        for length, of_length in rows.items()
    ]
    if len(found) == 1:
        return found[0]
    order = np.argsort(np.concatenate(list(rows.values())))
    vectors: NDArray[np.float32] = np.concatenate(found)[order]
    return vectors


def pad(
    sequences: Sequence[TokenIds], length: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, both (sequences, num_tokens), padded on the right by zeros.

    The mask has 1 for a token and 0 for padding.

    Args:
        length: tokens of each with padding, unless a sequence is longer.
    """
    length = max(length, *map(len, sequences))
    input_ids = np.zeros((len(sequences), length), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, token_ids in enumerate(sequences):
        input_ids[row, : len(token_ids)] = token_ids
        attention_mask[row, : len(token_ids)] = 1
    return input_ids, attention_mask
