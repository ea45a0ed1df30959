"""Folders in which one process works, so that another one can tell what a killed one has left.

Such a folder holds a locked file. The system lets go of the lock when the process ends, however it
ends. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

LOCK_FILE = ".lock"
_BLOCK_BYTES = 512  # unit of st_blocks, whatever the file system's own


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file until it is closed or this process ends; False if another one has it."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def hold(folder: Path) -> TextIO | None:
    """Make a folder if need be, and hold it until what is returned is closed.

    Returns:
        The lock, or None if another process holds the folder.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / LOCK_FILE).open("a")
        except FileNotFoundError:  # another process cleared the folder just now
            continue
        if not try_lock(lock):
            lock.close()
            return None
        if _is_at(lock, folder / LOCK_FILE):
            return lock
        lock.close()  # it was cleared before the lock was ours


def leave_nothing(_folder: Path) -> None:
    """For folders in which nothing lies that belongs elsewhere."""


@contextlib.contextmanager
def scratch_folder(
    parent: Path, prefix: str, rescue: Callable[[Path], None] = leave_nothing
) -> Iterator[Path]:
    """A new folder that this process holds; gone afterwards.

    Args:
        parent: made if need be.
        rescue: called before the folder is removed, also by the one who clears it after a crash;
            if it raises, the folder stays.
    """
    lock = None
    while lock is None:  # a name is never taken, but for a moment by one who clears
        folder = parent / f"{prefix}{secrets.token_hex(4)}"
        lock = hold(folder)
    with lock:
        try:
            yield folder
        finally:
            rescue(folder)
            remove(folder)


def has_lock(folder: Path) -> bool:
    """Whether a process has held this very folder: it is no link, and the locked file lies in it.

    Raises:
        OSError: the folder cannot be looked into.
    """
    try:
        return stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG(
            (folder / LOCK_FILE).lstat().st_mode
        )
    except FileNotFoundError:
        return False


def clear(folder: Path, rescue: Callable[[Path], None] = leave_nothing) -> int | None:
    """Remove a folder that a process has held and none holds now; another folder is left alone.

    Args:
        rescue: as for `scratch_folder`.

    Returns:
        The bytes that this freed on the disk, or None if a process holds the folder.

    Raises:
        OSError: it cannot be removed.
    """
    if sys.platform == "win32":  # nothing tells there who holds what
        return None
    if not has_lock(folder):  # another process was faster, or it is a user's own
        return 0
    try:
        lock = (folder / LOCK_FILE).open("r+")  # never makes the file
    except FileNotFoundError:  # another process was faster
        return 0
    with lock:
        if not try_lock(lock):
            return None
        if not _is_at(lock, folder / LOCK_FILE):
            return 0
        rescue(folder)
        statuses = [path.lstat() for path in folder.rglob("*")]
        remove(folder)
        # Of a file that has another name elsewhere nothing is freed.
        return sum(one.st_blocks for one in statuses if one.st_nlink == 1) * _BLOCK_BYTES


def remove(folder: Path) -> None:
    """Remove a folder that this process holds; the lock goes last, so that nobody else does it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()
    (folder / LOCK_FILE).unlink()
    with contextlib.suppress(OSError):  # another process takes the folder just now
        folder.rmdir()


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
