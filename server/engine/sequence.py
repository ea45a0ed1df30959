"""The nouns of the engine: a tokenised text, the texts of one request, and a micro-batch.

A SequenceGroup's future belongs to the event loop's thread; its rows of `vectors` are written by
worker threads, each row by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.inference.tokenizer import TokenIds


class SequenceGroup:
    """All sequences of one request: they enter the queue together and are answered together.

    One future a request rather than one a text: an answer is complete or an error.
    """

    __slots__ = ("future", "remaining", "sequences", "vectors")

    def __init__(self, token_ids: Sequence[TokenIds], embedding_dim: int) -> None:
        self.future: asyncio.Future[NDArray[np.float32]] = (
            asyncio.get_running_loop().create_future()
        )
        self.sequences = [TokenSequence(self, row, ids) for row, ids in enumerate(token_ids)]
        self.remaining = len(self.sequences)
        self.vectors = np.empty((len(token_ids), embedding_dim), dtype=np.float32)


class TokenSequence:
    """One tokenised text waiting to become row `row` of its group's vectors."""

    __slots__ = ("error", "group", "num_tokens", "order", "row", "token_ids", "urgency")

    def __init__(self, group: SequenceGroup, row: int, token_ids: TokenIds) -> None:
        self.group = group
        self.row = row
        self.token_ids = token_ids  # (num_tokens,)
        self.num_tokens = len(token_ids)
        self.error: Exception | None = None
        # Set by the queue: when it is due, in virtual tokens, and its place among the lengths.
        self.urgency = (0.0, 0)
        self.order = (self.num_tokens, self.urgency)


class MicroBatch:
    """Sequences that are computed together."""

    __slots__ = ("sequences",)

    def __init__(self, sequences: list[TokenSequence]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`input_ids` and `attention_mask`, both (sequences, longest), padded on the right."""
        longest = max(sequence.num_tokens for sequence in self.sequences)
        input_ids = np.zeros((len(self.sequences), longest), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, sequence in enumerate(self.sequences):
            input_ids[row, : sequence.num_tokens] = sequence.token_ids
            attention_mask[row, : sequence.num_tokens] = 1
        return input_ids, attention_mask

    def halves(self) -> tuple[MicroBatch, MicroBatch]:
        """Two micro-batches of at least one sequence each."""
        middle = len(self.sequences) // 2
        return MicroBatch(self.sequences[:middle]), MicroBatch(self.sequences[middle:])
