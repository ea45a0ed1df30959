"""Whether another process does anything, as the kernel sees it.

Linux only; elsewhere nothing is known. Any thread may call.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# Fields of /proc/PID/stat behind the name, which may hold anything.
_STATE, _MAJOR_FAULTS, _USER_TIME, _SYSTEM_TIME = 0, 9, 11, 12


class _Done(NamedTuple):
    """What all threads of a process have done since it began."""

    major_faults: int  # pages that it waited for until a disk gave them
    ticks: int  # of the processor's time


class ProcessActivity:
    """Looks at one process again and again.

    Args:
        process: its id.
    """

    def __init__(self, process: int) -> None:
        self._file = Path(f"/proc/{process}/stat")
        self._done: _Done | None = None  # when it was looked at last

    def is_at_work(self) -> bool:
        """Whether it has computed or read since the last look, or waits for a processor or a disk.

        One that is stopped, that waits for a lock or for another process, or of which nothing is
        known, is not.
        """
        try:
            fields = self._file.read_bytes().rpartition(b")")[2].split()
        except OSError:
            return False
        ticks = int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])
        before, self._done = self._done, _Done(int(fields[_MAJOR_FAULTS]), ticks)
        return fields[_STATE] in b"RD" or before not in (None, self._done)
