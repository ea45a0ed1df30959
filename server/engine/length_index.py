"""The sequences that may be chosen, by length, and which of them go into one micro-batch.

Where a text's padded length is its own, only sequences of one padded length go together: another
length would be another pass.

Not guarded against threads: the queue's lock does that.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from server.engine.policy import select
from server.engine.sequence import TokenSequence
from server.inference.backend import Layout

_BY_LENGTH = attrgetter("order")
# How many sequences are looked at for each that may fit, when many must not be taken.
_SEARCH = 32


class LengthIndex:
    """Sequences in ascending order of length, equally long ones as they came.

    Args:
        layout: of what is computed together; lengths are padded ones where that is a text's own.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._serial = itertools.count()
        self._sequences: list[TokenSequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequences: list[TokenSequence]) -> None:
        """Let sequences be chosen."""
        for sequence in sequences:
            length = self._layout.padded_length(sequence.num_tokens)
            sequence.order = (length, next(self._serial))
        if len(sequences) == 1:
            insort(self._sequences, sequences[0], key=_BY_LENGTH)
        elif sequences:
            self._sequences.extend(sequences)
            self._sequences.sort(key=_BY_LENGTH)

    def discard_dropped(self) -> None:
        """Forget the sequences of requests of which nothing waits any more."""
        self._sequences = [one for one in self._sequences if one.group.num_waiting]

    def take(
        self, head: TokenSequence, max_batch_tokens: int, *, most_start_tokens: float
    ) -> list[TokenSequence]:
        """Take the head and what goes with it out of the index.

        Args:
            head: the most urgent sequence; it is in the index.
            max_batch_tokens: budget of the micro-batch; see `select`.
            most_start_tokens: sequences of a key with a larger start tag do not go along.
        """
        budget, sequences = max_batch_tokens, self._sequences
        length, _ = head.order
        index = bisect_left(sequences, head.order, key=_BY_LENGTH)
        first, end = self._first_of(length), len(sequences)
        packed = self._layout is Layout.PACKED
        # Packed, the tokens bound the run, and the shorter ones may be many more.
        wanted = budget if packed else budget // length
        shorter: list[int] = []
        if self._layout.is_by_length:
            end = self._first_of(length + 1)
        else:
            shorter = self._candidates(self._shorter_than(first), wanted, budget, most_start_tokens)
        others = itertools.chain(range(first, index), range(index + 1, end))
        longer = self._candidates(others, wanted, budget, most_start_tokens)
        places = [*reversed(shorter), index, *longer]
        lengths = [sequences[place].order[0] for place in places]
        start, stop = select(lengths, len(shorter), budget, packed=packed)
        taken = places[start:stop]
        chosen = [sequences[place] for place in taken]
        low, high = min(taken), max(taken) + 1
        kept = set(range(low, high)).difference(taken)
        sequences[low:high] = [sequences[place] for place in sorted(kept)]
        return chosen

    def _first_of(self, length: int) -> int:
        """The place of the first sequence of at least this length."""
        return bisect_left(self._sequences, (length, 0), key=_BY_LENGTH)

    def _shorter_than(self, place: int) -> Iterator[int]:
        """Places before this one, the longest sequences first, equally long ones as they came."""
        while place:
            first = self._first_of(self._sequences[place - 1].order[0])
            yield from range(first, place)
            place = first

    def _candidates(
        self, places: Iterable[int], wanted: int, tokens: int, most_start_tokens: float
    ) -> list[int]:
        """Those of these places, in their order, whose sequences may be taken along.

        Args:
            wanted: no more of them fit.
            tokens: nor more than these hold.
        """
        found: list[int] = []
        for place in itertools.islice(places, _SEARCH * wanted):
            if len(found) == wanted or tokens <= 0:
                break
            sequence = self._sequences[place]
            if sequence.group.share.start_tokens <= most_start_tokens:
                found.append(place)
                tokens -= sequence.order[0]
        return found
