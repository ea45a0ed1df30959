"""How a process ends that may not be able to: threads that hang would be waited for without end.

Any thread may call.
"""

from __future__ import annotations

import os
import threading

FAILURE = 1


def end_within(seconds: float) -> None:
    """End this process after so long with exit code 1, unless it has ended itself by then."""
    timer = threading.Timer(seconds, os._exit, (FAILURE,))
    timer.daemon = True
    timer.start()
