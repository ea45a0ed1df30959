"""For how long one process has heard nothing of the other, and when that is too long.

Counted in ticks of one's own event loop: who was stopped, starved or suspended himself does not
take his own sleep for the other's.
"""

from __future__ import annotations

from collections.abc import Callable

# Both sides tell at least once a tick that their event loop goes round. Computing, reading bodies and
# tokenising large ones are in other threads, so what a loop does at a time takes milliseconds.
TICK_S = 1.0
# From here on front ends refuse what they would ask the engine process.
ENGINE_SILENT_TICKS = 5
# An engine process that is silent for a minute is ended, and the front ends with it, so that
# whoever started it starts it again. Shorter would end one whose machine swaps, or that somebody
# looks at with a debugger; longer would keep who waits for it.
ENGINE_LOST_TICKS = 60
# A front end that is silent so long is replaced. Its clients cannot be answered by another one.
FRONT_END_LOST_TICKS = 10
# One that starts imports first, from a disk that may be slow.
FRONT_END_START_TICKS = 60
# A process may be silent and at work: a library that reads a model from a slow disk, or compiles,
# lets no other thread run; so does a machine that swaps or that lends little of its processors.
# It gets so many times as long, and not for ever, since it may go round in circles, too.
AT_WORK_FACTOR = 10


class Silence:
    """How many ticks have gone by since the other process was heard.

    Args:
        is_at_work: whether the other does anything, as far as is known; asked each tick.
    """

    def __init__(self, is_at_work: Callable[[], bool] = lambda: False) -> None:
        self.ticks = 0
        self.ever_heard = False
        self._idle_ticks = 0
        self._is_at_work = is_at_work

    def hear(self) -> None:
        """The other process has told something."""
        self.ticks = self._idle_ticks = 0
        self.ever_heard = True

    def tick(self) -> int:
        """One more tick has gone by; returns how many there are."""
        self.ticks += 1
        self._idle_ticks += not self._is_at_work()
        return self.ticks

    def has_lasted(self, ticks: int) -> bool:
        """Whether it is too long for a process that is to be heard within so many ticks."""
        return self._idle_ticks >= ticks or self.ticks >= AT_WORK_FACTOR * ticks
