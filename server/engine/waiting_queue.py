"""Sequences that wait for a worker, and the micro-batches in which workers take them.

Whose turn it is, is decided in `fair_share`; in which order the requests of a key are served, in
`key_requests`; which sequences go well together, in `length_index`. What is next brings others
along, of the same padded length on a CPU and of similar length on a GPU, as long as their key is
not too far ahead of its turn; they are charged all the same.

Any thread may call; all state is guarded by one lock.
"""

from __future__ import annotations

import math
import threading
from collections import Counter

from server.engine.batch_budget import BatchBudget
from server.engine.fair_share import MIN_COST_TOKENS, FairShare, Flow, KeyShare
from server.engine.key_requests import KeyRequests
from server.engine.length_index import LengthIndex
from server.engine.pace import Pace
from server.engine.sequence import MicroBatch, SequenceGroup
from server.errors import Draining
from server.inference.backend import Layout

# So much bulk work of each key is looked at for sequences that go along, in budgets.
FRONT_BUDGETS = 32


class WaitingQueue:
    """Waiting sequences, handed out as micro-batches.

    Args:
        pace: how large the micro-batches are, and when a worker takes one.
        layout: of what is computed together.
    """

    def __init__(self, pace: Pace, layout: Layout = Layout.BY_LENGTH) -> None:
        self._pace = pace
        self._layout = layout
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._workers = 0  # threads that were added and not removed
        self._computing: Counter[int] = Counter()  # workers that are not in `take`, by device
        self._budget = BatchBudget(pace.max_batch_tokens)
        self._shares = FairShare()
        self._requests: dict[str, KeyRequests] = {}  # by key, of which something waits
        self._choosable = LengthIndex(layout)
        self._dropped = False  # whether dropped sequences can still be chosen
        self._sequences = 0  # waiting
        self.closed = False
        self.idle_workers = 0  # threads that are in `take`

    def __len__(self) -> int:
        """Sequences that wait."""
        return self._sequences

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._shares.tokens

    def put(self, group: SequenceGroup) -> None:
        """Let all sequences of a request wait, together.

        Raises:
            Draining: the queue is closed; nobody would serve them.
        """
        with self._changed:
            if self.closed:
                raise Draining
            group.share = self._shares.enter(group.key, group.num_tokens)
            group.flow = group.share.flow_of(group.num_tokens)
            requests = self._requests.get(group.key)
            if requests is None:
                front_tokens = FRONT_BUDGETS * self._pace.max_batch_tokens
                requests = KeyRequests(group.share, front_tokens)
                self._requests[group.key] = requests
            self._sequences += len(group.sequences)
            self._choosable.add(requests.add(group))
            if self._pace.ahead_tokens is None:
                self._changed.notify(len(group.sequences))
            elif self.idle_workers:  # only those of some devices may be wanted
                self._changed.notify_all()

    def add_worker(self, device: int = 0) -> None:
        """A worker thread of this device is there from now on."""
        with self._changed:
            self._workers += 1
            self._computing[device] += 1

    def remove_worker(self, device: int = 0) -> None:
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
                return None if self.closed else self._next_micro_batch()
            finally:
                self.idle_workers -= 1
                self._computing[device] += 1

    def wait_until_closed(self, timeout_s: float) -> None:
        """Wait without being woken by work, no longer than `timeout_s`."""
        self._ended.wait(timeout_s)

    def drop(self, group: SequenceGroup) -> None:
        """Forget what still waits of a group: its client went away or it has failed.

        Takes little time, since the event loop calls it; the next worker clears away, once for
        many.
        """
        with self._changed:
            requests = self._requests.get(group.key)
            if requests is None or group not in requests:
                return
            self._shares.subtract(group.flow, group.waiting_tokens)
            self._sequences -= group.num_waiting
            self._remove(requests, group)
            group.num_waiting = 0
            self._dropped = True
            self._choosable.add(requests.advance())

    def lower_budget(self, failed_tokens: int) -> int:
        """Give out smaller micro-batches than the one that the backend had no memory for.

        Args:
            failed_tokens: its size, padding counted.

        Returns:
            The new budget; see `BatchBudget.lower`.
        """
        with self._changed:
            return self._budget.lower(failed_tokens)

    def close(self) -> list[SequenceGroup]:
        """Send the workers home; returns the groups that still waited."""
        with self._changed:
            self.closed = True
            self._ended.set()
            self._changed.notify_all()
            return [group for requests in self._requests.values() for group in requests]

    def _has_work(self) -> bool:
        if self._dropped:
            self._dropped = False
            self._choosable.discard_dropped()
        return bool(self._choosable)

    def _is_wanted(self, device: int) -> bool:
        """Whether an idle worker of this device is to take something now, if there is something."""
        ahead_tokens = self._pace.ahead_tokens
        return ahead_tokens is None or self.tokens >= ahead_tokens or not self._computing[device]

    def _next_micro_batch(self) -> MicroBatch:
        share = self._shares.next_share()
        flow = share.next_flow()
        self._budget.count_batch()
        chosen = self._choosable.take(
            self._requests[share.key].first_of(flow).next_sequence,
            self._batch_tokens(light=flow is share.light),
            most_start_tokens=self._shares.most_start_tokens,
        )
        micro_batch = MicroBatch(chosen, self._layout)
        self._charge(share, flow, micro_batch)
        self._note_taken(micro_batch)
        self._shares.forget_absent_keys()
        micro_batch.alone = not self._sequences and self.idle_workers == self._workers
        return micro_batch

    def _batch_tokens(self, *, light: bool) -> int:
        """Most tokens of the micro-batch that a light request heads, or a bulk one."""
        light_tokens = self._pace.light_batch_tokens
        if light:
            return min(self._budget.tokens, light_tokens)
        # A machine with idle workers shares out what there is; a busy one fills its micro-batches.
        workers = self.idle_workers if self._pace.share_among_idle else 1
        return min(self._budget.tokens, max(math.ceil(self.tokens / workers), light_tokens))

    def _charge(self, share: KeyShare, flow: Flow, micro_batch: MicroBatch) -> None:
        """Count what was chosen against its keys, and what it costs beyond against the head's."""
        for group, part in micro_batch.parts.items():
            group.share.charge(group.flow, part.tokens)
        if micro_batch.tokens < MIN_COST_TOKENS:
            share.charge(flow, MIN_COST_TOKENS - micro_batch.tokens)

    def _note_taken(self, micro_batch: MicroBatch) -> None:
        """What was chosen waits no more; let more of its keys' bulk work be chosen from."""
        self._sequences -= len(micro_batch)
        keys: dict[str, KeyRequests] = {}
        for group, part in micro_batch.parts.items():
            requests = keys[group.key] = self._requests[group.key]
            self._shares.subtract(group.flow, part.tokens)
            requests.note_taken(group, part.tokens)
            group.mark_taken(part)
            if not group.num_waiting:
                self._remove(requests, group)
        for requests in keys.values():
            self._choosable.add(requests.advance())

    def _remove(self, requests: KeyRequests, group: SequenceGroup) -> None:
        """Nothing of this request waits any more."""
        requests.remove(group)
        self._shares.leave(group.share, group.flow)
        if not group.share.requests:
            del self._requests[group.key]
