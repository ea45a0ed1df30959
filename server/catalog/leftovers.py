"""Clears what failed and killed pulls, imports and installations have left on the disk.

Knows nothing of settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from server.catalog.locking import clear
from server.catalog.placing import clear_workshop, workshops
from server.catalog.pull import unfinished_pulls
from server.errors import ModelFileError


def clear_leftovers(
    models_dir: Path, installed: Path, downloads: Path
) -> Iterator[tuple[Path, int | None]]:
    """Remove whatever no process uses, one folder after the other; no model is touched.

    Args:
        models_dir: the models that came with the software.
        installed: the folder of imported and installed models.
        downloads: what pulls from the hub have fetched and not yet imported.

    Yields:
        Each folder with the bytes that its removal freed, None if a process uses it.

    Raises:
        ModelFileError: a folder cannot be removed.
    """
    in_use = False
    for folder in workshops(installed):
        freed = _clear_named(folder, is_workshop=True)
        in_use |= freed is None
        yield folder, freed
    kept = sorted(downloads.iterdir()) if downloads.is_dir() else []
    for folder in (*unfinished_pulls(models_dir), *unfinished_pulls(installed), *kept):
        yield folder, _clear_named(folder)
    # An import that is about to end may just have made the folder of its organisation.
    if not in_use and installed.is_dir():
        yield from ((folder, 0) for folder in _remove_empty(installed))


def _clear_named(folder: Path, *, is_workshop: bool = False) -> int | None:
    try:
        return clear_workshop(folder) if is_workshop else clear(folder)
    except OSError as error:
        raise ModelFileError(f"cannot clear {folder}: {error.strerror}") from error


def _remove_empty(folder: Path) -> Iterator[Path]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        with contextlib.suppress(OSError):  # it is not empty
            inner.rmdir()
            yield inner
