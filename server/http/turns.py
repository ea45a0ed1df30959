"""What comes at once is done a few at a time: else a probe would wait for all of it.

Thousands of connections may have their heads read in one turn of the event loop, and each begin of
a request costs some tenths of a millisecond; so does each piece of a large body. Belongs to the
event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

STARTS_AT_ONCE = 32  # in a turn of the event loop, which takes some milliseconds then
READS_AT_ONCE = 4  # of 256 KB each, as uvloop reads


class Turns:
    """Steps that wait for the next turns, in the order in which they came.

    Args:
        at_once: how many there are in a turn.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[Callable[[], None]] = deque()

    def later(self, step: Callable[[], None]) -> None:
        """Do it in one of the next turns."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._go_on)
        self._waiting.append(step)

    def _go_on(self) -> None:
        try:
            for _ in range(min(self._at_once, len(self._waiting))):
                self._waiting.popleft()()
        finally:  # one that fails is the event loop's to report, and the others are to be done
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._go_on)


class ReadInTurns(FlowControl):
    """uvicorn's flow control of one connection, but that connections are read on in turns.

    uvicorn stops reading whenever 64 KB of a body lie there, and goes on as soon as they are taken.
    A pause holds until somebody asks to read on after it.

    Args:
        transport: of the connection.
        turns: shared by all of them.
    """

    def __init__(self, transport: asyncio.Transport, turns: Turns) -> None:
        super().__init__(transport)
        self._turns = turns
        self._is_queued = self._is_wanted = False

    def pause_reading(self) -> None:
        """Read no further, though a turn to read on was waited for."""
        self._is_wanted = False
        self.read_paused = True
        self._transport.pause_reading()  # in any case: h11's protocol resumes it past this one

    def resume_reading(self) -> None:
        """Read on when it is this connection's turn."""
        if not self.read_paused:
            return
        self._is_wanted = True
        if not self._is_queued:
            self._is_queued = True
            self._turns.later(self._resume)

    def _resume(self) -> None:
        self._is_queued = False
        if self._is_wanted:
            self._is_wanted = False
            super().resume_reading()
