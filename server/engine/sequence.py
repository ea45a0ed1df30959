"""The nouns of the engine: a tokenised text, the texts of one request, and a micro-batch.

A SequenceGroup's future belongs to the event loop's thread; its rows of `vectors` are written by
worker threads, each row by one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.engine.admission import Ticket
from server.engine.fair_share import Flow, KeyShare
from server.engine.repeats import NO_REPEATS, Repeats
from server.inference.backend import Layout, TokenIds


class SequenceGroup:
    """All sequences of one request: they enter the queue together and are answered together.

    One future a request rather than one a text: an answer is complete or an error.

    Args:
        repeats: rows that are not computed; nobody writes their vectors here.
    """

    __slots__ = (
        "began_s",
        "choosable_rows",
        "flow",
        "future",
        "key",
        "next_row",
        "num_tokens",
        "num_waiting",
        "remaining",
        "sequences",
        "share",
        "ticket",
        "vectors",
        "waiting_tokens",
    )

    def __init__(
        self,
        token_ids: Sequence[TokenIds],
        embedding_dim: int,
        ticket: Ticket,
        repeats: Repeats = NO_REPEATS,
    ) -> None:
        self.ticket = ticket
        self.key = ticket.key  # whose share of the machine it uses
        self.began_s = math.inf  # time.perf_counter() when its first sequence was taken
        self.future: asyncio.Future[NDArray[np.float32]] = (
            asyncio.get_running_loop().create_future()
        )
        self.sequences = [
            TokenSequence(self, row, ids) for row, ids in enumerate(token_ids) if row not in repeats
        ]
        self.remaining = len(self.sequences)
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.vectors = np.empty((len(token_ids), embedding_dim), dtype=np.float32)
        # The queue's: what still waits, and how many rows, from the first on, can be chosen.
        self.share: KeyShare  # its key's, since it was put there
        self.flow: Flow  # of that share
        self.next_row = 0
        self.choosable_rows = 0
        self.num_waiting = self.remaining
        self.waiting_tokens = self.num_tokens

    @property
    def next_sequence(self) -> TokenSequence:
        """The first that still waits."""
        return self.sequences[self.next_row]

    def release_sequences(self) -> None:
        """Nothing of it waits any more: forget the sequences, which all point back here.

        The collector of such circles comes late, and a flood of large requests would fill the
        memory meanwhile.
        """
        self.sequences = []

    def make_choosable(self, tokens: int) -> list[TokenSequence]:
        """Let at least so many more tokens be chosen; the sequences that could not be yet."""
        first = self.choosable_rows
        while tokens > 0 and self.choosable_rows < len(self.sequences):
            tokens -= self.sequences[self.choosable_rows].num_tokens
            self.choosable_rows += 1
        return self.sequences[first : self.choosable_rows]

    def choosable_tokens(self) -> int:
        """Tokens that can be chosen and still wait."""
        choosable = self.sequences[self.next_row : self.choosable_rows]
        return sum(sequence.num_tokens for sequence in choosable if not sequence.taken)

    def mark_taken(self, part: Part) -> None:
        """Note that these sequences wait no more, since a worker has taken them."""
        for sequence in part.sequences:
            sequence.taken = True
        self.num_waiting -= len(part.sequences)
        self.waiting_tokens -= part.tokens
        while self.num_waiting and self.next_sequence.taken:
            self.next_row += 1


class TokenSequence:
    """One tokenised text waiting to become row `row` of its group's vectors."""

    __slots__ = ("error", "group", "num_tokens", "order", "row", "taken", "token_ids")

    def __init__(self, group: SequenceGroup, row: int, token_ids: TokenIds) -> None:
        self.group = group
        self.row = row
        self.token_ids = token_ids  # (num_tokens,)
        self.num_tokens = len(token_ids)
        self.error: BaseException | None = None
        # The queue's: its length and place among the waiting, and whether it waits no more.
        self.order = (self.num_tokens, 0)
        self.taken = False


class Part:
    """What a micro-batch holds of one request."""

    __slots__ = ("sequences", "tokens")

    def __init__(self) -> None:
        self.sequences: list[TokenSequence] = []
        self.tokens = 0


class MicroBatch:
    """Sequences that are computed together."""

    __slots__ = (
        "alone", "began_s", "ended_s", "layout", "padded_tokens", "parts", "sequences", "tokens",
    )  # fmt: skip

    def __init__(self, sequences: list[TokenSequence], layout: Layout = Layout.BY_LENGTH) -> None:
        self.sequences = sequences
        self.layout = layout  # of its tokens in a forward pass
        self.alone = False  # nothing else waits or is computed: the whole machine is free
        self.began_s = time.perf_counter()
        self.ended_s = self.began_s
        # By request: what can be done once for all of a request's sequences is not done for each.
        self.parts: dict[SequenceGroup, Part] = {}
        for sequence in sequences:
            part = self.parts.get(sequence.group)
            if part is None:
                part = self.parts[sequence.group] = Part()
            part.sequences.append(sequence)
            part.tokens += sequence.num_tokens
        lengths = [sequence.num_tokens for sequence in sequences]
        self.tokens = sum(lengths)
        self.padded_tokens = _padded_tokens(lengths, layout)

    def __len__(self) -> int:
        return len(self.sequences)

    def halves(self) -> tuple[MicroBatch, MicroBatch]:
        """Two micro-batches of at least one sequence each."""
        middle = len(self.sequences) // 2
        first, second = self.sequences[:middle], self.sequences[middle:]
        return MicroBatch(first, self.layout), MicroBatch(second, self.layout)


def _padded_tokens(lengths: list[int], layout: Layout) -> int:
    """Tokens that are computed for sequences of these lengths, padding among them."""
    if layout is Layout.PADDED:
        return len(lengths) * max(lengths)
    return sum(map(layout.padded_length, lengths))
