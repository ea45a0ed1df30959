"""How much memory this process may use: the machine's, or what a container leaves of it.

Pure functions of files; any thread may call.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from server.program.cgroups import cgroup_folders

# Files of versions 2 and 1. memory.high does not end a process, but stops it.
_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")


def usable_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of memory, swap left out; None where the system does not tell.

    Args:
        root: where `proc` and `sys` are.
    """
    limits = [limit for folder in cgroup_folders("memory", root) for limit in _limits(folder)]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _limits(folder: Path) -> Iterator[int]:
    for name in _LIMIT_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            yield int((folder / name).read_text())
