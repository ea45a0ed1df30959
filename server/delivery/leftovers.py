"""Clears what failed and killed pulls, imports and installations have left on the disk.

Knows nothing of settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.delivery.hub import kept_downloads
from server.delivery.locking import clear, has_lock
from server.delivery.placing import clear_workshop, workshops
from server.delivery.pull import unfinished_pulls


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder that was left behind, and what became of it."""

    folder: Path
    freed: int | None  # bytes; None if it is still there
    fault: str | None = None  # why it could not be removed; None also if a process uses it


def clear_leftovers(models: Sequence[Path], downloads: Path | None) -> Iterator[Leftover]:
    """Remove whatever no process uses, one folder after the other.

    No model is touched, nor what the pulls, imports and installations have not made: a folder is
    theirs if it is called so, is no link, and holds their lock.

    Args:
        models: the folders of models.
        downloads: what pulls from the hub have fetched and not yet imported; None if that is
            nowhere.
    """
    makings = dict.fromkeys(path for folder in models for path in workshops(folder))
    for folder in makings:
        yield from _clear(folder, is_workshop=True)
    pulls = dict.fromkeys(path for folder in models for path in unfinished_pulls(folder))
    for folder in pulls:
        yield from _clear(folder)
    if downloads is None:
        return
    try:
        kept = kept_downloads(downloads)
    except OSError as error:
        yield Leftover(downloads, None, error.strerror)
        return
    for folder in kept:
        yield from _clear(folder)


def _clear(folder: Path, *, is_workshop: bool = False) -> Iterator[Leftover]:
    """Nothing, if the folder is none of ours."""
    try:
        if has_lock(folder):
            yield Leftover(folder, clear_workshop(folder) if is_workshop else clear(folder))
    except OSError as error:
        yield Leftover(folder, None, error.strerror or str(error))
