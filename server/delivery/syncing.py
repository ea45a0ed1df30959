"""What has been written survives a crash of the machine. Knows nothing of models."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

# Of file systems that keep no folder of their own that could be written: some network ones.
_NOT_SYNCABLE = {errno.EINVAL, errno.ENOTSUP}


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a crash of the machine, not what is in its files."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise


def sync_tree(folder: Path) -> None:
    """Have a folder survive with everything below it, contents and names."""
    for path in folder.rglob("*"):
        sync_folder(path) if path.is_dir() else _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    if sys.platform != "win32":  # there neither folders nor files open for reading can be
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
