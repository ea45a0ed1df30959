"""What has been written survives a crash of the machine. Knows nothing of models."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a crash of the machine, not what is in its files."""
    _sync(folder)


def sync_tree(folder: Path) -> None:
    """Have a folder survive with everything below it, contents and names."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if sys.platform != "win32":  # there neither folders nor files open for reading can be
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
