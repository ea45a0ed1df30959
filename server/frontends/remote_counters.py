"""Counters of requests and tokens a minute that all front ends have in the engine process.

Lives in the event loop's thread.
"""

from __future__ import annotations

from server.errors import Draining, StorageUnavailable
from server.frontends.channel import Channel
from server.frontends.messages import Count, Look, Question


class RemoteCounters:
    """See Counters."""

    are_shared = True

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def count(self, name: str, amount: int) -> tuple[int, float]:
        """Add to a counter; what it holds then, and in how many seconds it ends."""
        return await self._ask(Count(name, amount))

    async def look(self, name: str) -> tuple[int, float]:
        """What a counter holds, and in how many seconds it ends."""
        return await self._ask(Look(name))

    async def _ask(self, question: Question[tuple[int, float]]) -> tuple[int, float]:
        try:
            return await self._channel.ask(question)
        except Draining:  # the engine process is gone, and this one ends
            raise StorageUnavailable("rate limits") from None
