"""How waiting requests share a machine by tokens: between API keys, and inside a key.

A key is a lasting flow of start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): its start
tag grows by the tokens it was served, and the key with the smallest start tag is next. A key that
comes back starts where the others are, so that neither its silence nor its hurry gains anything.

Inside a key the light requests and the bulk ones are two such flows, with as many shares as they
have requests; but the bulk ones have no more than four for each light one. Light ones are served
as they came. Bulk ones are served in the order in which equal shares would have finished them
(packet-by-packet fair queueing: Demers, Keshav, Shenker, SIGCOMM 1989; Parekh, Gallager, 1993),
because an answer is of use only when it is complete: one after the other they are done no later
than side by side, and most of them far earlier.

The queue charges here what it hands out; the admission asks here what will be computed before a
request. Pure: knows no threads, clock or futures; whoever owns a FairShare guards it.
"""

from __future__ import annotations

import heapq
import math
from operator import attrgetter

# Requests of at most so many tokens are light: they are served as they came.
LIGHT_TOKENS = 96
# A forward pass over one token takes about as long as this many tokens take in a larger one.
MIN_COST_TOKENS = 32
# Bulk requests of a key get no more than this many times what its light ones get while both wait:
# two hundred of them would otherwise make each query wait for two hundred times its own cost.
MAX_BULK_SHARE = 4
# How far ahead of its turn a key may be and still fill others' micro-batches.
MAX_LEAD_TOKENS = 96

_START = attrgetter("start_tokens")


class Flow:
    """Light or bulk requests of one key; they share what the flow is served."""

    __slots__ = ("requests", "start_tokens", "tokens")

    def __init__(self) -> None:
        self.requests = 0  # that are here
        self.tokens = 0  # that wait
        self.start_tokens = 0.0  # start tag inside the key


class KeyShare:
    """What waits of one API key, and how much that key was served."""

    __slots__ = ("_bulk_time", "bulk", "key", "light", "requests", "start_tokens")

    def __init__(self, key: str, start_tokens: float) -> None:
        self.key = key
        self.start_tokens = start_tokens  # start tag among the keys
        self.requests = 0
        self.light = Flow()
        self.bulk = Flow()
        self._bulk_time = 0.0  # virtual: tokens that each of equal shares would have got

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self.light.tokens + self.bulk.tokens

    def flow_of(self, request_tokens: int) -> Flow:
        """Where a request of this size belongs."""
        return self.light if request_tokens <= LIGHT_TOKENS else self.bulk

    def add_request(self, tokens: int) -> None:
        """Count a request that comes with so many waiting tokens."""
        flow = self.flow_of(tokens)
        other = self.bulk if flow is self.light else self.light
        if not self.requests:
            flow.start_tokens = other.start_tokens = self._bulk_time = 0.0
        elif not flow.requests:
            flow.start_tokens = max(flow.start_tokens, other.start_tokens)
        self.requests += 1
        flow.requests += 1
        flow.tokens += tokens

    def bulk_finish(self, tokens: int) -> float:
        """The virtual time at which equal shares finish a bulk request that comes now."""
        return self._bulk_time + tokens

    def next_flow(self) -> Flow:
        """The flow with the smaller start tag, of those that have requests; on a tie the light."""
        if not self.bulk.requests:
            return self.light
        if not self.light.requests:
            return self.bulk
        return self.bulk if self.bulk.start_tokens < self.light.start_tokens else self.light

    def charge(self, flow: Flow, tokens: int) -> None:
        """Count tokens as served to a flow; the requests that share them are still here."""
        self.start_tokens += tokens
        shares = flow.requests
        if flow is self.bulk:
            self._bulk_time += tokens / shares
            shares = min(shares, MAX_BULK_SHARE * max(1, self.light.requests))
        flow.start_tokens += tokens / shares

    def work_before(self, tokens: int) -> float:
        """Most tokens of this key that are computed before a further request of this size is done.

        Light requests are served as they came, and the bulk ones get as many shares beside them as
        there are. While a bulk one gets its tokens every other gets no more than as many.
        """
        light_tokens = self.light.tokens + min(tokens, LIGHT_TOKENS)
        light_requests = self.light.requests + 1
        # The fewer light ones are left the larger the share of the bulk ones becomes; the sum of
        # 1/n over n light requests is below 1 + ln n.
        beside = light_tokens * self.bulk.requests / light_requests * (1 + math.log(light_requests))
        beside = min(beside, MAX_BULK_SHARE * max(light_tokens, MIN_COST_TOKENS))
        if tokens > LIGHT_TOKENS:
            beside = max(beside, tokens * self.bulk.requests)
        return self.light.tokens + min(self.bulk.tokens, beside)


class FairShare:
    """All keys that share a machine: whose turn it is, and what comes before whom."""

    def __init__(self) -> None:
        self.tokens = 0  # that wait
        self._requests = 0
        self._shares: dict[str, KeyShare] = {}
        self._absent: list[tuple[float, str]] = []  # heap of keys without requests, by start tag
        self._virtual_tokens = 0.0  # start tag of the key whose turn came last

    @property
    def most_start_tokens(self) -> float:
        """The start tag up to which a key's work may come along with that of the key in turn."""
        return self._virtual_tokens + MAX_LEAD_TOKENS

    def enter(self, key: str, tokens: int) -> KeyShare:
        """Count a request that comes with so many waiting tokens; its key's share."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = KeyShare(key, self._virtual_tokens)
        elif not share.requests:
            share.start_tokens = max(share.start_tokens, self._virtual_tokens)
        share.add_request(tokens)
        self._requests += 1
        self.tokens += tokens
        return share

    def subtract(self, flow: Flow, tokens: int) -> None:
        """So many tokens of this flow wait no more."""
        flow.tokens -= tokens
        self.tokens -= tokens

    def leave(self, share: KeyShare, flow: Flow) -> None:
        """A request goes; what waited of it was subtracted."""
        self._requests -= 1
        share.requests -= 1
        flow.requests -= 1
        if not share.requests:
            heapq.heappush(self._absent, (share.start_tokens, share.key))

    def next_share(self) -> KeyShare:
        """The share whose turn it is, of those that have requests; there must be one."""
        share = min((share for share in self._shares.values() if share.requests), key=_START)
        self._virtual_tokens = share.start_tokens
        return share

    def forget_absent_keys(self) -> None:
        """Forget the keys without requests that would start like new ones."""
        absent = self._absent
        while absent and (not self._requests or absent[0][0] <= self._virtual_tokens):
            _, key = heapq.heappop(absent)
            share = self._shares.get(key)
            if share is None or share.requests:
                continue
            if not self._requests or share.start_tokens <= self._virtual_tokens:
                del self._shares[key]

    def work_before(self, key: str, tokens: int) -> float:
        """Most tokens that are computed before a further request of this key and size is done.

        While one key gets its tokens, every other gets no more than as many.
        """
        share = self._shares.get(key)
        same_key = share.work_before(tokens) if share else 0.0
        others = sum(
            min(other.tokens, same_key + tokens)
            for name, other in self._shares.items()
            if name != key
        )
        return same_key + others
