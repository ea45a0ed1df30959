"""Sequences that wait for a worker, fair by tokens: between API keys, then between requests.

A key is a lasting flow of start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): its start
tag grows by the tokens it was served, and the key with the smallest start tag is next. A key that
comes back starts where the others are, so that neither its silence nor its hurry gains anything.

A request is a flow that comes once, so inside a key virtual time must pass whoever is served, or a
stream of new requests would hold the older ones back for ever: weighted fair queueing (Demers,
Keshav, Shenker, SIGCOMM 1989). A request starts at the virtual time of its arrival, moves on by
the tokens it was served, and the one whose next sequence would be finished first is next. A short
request is therefore due soon, however many tokens arrived before it.

The sequence that is next brings others of similar length along, whosever they are, as long as
their key and request are not too far ahead of their turn; they are charged all the same.

Any thread may call; all state is guarded by one lock.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter

from server.engine.policy import select
from server.engine.sequence import MicroBatch, SequenceGroup, TokenSequence
from server.errors import Draining

_BY_LENGTH = attrgetter("order")
_NUM_TOKENS = attrgetter("num_tokens")
# From about this many tokens on a micro-batch is nearly as efficient as it gets on a CPU (of what
# 384 tokens reach: 12 tokens 55 %, 48: 84 %, 96: 93 %, 192: 97 %). Smaller shares of an idle
# server's only work do not pay, and a short request is not made to wait for a fuller micro-batch.
LIGHT_TOKENS = 96
# A forward pass over one token takes about as long as this many tokens take in a larger one.
MIN_COST_TOKENS = 32


# How far a key or request may get ahead of its turn by filling others' micro-batches, in budgets.
MAX_LEAD_BUDGETS = 1
# How many sequences are looked at for each that may fit, when many must not be taken.
_SEARCH = 32


class _Flow:
    """What waits of one API key, and how much that key was served."""

    __slots__ = ("by_urgency", "groups", "start_tokens", "virtual_tokens")

    def __init__(self, start_tokens: float) -> None:
        self.start_tokens = start_tokens  # start tag among the keys
        self.virtual_tokens = 0.0  # virtual time among this key's requests
        self.groups: set[SequenceGroup] = set()  # requests of which something waits
        # Heap by due time, one entry a request; too early once the request was served more.
        self.by_urgency: list[tuple[float, int, SequenceGroup]] = []

    def charge(self, tokens: float) -> None:
        """Count tokens as served; the requests that share them still wait."""
        self.start_tokens += tokens
        self.virtual_tokens += tokens / len(self.groups)

    def start_of_another(self, lead_tokens: float) -> float:
        """Where a new request starts: beside the least served one, but not far behind the time.

        Others may be behind the time because one of them is ahead; that must not put the new one
        last. To start far behind would put the others off.
        """
        if not self.groups:
            return self.virtual_tokens
        least = min(self.most_urgent().start_tokens, self.virtual_tokens)
        return max(least, self.virtual_tokens - lead_tokens)

    def remove(self, group: SequenceGroup) -> None:
        """Nothing of this request waits any more."""
        self.groups.discard(group)
        if len(self.by_urgency) > 2 * len(self.groups):  # gone ones would be kept alive
            self.by_urgency = [entry for entry in self.by_urgency if entry[2] in self.groups]
            heapq.heapify(self.by_urgency)

    def most_urgent(self) -> SequenceGroup:
        """The request whose next sequence is due first."""
        while True:
            due_tokens, serial, group = self.by_urgency[0]
            if group not in self.groups:
                heapq.heappop(self.by_urgency)
            elif due_tokens < group.due_tokens:
                heapq.heapreplace(self.by_urgency, (group.due_tokens, serial, group))
            else:
                return group


class WaitingQueue:
    """Waiting sequences, handed out as micro-batches of at most `max_batch_tokens`."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._workers = 0  # threads between `join` and `leave`
        self._idle_workers = 0  # those of them that are in `take`
        self._changed = threading.Condition()
        self._dropped = False  # whether the list holds sequences of dropped groups
        self._serial = itertools.count()
        self._virtual_tokens = 0.0  # start tag of the key that was served last
        self._by_length: list[TokenSequence] = []  # ascending `order`
        self._flows: dict[str, _Flow] = {}  # by API key
        self._resting: list[tuple[float, str]] = []  # heap of keys without requests, by start tag
        self.closed = False
        self.tokens = 0  # waiting

    def __len__(self) -> int:
        """Sequences that wait."""
        return len(self._by_length)

    def put(self, group: SequenceGroup) -> None:
        """Let all sequences of a request wait, together.

        Raises:
            Draining: the queue is closed; nobody would serve them.
        """
        with self._changed:
            if self.closed:
                raise Draining
            flow = self._flows.get(group.key)
            if flow is None:
                flow = self._flows[group.key] = _Flow(self._virtual_tokens)
            elif not flow.groups:
                flow.start_tokens = max(flow.start_tokens, self._virtual_tokens)
            group.start_tokens = flow.start_of_another(self._lead_tokens())
            flow.groups.add(group)
            heapq.heappush(flow.by_urgency, (group.due_tokens, next(self._serial), group))
            for sequence in group.sequences:
                sequence.order = (sequence.num_tokens, next(self._serial))
            if len(group.sequences) == 1:
                insort(self._by_length, group.sequences[0], key=_BY_LENGTH)
            else:
                self._by_length.extend(group.sequences)
                self._by_length.sort(key=_BY_LENGTH)
            self.tokens += group.num_tokens
            self._changed.notify(len(group.sequences))

    def join(self) -> None:
        """A worker thread is there from now on."""
        with self._changed:
            self._workers += 1

    def leave(self) -> None:
        """A worker thread takes no more."""
        with self._changed:
            self._workers -= 1

    def take(self, timeout_s: float | None = None) -> MicroBatch | None:
        """The next micro-batch; blocks while nothing waits.

        Returns None once the queue is closed, or when nothing came for `timeout_s`.
        """
        with self._changed:
            self._idle_workers += 1
            try:
                while not self._has_work() and not self.closed:
                    if not self._changed.wait(timeout_s):
                        return None
                return None if self.closed else self._pop()
            finally:
                self._idle_workers -= 1

    def drop(self, group: SequenceGroup) -> None:
        """Forget what still waits of a group: its client went away or it has failed.

        Takes no time, since the event loop calls it; the next worker clears away, once for many.
        """
        with self._changed:
            flow = self._flows.get(group.key)
            if flow is not None and group in flow.groups:
                flow.remove(group)
                self._dropped = True
                self._rest(group.key, flow)

    def lower_budget(self) -> int:
        """Halve `max_batch_tokens` after the backend ran out of memory; returns the new one."""
        with self._changed:
            self._max_batch_tokens = max(1, self._max_batch_tokens // 2)
            return self._max_batch_tokens

    def close(self) -> list[SequenceGroup]:
        """Send the workers home; returns the groups that still waited."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            return [group for flow in self._flows.values() for group in flow.groups]

    def _pop(self) -> MicroBatch:
        flow = min(
            (flow for flow in self._flows.values() if flow.groups),
            key=attrgetter("start_tokens"),
        )
        self._virtual_tokens = flow.start_tokens
        group = flow.most_urgent()
        # A machine with idle workers shares out what there is; a busy one fills its micro-batches.
        share = max(math.ceil(self.tokens / self._idle_workers), LIGHT_TOKENS)
        light = group.num_tokens <= LIGHT_TOKENS
        budget = min(self._max_batch_tokens, LIGHT_TOKENS if light else share)
        chosen = self._choose(group.next_sequence, budget)
        self._charge(flow, chosen)
        self._forget_rested_keys()
        alone = not self._by_length and self._idle_workers == self._workers
        return MicroBatch(chosen, alone=alone)

    def _choose(self, head: TokenSequence, budget: int) -> list[TokenSequence]:
        """Take the head and what goes with it out of the list."""
        index = bisect_left(self._by_length, head.order, key=_BY_LENGTH)
        first = bisect_left(self._by_length, head.num_tokens, key=_NUM_TOKENS, hi=index)
        fitting = budget // head.num_tokens
        shorter = self._candidates(self._shorter_than(first), fitting)
        rest = itertools.chain(range(first, index), range(index + 1, len(self._by_length)))
        longer = self._candidates(rest, fitting)
        places = [*reversed(shorter), index, *longer]
        lengths = [self._by_length[place].num_tokens for place in places]
        start, stop = select(lengths, len(shorter), budget)
        taken = places[start:stop]
        chosen = [self._by_length[place] for place in taken]
        low, high = min(taken), max(taken) + 1
        kept = set(range(low, high)).difference(taken)
        self._by_length[low:high] = [self._by_length[place] for place in sorted(kept)]
        return chosen

    def _shorter_than(self, place: int) -> Iterator[int]:
        """Places before this one, the longest sequences first, equally long ones as they came."""
        while place:
            length = self._by_length[place - 1].num_tokens
            first = bisect_left(self._by_length, length, key=_NUM_TOKENS, hi=place)
            yield from range(first, place)
            place = first

    def _candidates(self, places: Iterable[int], wanted: int) -> list[int]:
        """Up to `wanted` of these places, in their order, whose sequences may be taken along."""
        lead_tokens = self._lead_tokens()
        found: list[int] = []
        for place in itertools.islice(places, _SEARCH * wanted):
            if len(found) == wanted:
                break
            group = self._by_length[place].group
            flow = self._flows[group.key]
            if (
                flow.start_tokens - self._virtual_tokens <= lead_tokens
                and group.start_tokens - flow.virtual_tokens <= lead_tokens
            ):
                found.append(place)
        return found

    def _lead_tokens(self) -> int:
        return MAX_LEAD_BUDGETS * self._max_batch_tokens

    def _charge(self, head_flow: _Flow, chosen: list[TokenSequence]) -> None:
        """Count what was chosen against its keys and requests."""
        tokens: Counter[str] = Counter()
        for sequence in chosen:
            tokens[sequence.group.key] += sequence.num_tokens
        total = tokens.total()
        self.tokens -= total
        for key, served in tokens.items():
            self._flows[key].charge(served)
        if total < MIN_COST_TOKENS:
            head_flow.charge(MIN_COST_TOKENS - total)
        for sequence in chosen:
            group = sequence.group
            if not group.serve(sequence):
                flow = self._flows[group.key]
                flow.remove(group)
                self._rest(group.key, flow)

    def _has_work(self) -> bool:
        if self._dropped:
            self._dropped = False
            self._by_length = [
                sequence
                for sequence in self._by_length
                if (flow := self._flows.get(sequence.group.key)) and sequence.group in flow.groups
            ]
            self.tokens = sum(sequence.num_tokens for sequence in self._by_length)
        return bool(self._by_length)

    def _rest(self, key: str, flow: _Flow) -> None:
        """Remember a key without requests for as long as it is ahead of the others."""
        if not flow.groups:
            heapq.heappush(self._resting, (flow.start_tokens, key))

    def _forget_rested_keys(self) -> None:
        """Forget keys that would start like new ones."""
        nobody_waits = not self._by_length
        while self._resting and (nobody_waits or self._resting[0][0] <= self._virtual_tokens):
            _, key = heapq.heappop(self._resting)
            flow = self._flows.get(key)
            if (
                flow
                and not flow.groups
                and (nobody_waits or flow.start_tokens <= self._virtual_tokens)
            ):
                del self._flows[key]
