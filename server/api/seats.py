"""How many requests a process answers at a time, and how much memory they take together.

Knows nothing of what a request asks. Lives in the event loop's thread.
"""

from __future__ import annotations

import math

from server.errors import Overloaded, RequestTooLarge
from server.program.usable_memory import usable_memory_bytes
from server.settings import Settings

DEFAULT_SHARE = 4  # one part in so many of the memory that the process may use
UNKNOWN_MEMORY_BYTES = 2 * 1024**3  # where the system does not tell
# Requests that take more leave the last quarter to others: they must not keep short queries out.
SHORT_BYTES = 1024 * 1024


class Seats:
    """How many requests for embeddings there may be at a time, and how many bytes of memory.

    A request holds its seat from its head until its answer is sent, so that no flood takes memory
    without bound, however it is sent, and whether or not its answers are read.
    """

    def __init__(self, seats: int, max_bytes: int) -> None:
        self._seats = self._free = seats
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @classmethod
    def of(cls, settings: Settings) -> Seats:
        """One process's share of the requests and the memory that there may be."""
        frontends = settings.frontends or 1
        usable = usable_memory_bytes() or UNKNOWN_MEMORY_BYTES
        max_bytes = settings.max_memory_bytes or usable // DEFAULT_SHARE
        return cls(
            math.ceil(settings.max_concurrent_requests / frontends),
            math.ceil(max_bytes / frontends),
        )

    def take(self) -> Seat:
        """A seat, until it is given back.

        Raises:
            Overloaded: none is free.
        """
        if not self._free:
            raise Overloaded(f"{self._seats} requests are being answered", retry_after_s=1)
        self._free -= 1
        return Seat(self)

    def give_back(self, held_bytes: int) -> None:
        """A seat is free again, and so many bytes."""
        self._free += 1
        self.held_bytes -= held_bytes

    def change(self, held_bytes: int, new_bytes: int) -> None:
        """A request that holds so many bytes wants so many.

        Raises:
            RequestTooLarge: they would be too many if there were no other.
            Overloaded: they are too many, together with the others'.
        """
        allowed = self.max_bytes - (self.max_bytes // 4 if new_bytes > SHORT_BYTES else 0)
        if new_bytes > allowed:
            raise RequestTooLarge(new_bytes, allowed)
        others = self.held_bytes - held_bytes
        if new_bytes > held_bytes and others + new_bytes > allowed:
            raise Overloaded(f"requests of {others} bytes are being answered", retry_after_s=1)
        self.held_bytes = others + new_bytes


class Seat:
    """One request's place and the memory it takes."""

    __slots__ = ("_seats", "bytes")

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.bytes = 0

    def hold(self, num_bytes: int) -> None:
        """The request takes so many bytes from now on; raises what `Seats.change` raises."""
        self._seats.change(self.bytes, num_bytes)
        self.bytes = num_bytes

    def give_back(self) -> None:
        """The request has ended, and its answer is sent."""
        self._seats.give_back(self.bytes)
        self.bytes = 0
