"""How many requests a process answers at a time, and how many bytes of their bodies it holds.

Knows nothing of what a request asks. Lives in the event loop's thread.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from server.errors import Overloaded
from server.settings import Settings

# Bodies of the largest size that are held at a time; what is parsed from them takes more.
LARGEST_BODIES = 4
# So many bytes of each body are not counted: large bodies must not keep short queries out.
UNCOUNTED_BODY_BYTES = 64 * 1024


class Seats:
    """How many requests for embeddings there may be at a time, and how many bytes of bodies.

    A request holds its seat from its head to its answer, so that no flood takes memory without
    bound, however it is sent.
    """

    def __init__(self, seats: int, max_bytes: int) -> None:
        self._seats = self._free = seats
        self._max_bytes = self._free_bytes = max_bytes

    @classmethod
    def of(cls, settings: Settings) -> Seats:
        """One process's share of the requests and bodies that there may be; room for one at least."""
        frontends = settings.frontends or 1
        most_bytes = math.ceil(LARGEST_BODIES * settings.max_body_bytes / frontends)
        return cls(
            math.ceil(settings.max_concurrent_requests / frontends),
            max(most_bytes, settings.max_body_bytes),
        )

    def take(self) -> Seat:
        """Hold a seat, until its context ends.

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
        self._free_bytes += held_bytes

    def hold(self, more_bytes: int) -> None:
        """Count bytes of a body.

        Raises:
            Overloaded: they are too many, together with the others'.
        """
        if more_bytes > self._free_bytes:
            raise Overloaded(
                f"requests of {self._max_bytes} bytes are being answered", retry_after_s=1
            )
        self._free_bytes -= more_bytes


class Seat:
    """One request's place and the bytes it holds; both are given back when its context ends."""

    __slots__ = ("_seats", "bytes")

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.bytes = 0

    def hold(self, body_bytes: int) -> None:
        """The body has so many bytes by now; raises Overloaded."""
        counted = body_bytes - UNCOUNTED_BODY_BYTES
        if counted > self.bytes:
            self._seats.hold(counted - self.bytes)
            self.bytes = counted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seats.give_back(self.bytes)
