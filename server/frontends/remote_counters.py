"""Counters of requests and tokens a minute that all front ends have in the engine process.

Lives in the event loop's thread.
"""

from __future__ import annotations

from server.access.counters import Taken
from server.errors import Draining, StorageUnavailable
from server.frontends.channel import Channel
from server.frontends.messages import TakeIfFits


class RemoteCounters:
    """See Counters; an answer takes one question."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def take_if_fits(self, name: str, amount: int, most: int) -> Taken:
        """See Counters.

        Raises:
            StorageUnavailable: the engine process is gone, and this one ends.
        """
        try:
            return await self._channel.ask(TakeIfFits(name, amount, most))
        except Draining:
            raise StorageUnavailable("rate limits") from None
