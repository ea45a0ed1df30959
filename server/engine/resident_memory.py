"""What the process holds in memory, and how it gives back what it holds no more.

Knows nothing of models. The functions may be called from any thread; a ResidentMemory belongs to
the event loop's thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_STATM = Path("/proc/self/statm")
_M_TRIM_THRESHOLD = -1  # malloc.h; once it is set, pieces of 128 KiB are always mapped alone
_KEPT_BYTES = 1 << 20  # of each arena, for the next allocations


def resident_bytes() -> int | None:
    """Resident memory of this process, mapped files included; None where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_freed_memory() -> None:
    """From now on have glibc return what is freed to the system.

    Once large arrays or bodies have been freed it would keep up to 64 MB for each thread that
    allocates much, where malloc_trim does not reach it: under a flood of large bodies a third more
    than is in use. Other C libraries (musl's, macOS') return large pieces anyway, and lack the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class ResidentMemory:
    """Tells how much a load or an unload changes, unless another one happens at the same time."""

    def __init__(self) -> None:
        self._running = 0
        self._begun = 0

    @contextlib.contextmanager
    def change(self) -> Iterator[Callable[[], int | None]]:
        """Around one load or unload.

        Yields:
            A function that tells by how many bytes resident memory has grown since (negative: it
            shrank), or None if that has more than this one cause. What requests take or give back
            meanwhile is in it.
        """
        self._running += 1
        self._begun += 1
        alone, begun, before = self._running == 1, self._begun, resident_bytes()

        def growth() -> int | None:
            now = resident_bytes()
            if not alone or self._begun != begun or before is None or now is None:
                return None
            return now - before

        try:
            yield growth
        finally:
            self._running -= 1
