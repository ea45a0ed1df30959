"""Puts a folder in another one's place in one step of the file system, where that is possible.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

# From Linux's fcntl.h and fs.h.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_IMPOSSIBLE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


def exchange(one: Path, other: Path) -> bool:
    """Have two folders swap their names; no moment has neither.

    Returns:
        False if this system or file system cannot; then nothing has happened.

    Raises:
        OSError: it can, but not with these.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _IMPOSSIBLE:
        return False
    raise OSError(number, os.strerror(number), str(other))
