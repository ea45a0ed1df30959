"""Sequences that wait for a worker, fair by tokens: between API keys, then between requests.

A key is a lasting flow of start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): its start
tag grows by the tokens it was served, and the key with the smallest start tag is next. A key that
comes back starts where the others are, so that neither its silence nor its hurry gains anything.

Inside a key the light requests and the bulk ones are two such flows, with as many shares as they
have requests; but the bulk ones have no more than four for each light one. Light ones are served as they came. Bulk ones are served in the order in which equal
shares would have finished them (packet-by-packet fair queueing: Demers, Keshav, Shenker, SIGCOMM
1989; Parekh, Gallager, 1993), because an answer is of use only when it is complete: one after the
other they are done no later than side by side, and most of them far earlier.

What is next brings others of similar length along, as long as their key is not too far ahead of
its turn; they are charged all the same. Only light requests and the first bulk ones of each key
can come along; the others lie in a backlog, where it costs nothing that they are many.

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

from server.engine.admission import LIGHT_TOKENS, MAX_BULK_SHARE, MIN_COST_TOKENS
from server.engine.pace import Pace
from server.engine.policy import select
from server.engine.sequence import MicroBatch, SequenceGroup, TokenSequence
from server.errors import Draining

_BY_LENGTH = attrgetter("order")
_NUM_TOKENS = attrgetter("num_tokens")
# How far ahead of its turn a key may be and still fill others' micro-batches.
MAX_LEAD_TOKENS = 96
# So much bulk work of each key is looked at for sequences of similar length, in budgets.
FRONT_BUDGETS = 32
# Where memory is short for a while anything may fail, and single texts would take far longer.
LOWEST_BUDGET_SHARE = 1 / 16
# After so many micro-batches of a lowered budget more is tried: the memory may be free again.
RAISE_BUDGET_AFTER = 500
# How many sequences are looked at for each that may fit, when many must not be taken.
_SEARCH = 32


class _Flow:
    """Light or bulk requests of one key: how much they were served, and how many there are."""

    __slots__ = ("groups", "start_tokens")

    def __init__(self) -> None:
        self.start_tokens = 0.0  # start tag inside the key
        self.groups: dict[SequenceGroup, None] = {}  # of which something waits, as they came


class _Key:
    """What waits of one API key, and how much that key was served."""

    __slots__ = (
        "backlog", "bulk", "bulk_time", "front", "front_tokens", "light", "start_tokens",
    )  # fmt: skip

    def __init__(self, start_tokens: float) -> None:
        self.start_tokens = start_tokens  # start tag among the keys
        self.light = _Flow()
        self.bulk = _Flow()
        self.bulk_time = 0.0  # virtual: tokens that each of equal shares would have got
        # Bulk requests by the virtual time at which equal shares would have finished them: the
        # first of them (ascending), and the others (a heap, which may hold dropped ones).
        self.front: list[tuple[float, int, SequenceGroup]] = []
        self.front_tokens = 0
        self.backlog: list[tuple[float, int, SequenceGroup]] = []

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self.light.groups or self.bulk.groups)

    def flow(self, group: SequenceGroup) -> _Flow:
        """Where this request belongs."""
        return self.light if group.num_tokens <= LIGHT_TOKENS else self.bulk

    def next_flow(self) -> _Flow:
        """The one that is behind; the light one if none is."""
        if not self.bulk.groups:
            return self.light
        if not self.light.groups:
            return self.bulk
        return min(self.light, self.bulk, key=attrgetter("start_tokens"))

    def add(self, group: SequenceGroup, serial: int) -> None:
        """Let a request wait; a bulk one in the backlog."""
        flow = self.flow(group)
        other = self.bulk if flow is self.light else self.light
        if not self:
            flow.start_tokens = other.start_tokens = self.bulk_time = 0.0
        elif not flow.groups:
            flow.start_tokens = max(flow.start_tokens, other.start_tokens)
        flow.groups[group] = None
        if flow is self.bulk:
            heapq.heappush(self.backlog, (self.bulk_time + group.num_tokens, serial, group))

    def charge(self, flow: _Flow, tokens: float) -> None:
        """Count tokens as served to a flow; the requests that share them still wait."""
        shares = len(flow.groups)
        if flow is self.bulk:
            self.bulk_time += tokens / shares
            shares = min(shares, MAX_BULK_SHARE * max(1, len(self.light.groups)))
        flow.start_tokens += tokens / shares

    def advance(self, wanted_tokens: int) -> list[TokenSequence]:
        """Fill the front up to so many tokens; the sequences that can be chosen from now on."""
        came: list[TokenSequence] = []
        while True:
            if self.backlog and (not self.front or self.backlog[0] < self.front[0]):
                self._move_to_front()
                continue
            if not self.front:
                return came
            first = self.front[0][2]
            if first.next_row >= first.shown:
                came += self._show(first, wanted_tokens)
            elif self.front_tokens >= wanted_tokens:
                return came
            elif (partly := self._partly_shown()) is not None:
                came += self._show(partly, wanted_tokens // 4)
            elif self.backlog:
                self._move_to_front()
            else:
                return came

    def _move_to_front(self) -> None:
        entry = heapq.heappop(self.backlog)
        if entry[2] in self.bulk.groups:
            insort(self.front, entry)

    def _partly_shown(self) -> SequenceGroup | None:
        groups = (group for _, _, group in self.front)
        return next((group for group in groups if group.shown < len(group.sequences)), None)

    def _show(self, group: SequenceGroup, tokens: int) -> list[TokenSequence]:
        shown = group.show(tokens)
        self.front_tokens += sum(sequence.num_tokens for sequence in shown)
        return shown

    def remove(self, group: SequenceGroup) -> None:
        """Nothing of this request waits any more."""
        self.flow(group).groups.pop(group)
        for place, (_, _, other) in enumerate(self.front):
            if other is group:
                self.front_tokens -= group.shown_tokens()
                del self.front[place]
                return
        if len(self.backlog) > 2 * len(self.bulk.groups):  # dropped ones would be kept alive
            self.backlog = [entry for entry in self.backlog if entry[2] in self.bulk.groups]
            heapq.heapify(self.backlog)


class WaitingQueue:
    """Waiting sequences, handed out as micro-batches.

    Args:
        pace: how large the micro-batches are, and when a worker takes one.
        packed: what is computed together is not padded.
    """

    def __init__(self, pace: Pace, *, packed: bool = False) -> None:
        self._max_batch_tokens = pace.max_batch_tokens
        self._fitting_tokens = pace.max_batch_tokens  # what the backend has memory for
        self._taken_since_lowered = 0  # micro-batches
        self._light_batch_tokens = pace.light_batch_tokens
        self._packed = packed
        self._ahead_tokens = pace.ahead_tokens
        self._computing: Counter[int] = Counter()  # workers that are not in `take`, by device
        self._ended = threading.Event()
        self._share_among_idle = pace.share_among_idle
        self._workers = 0  # threads between `join` and `leave`
        self._changed = threading.Condition()
        self._dropped = False  # whether the list holds sequences of dropped groups
        self._serial = itertools.count()
        self._virtual_tokens = 0.0  # start tag of the key that was served last
        self._by_length: list[TokenSequence] = []  # ascending `order`; without the backlogs
        self._keys: dict[str, _Key] = {}
        self._resting: list[tuple[float, str]] = []  # heap of keys without requests, by start tag
        self._sequences = 0  # waiting, with the backlogs
        self.closed = False
        self.tokens = 0  # waiting, with the backlogs
        self.idle_workers = 0  # threads that are in `take`

    def __len__(self) -> int:
        """Sequences that wait."""
        return self._sequences

    def put(self, group: SequenceGroup) -> None:
        """Let all sequences of a request wait, together.

        Raises:
            Draining: the queue is closed; nobody would serve them.
        """
        with self._changed:
            if self.closed:
                raise Draining
            key = self._keys.get(group.key)
            if key is None:
                key = self._keys[group.key] = _Key(self._virtual_tokens)
            elif not key:
                key.start_tokens = max(key.start_tokens, self._virtual_tokens)
            key.add(group, next(self._serial))
            self.tokens += group.num_tokens
            self._sequences += len(group.sequences)
            if group in key.light.groups:
                self._show(group.show(group.num_tokens))
            self._advance(key)
            if self._ahead_tokens is None:
                self._changed.notify(len(group.sequences))
            elif self.idle_workers:  # only those of some devices may be wanted
                self._changed.notify_all()

    def join(self, device: int = 0) -> None:
        """A worker thread of this device is there from now on."""
        with self._changed:
            self._workers += 1
            self._computing[device] += 1

    def leave(self, device: int = 0) -> None:
        """A worker thread takes no more."""
        with self._changed:
            self._workers -= 1
            self._computing[device] -= 1

    def take(self, timeout_s: float | None = None, *, device: int = 0) -> MicroBatch | None:
        """The next micro-batch; blocks while nothing waits.

        Returns None once the queue is closed, or when nothing came for `timeout_s`.
        """
        with self._changed:
            self.idle_workers += 1
            self._computing[device] -= 1
            try:
                while not (self._has_work() and self._is_wanted(device)) and not self.closed:
                    if not self._changed.wait(timeout_s):
                        return None
                return None if self.closed else self._pop()
            finally:
                self.idle_workers -= 1
                self._computing[device] += 1

    def rest(self, seconds: float) -> None:
        """Wait so long without being woken by work; not longer than until the queue is closed."""
        self._ended.wait(seconds)

    def drop(self, group: SequenceGroup) -> None:
        """Forget what still waits of a group: its client went away or it has failed.

        Takes little time, since the event loop calls it; the next worker clears away, once for
        many.
        """
        with self._changed:
            if not group.unserved or group.key not in self._keys:
                return
            key = self._keys[group.key]
            if group not in key.flow(group).groups:
                return
            self.tokens -= group.unserved_tokens
            self._sequences -= group.unserved
            key.remove(group)
            group.unserved = 0
            self._dropped = True
            self._advance(key)
            self._rest(group.key, key)

    def lower_budget(self, failed_tokens: int) -> int:
        """Give out smaller micro-batches than the one that the backend had no memory for.

        Args:
            failed_tokens: its size, padding counted.

        Returns:
            The new budget. It is doubled, up to `max_batch_tokens`, whenever so little has been
            given out RAISE_BUDGET_AFTER times.
        """
        with self._changed:
            lowest = max(1, int(LOWEST_BUDGET_SHARE * self._max_batch_tokens))
            self._fitting_tokens = min(self._fitting_tokens, max(lowest, failed_tokens // 2))
            self._taken_since_lowered = 0
            return self._fitting_tokens

    def close(self) -> list[SequenceGroup]:
        """Send the workers home; returns the groups that still waited."""
        with self._changed:
            self.closed = True
            self._ended.set()
            self._changed.notify_all()
            return [
                group
                for key in self._keys.values()
                for flow in (key.light, key.bulk)
                for group in flow.groups
            ]

    def _pop(self) -> MicroBatch:
        key = min((key for key in self._keys.values() if key), key=attrgetter("start_tokens"))
        self._virtual_tokens = key.start_tokens
        flow = key.next_flow()
        light = flow is key.light
        group = next(iter(flow.groups)) if light else key.front[0][2]
        # A machine with idle workers shares out what there is; a busy one fills its micro-batches.
        workers = self.idle_workers if self._share_among_idle else 1
        share = max(math.ceil(self.tokens / workers), self._light_batch_tokens)
        self._raise_budget()
        budget = min(self._fitting_tokens, self._light_batch_tokens if light else share)
        chosen = self._choose(group.next_sequence, budget)
        micro_batch = MicroBatch(chosen, packed=self._packed)
        self._charge(key, flow, micro_batch)
        self._forget_rested_keys()
        micro_batch.alone = not self._sequences and self.idle_workers == self._workers
        return micro_batch

    def _raise_budget(self) -> None:
        """Called for each micro-batch."""
        if self._fitting_tokens == self._max_batch_tokens:
            return
        self._taken_since_lowered += 1
        if self._taken_since_lowered > RAISE_BUDGET_AFTER:
            self._fitting_tokens = min(2 * self._fitting_tokens, self._max_batch_tokens)
            self._taken_since_lowered = 0

    def _choose(self, head: TokenSequence, budget: int) -> list[TokenSequence]:
        """Take the head and what goes with it out of the list."""
        index = bisect_left(self._by_length, head.order, key=_BY_LENGTH)
        first = bisect_left(self._by_length, head.num_tokens, key=_NUM_TOKENS, hi=index)
        # Packed, the tokens bound the run, and the shorter ones may be many more.
        fitting = budget if self._packed else budget // head.num_tokens
        shorter = self._candidates(self._shorter_than(first), fitting, budget)
        rest = itertools.chain(range(first, index), range(index + 1, len(self._by_length)))
        longer = self._candidates(rest, fitting, budget)
        places = [*reversed(shorter), index, *longer]
        lengths = [self._by_length[place].num_tokens for place in places]
        start, stop = select(lengths, len(shorter), budget, packed=self._packed)
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

    def _candidates(self, places: Iterable[int], wanted: int, tokens: int) -> list[int]:
        """Those of these places, in their order, whose sequences may be taken along.

        Args:
            wanted: no more of them fit.
            tokens: nor more than these hold.
        """
        found: list[int] = []
        for place in itertools.islice(places, _SEARCH * wanted):
            if len(found) == wanted or tokens <= 0:
                break
            sequence = self._by_length[place]
            key = self._keys[sequence.group.key]
            if key.start_tokens - self._virtual_tokens <= MAX_LEAD_TOKENS:
                found.append(place)
                tokens -= sequence.num_tokens
        return found

    def _charge(self, head_key: _Key, head_flow: _Flow, micro_batch: MicroBatch) -> None:
        """Count what was chosen against its keys and requests."""
        for group, part in micro_batch.parts.items():
            key = self._keys[group.key]
            key.start_tokens += part.tokens
            key.charge(key.flow(group), part.tokens)
        if micro_batch.tokens < MIN_COST_TOKENS:
            missing = MIN_COST_TOKENS - micro_batch.tokens
            head_key.start_tokens += missing
            head_key.charge(head_flow, missing)
        self.tokens -= micro_batch.tokens
        self._sequences -= len(micro_batch)
        for group, part in micro_batch.parts.items():
            key = self._keys[group.key]
            if key.flow(group) is key.bulk:
                key.front_tokens -= part.tokens
            if not group.serve(part):
                key.remove(group)
                self._rest(group.key, key)
        for name in dict.fromkeys(group.key for group in micro_batch.parts):
            self._advance(self._keys[name])

    def _advance(self, key: _Key) -> None:
        """Let more of a key's bulk work be chosen from."""
        self._show(key.advance(FRONT_BUDGETS * self._max_batch_tokens))

    def _show(self, sequences: list[TokenSequence]) -> None:
        """Put sequences where they can be chosen."""
        for sequence in sequences:
            sequence.order = (sequence.num_tokens, next(self._serial))
        if len(sequences) == 1:
            insort(self._by_length, sequences[0], key=_BY_LENGTH)
        elif sequences:
            self._by_length.extend(sequences)
            self._by_length.sort(key=_BY_LENGTH)

    def _is_wanted(self, device: int) -> bool:
        """Whether an idle worker of this device is to take something now, if there is something."""
        if self._ahead_tokens is None or self.tokens >= self._ahead_tokens:
            return True
        return not self._computing[device]

    def _has_work(self) -> bool:
        if self._dropped:
            self._dropped = False
            self._by_length = [s for s in self._by_length if s.group.unserved]
        return bool(self._by_length)

    def _rest(self, name: str, key: _Key) -> None:
        """Remember a key without requests for as long as it is ahead of the others."""
        if not key:
            heapq.heappush(self._resting, (key.start_tokens, name))

    def _forget_rested_keys(self) -> None:
        """Forget keys that would start like new ones."""
        nobody_waits = not self._sequences
        while self._resting and (nobody_waits or self._resting[0][0] <= self._virtual_tokens):
            _, name = heapq.heappop(self._resting)
            key = self._keys.get(name)
            if key is None or key:
                continue
            if nobody_waits or key.start_tokens <= self._virtual_tokens:
                del self._keys[name]
