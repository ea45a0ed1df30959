"""How many requests a process answers at a time, and how much memory they take together.

Knows nothing of what a request asks. Lives in the event loop's thread.
"""

from __future__ import annotations

import dataclasses
import math

from server.errors import Overloaded, RequestTooLarge
from server.program.usable_memory import usable_memory_bytes
from server.settings import Settings

DEFAULT_SHARE = 4  # one part in so many of the memory that the process may use
UNKNOWN_MEMORY_BYTES = 2 * 1024**3  # where the system does not tell
# Requests that take more leave the last quarter to others: they must not keep short queries out.
SHORT_BYTES = 1024 * 1024
# Nobody has more than so many times what is free, so that something is free for whoever comes
# next, and one who is alone has four fifths (dynamic thresholds: Choudhury and Hahne, 1998).
MOST_OF_FREE = 4


def memory_for_requests(settings: Settings) -> int:
    """Bytes that the requests of one process may take together."""
    usable = usable_memory_bytes() or UNKNOWN_MEMORY_BYTES
    max_bytes = settings.max_memory_bytes or usable // DEFAULT_SHARE
    return math.ceil(max_bytes / (settings.frontends or 1))


@dataclasses.dataclass(slots=True)
class _Share:
    """What all requests of one key have."""

    seats: int = 0
    held_bytes: int = 0


class Seats:
    """How many requests for embeddings there may be at a time, and how many bytes of memory.

    A request holds its seat from its head until its answer is sent, so that no flood takes memory
    without bound, however it is sent, and whether or not its answers are read. Keys share both.
    """

    def __init__(self, seats: int, max_bytes: int) -> None:
        self._seats = self._free = seats
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._shares: dict[str, _Share] = {}  # by whose they are; only of those who have some

    @classmethod
    def of(cls, settings: Settings) -> Seats:
        """One process's share of the requests and the memory that there may be."""
        seats = math.ceil(settings.max_concurrent_requests / (settings.frontends or 1))
        return cls(seats, memory_for_requests(settings))

    def limit_to(self, most: int) -> bool:
        """Have no more seats than this, before any is taken; returns whether that is fewer."""
        is_fewer = most < self._seats
        self._seats = self._free = min(self._seats, most)
        return is_fewer

    def take(self, whose: str) -> Seat:
        """A seat, until it is given back.

        Args:
            whose: the key, or whatever tells clients without keys apart.

        Raises:
            Overloaded: none is free, or this key has too many of them.
        """
        share = self._shares.get(whose) or _Share()
        if share.seats >= MOST_OF_FREE * self._free:
            whose_are = " of this key" if self._free else ""
            taken = share.seats if self._free else self._seats
            raise Overloaded(f"{taken} requests{whose_are} are being answered", retry_after_s=1)
        self._shares[whose] = share
        share.seats += 1
        self._free -= 1
        return Seat(self, whose)

    def give_back(self, whose: str) -> None:
        """A seat of this key is free again."""
        share = self._shares[whose]
        share.seats -= 1
        self._free += 1
        if not share.seats:
            del self._shares[whose]

    def change(self, whose: str, held_bytes: int, new_bytes: int) -> None:
        """A request of this key that holds so many bytes wants so many.

        Raises:
            RequestTooLarge: they would be too many if there were no other.
            Overloaded: they are too many, together with the others'.
        """
        share, more_bytes = self._shares[whose], new_bytes - held_bytes
        allowed = self.max_bytes * (3 if new_bytes > SHORT_BYTES else 4) // 4
        alone = allowed * MOST_OF_FREE // (MOST_OF_FREE + 1)
        if new_bytes > alone:
            raise RequestTooLarge(new_bytes, alone)
        total = self.held_bytes + more_bytes
        if more_bytes > 0 and share.held_bytes + more_bytes > MOST_OF_FREE * (allowed - total):
            raise Overloaded(
                f"requests of {self.held_bytes - held_bytes} bytes are being answered",
                retry_after_s=1,
            )
        self.held_bytes = total
        share.held_bytes += more_bytes


class Seat:
    """One request's place and the memory it takes."""

    __slots__ = ("_seats", "_whose", "bytes")

    def __init__(self, seats: Seats, whose: str) -> None:
        self._seats = seats
        self._whose = whose
        self.bytes = 0

    def hold(self, num_bytes: int) -> None:
        """The request takes so many bytes from now on; raises what `Seats.change` raises."""
        self._seats.change(self._whose, self.bytes, num_bytes)
        self.bytes = num_bytes

    def give_back(self) -> None:
        """The request has ended, and its answer is sent."""
        self.hold(0)
        self._seats.give_back(self._whose)
