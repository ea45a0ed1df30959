"""A child process whose parent ends while the child is stopped (Linux).

It would stay for ever, with all that it has open, as a port: nobody is left to see or to end it.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def go_on_without_parent() -> None:
    """Have the kernel wake this process, if it is stopped, when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGCONT)
