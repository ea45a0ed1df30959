"""Sequences that wait for a worker, fair by tokens.

Each request is a flow of weighted fair queueing (Demers, Keshav, Shenker, SIGCOMM 1989): from the
virtual time at which it arrives, its sequences are due one after the other, each when a fair share
of the machine would have finished it. A short request is therefore due soon, however many tokens
arrived before it. Virtual time advances by the tokens served divided by the requests waiting, so
nothing is put off for ever.

Any thread may call; all state is guarded by one lock.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from bisect import bisect_left, insort
from collections import Counter
from operator import attrgetter

from server.engine.policy import select
from server.engine.sequence import MicroBatch, SequenceGroup, TokenSequence
from server.errors import Draining

_BY_LENGTH = attrgetter("order")
# Splitting an idle server's only work over its workers pays down to about this many tokens each.
MIN_SHARE_TOKENS = 96
# A forward pass over one token takes about as long as this many tokens take in a larger one.
MIN_COST_TOKENS = 32


class _Lengths:
    """The waiting sequences' lengths as a sequence, without copying them."""

    def __init__(self, sequences: list[TokenSequence]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> int:
        return self._sequences[index].num_tokens


class WaitingQueue:
    """Waiting sequences, handed out as micro-batches of at most `max_batch_tokens`."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._idle_workers = 0  # threads that are in `take`
        self._changed = threading.Condition()
        self._closed = False
        self._dropped = False  # whether the lists hold sequences of dropped groups
        self._serial = itertools.count()
        self._virtual_tokens = 0.0
        self._tokens = 0
        self._by_length: list[TokenSequence] = []  # ascending `order`
        self._by_urgency: list[tuple[tuple[float, int], TokenSequence]] = []  # heap, may hold gone
        self._waiting: Counter[SequenceGroup] = Counter()  # sequences still here, by group

    def put(self, group: SequenceGroup) -> None:
        """Let all sequences of a request wait, together.

        Raises:
            Draining: the queue is closed; nobody would serve them.
        """
        with self._changed:
            if self._closed:
                raise Draining
            turn = self._virtual_tokens
            for sequence in group.sequences:
                turn += sequence.num_tokens
                sequence.urgency = (turn, next(self._serial))
                sequence.order = (sequence.num_tokens, sequence.urgency)
                self._tokens += sequence.num_tokens
                heapq.heappush(self._by_urgency, (sequence.urgency, sequence))
            if len(group.sequences) == 1:
                insort(self._by_length, group.sequences[0], key=_BY_LENGTH)
            else:
                self._by_length.extend(group.sequences)
                self._by_length.sort(key=_BY_LENGTH)
            self._waiting[group] = len(group.sequences)
            self._changed.notify(len(group.sequences))

    def take(self) -> MicroBatch | None:
        """The next micro-batch; blocks while nothing waits. None once the queue is closed."""
        with self._changed:
            self._idle_workers += 1
            try:
                while not self._has_work() and not self._closed:
                    self._changed.wait()
                return None if self._closed else self._pop()
            finally:
                self._idle_workers -= 1

    def drop(self, group: SequenceGroup) -> None:
        """Forget what still waits of a group: its client went away or it has failed.

        Takes no time, since the event loop calls it; the next worker clears away, once for many.
        """
        with self._changed:
            if self._waiting.pop(group, 0):
                self._dropped = True

    def lower_budget(self) -> int:
        """Halve `max_batch_tokens` after the backend ran out of memory; returns the new one."""
        with self._changed:
            self._max_batch_tokens = max(1, self._max_batch_tokens // 2)
            return self._max_batch_tokens

    def close(self) -> list[SequenceGroup]:
        """Send the workers home; returns the groups that still waited."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return list(self._waiting)

    def _pop(self) -> MicroBatch:
        head = self._most_urgent()
        # A machine with idle workers shares out what there is; a busy one fills its micro-batches.
        share = max(math.ceil(self._tokens / self._idle_workers), MIN_SHARE_TOKENS)
        budget = min(self._max_batch_tokens, share)
        index = bisect_left(self._by_length, head.order, key=_BY_LENGTH)
        start, stop = select(_Lengths(self._by_length), index, budget)
        chosen = self._by_length[start:stop]
        del self._by_length[start:stop]
        tokens = sum(sequence.num_tokens for sequence in chosen)
        self._virtual_tokens += max(tokens, MIN_COST_TOKENS) / len(self._waiting)
        self._tokens -= tokens
        for sequence in chosen:
            self._waiting[sequence.group] -= 1
            if not self._waiting[sequence.group]:
                del self._waiting[sequence.group]
        if len(self._by_urgency) > 2 * len(self._by_length):
            self._forget_the_gone()
        return MicroBatch(chosen)

    def _has_work(self) -> bool:
        if self._dropped:
            self._dropped = False
            self._by_length = [s for s in self._by_length if s.group in self._waiting]
            self._tokens = sum(sequence.num_tokens for sequence in self._by_length)
            self._forget_the_gone()
        return bool(self._by_length)

    def _forget_the_gone(self) -> None:
        """Drop from the heap what filled micro-batches or was dropped; it would keep groups alive."""
        self._by_urgency = [(s.urgency, s) for s in self._by_length]
        heapq.heapify(self._by_urgency)

    def _most_urgent(self) -> TokenSequence:
        while True:
            _, sequence = heapq.heappop(self._by_urgency)
            # Sequences that filled an earlier micro-batch are still in the heap.
            index = bisect_left(self._by_length, sequence.order, key=_BY_LENGTH)
            if index < len(self._by_length) and self._by_length[index] is sequence:
                return sequence
