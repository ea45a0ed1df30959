"""The waiting requests of one API key, in the order in which they are served.

Only light requests and the first bulk ones can be chosen from; the others lie in a backlog, where
it costs nothing that they are many. Not guarded against threads: the queue's lock does that.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from collections.abc import Iterator

from server.engine.fair_share import Flow, KeyShare
from server.engine.sequence import SequenceGroup, TokenSequence

_Entry = tuple[float, int, SequenceGroup]  # virtual time of its finish, number, request


class KeyRequests:
    """What waits of one key.

    Args:
        share: what the key was served; its flows count the requests that are here.
        front_tokens: how many tokens of bulk requests can be chosen from, about.
    """

    __slots__ = (
        "_added", "_backlog", "_bulk", "_front", "_front_tokens", "_light", "_partly",
        "_wanted_tokens", "share",
    )  # fmt: skip

    def __init__(self, share: KeyShare, front_tokens: int) -> None:
        self.share = share
        self._wanted_tokens = front_tokens
        self._added = 0  # bulk requests, ever
        # As they came; dictionaries, because any of them may go.
        self._light: dict[SequenceGroup, None] = {}
        self._bulk: dict[SequenceGroup, None] = {}
        # Bulk requests by the virtual time at which equal shares would have finished them: the
        # first of them (ascending), and the others (a heap, which may hold dropped ones).
        self._front: list[_Entry] = []
        self._front_tokens = 0
        self._backlog: list[_Entry] = []
        # Those of the front of which something cannot be chosen yet, likewise ascending: the last
        # that came from the backlog, and those that went ahead of all meanwhile.
        self._partly: list[_Entry] = []

    def __iter__(self) -> Iterator[SequenceGroup]:
        return itertools.chain(self._light, self._bulk)

    def __contains__(self, group: SequenceGroup) -> bool:
        return group in self._light or group in self._bulk

    def add(self, group: SequenceGroup) -> list[TokenSequence]:
        """Let a request of which nothing was taken wait; the sequences that can now be chosen."""
        if group.flow is self.share.light:
            self._light[group] = None
            return group.make_choosable(group.num_tokens)
        self._bulk[group] = None
        self._added += 1  # of two that would be finished at once the one that came first is first
        finish = self.share.bulk_finish(group.num_tokens)
        heapq.heappush(self._backlog, (finish, self._added, group))
        return self.advance()

    def first_of(self, flow: Flow) -> SequenceGroup:
        """The request of this flow that is served next; there must be one."""
        return next(iter(self._light)) if flow is self.share.light else self._front[0][2]

    def advance(self) -> list[TokenSequence]:
        """Fill the front; the sequences that can be chosen from now on."""
        came: list[TokenSequence] = []
        while True:
            if self._backlog and (not self._front or self._backlog[0] < self._front[0]):
                self._move_to_front()
                continue
            if not self._front:
                return came
            first = self._front[0][2]
            if first.next_row >= first.choosable_rows:
                came += self._make_choosable(self._front[0], self._wanted_tokens)
            elif self._front_tokens >= self._wanted_tokens:
                return came
            elif self._partly:
                came += self._make_choosable(self._partly[0], self._wanted_tokens // 4)
            elif self._backlog:
                self._move_to_front()
            else:
                return came

    def note_taken(self, group: SequenceGroup, tokens: int) -> None:
        """Note that so many tokens of this request were taken."""
        if group.flow is self.share.bulk:
            self._front_tokens -= tokens

    def remove(self, group: SequenceGroup) -> None:
        """Nothing of this request waits any more."""
        if group.flow is self.share.light:
            del self._light[group]
            return
        del self._bulk[group]
        for place, entry in enumerate(self._front):
            if entry[2] is group:
                self._front_tokens -= group.choosable_tokens()
                del self._front[place]
                if entry in self._partly:
                    self._partly.remove(entry)
                return
        if len(self._backlog) > 2 * len(self._bulk):  # dropped ones would be kept alive
            self._backlog = [entry for entry in self._backlog if entry[2] in self._bulk]
            heapq.heapify(self._backlog)

    def _move_to_front(self) -> None:
        entry = heapq.heappop(self._backlog)
        if entry[2] in self._bulk:
            insort(self._front, entry)
            insort(self._partly, entry)

    def _make_choosable(self, entry: _Entry, tokens: int) -> list[TokenSequence]:
        """Of a request in the front of which something cannot be chosen yet."""
        group = entry[2]
        sequences = group.make_choosable(tokens)
        self._front_tokens += sum(sequence.num_tokens for sequence in sequences)
        if group.choosable_rows == len(group.sequences):
            self._partly.remove(entry)
        return sequences
